"""Messages of a punch session: golden bytes, bounds, and numbers that later versions may add to."""

import msgpack
import pytest

from nat.observed import Mapping
from nat.port_count import PortCount
from nat.punch_messages import (
    Endpoint,
    Go,
    Hello,
    WitnessReply,
    WitnessRequest,
    count_in,
    counted,
    decode_hello,
    joint_token,
    mapping_of,
    number_of,
)
from protocol.wire.codec import encode
from protocol.wire.errors import RemoteError

TOKEN = bytes(range(16))
PEER = "12D3KooWEpM6P3PhcP5Qsvk2dRc4Kph2FYCVDvPbrZapzwMibzY2"
AT = ["203.0.113.9", 4711]

GOLDEN = [
    (Hello(TOKEN), [TOKEN, [], [], 0, 0, 32768, 0, b""]),
    (Hello(TOKEN, (Endpoint(*AT),), (Endpoint(*AT),), 5, 4, 32769, 40007, b"\0"), [TOKEN, [AT], [AT], 5, 4, 32769, 40007, b"\0"]),
    (Go(), [1, 32768, 0]),
    (counted(Go(), PortCount(40007, -2)), [1, 32766, 40007]),
    (WitnessRequest(PEER, "203.0.113.9"), [PEER, "203.0.113.9"]),
    (WitnessReply(True), [True]),
]


@pytest.mark.parametrize(("message", "plain"), GOLDEN)
def test_messages_keep_their_bytes(message, plain):
    assert encode(message) == msgpack.packb(plain)


@pytest.mark.parametrize(
    "plain",
    [
        [TOKEN[:15]], [TOKEN, [AT] * 9], [TOKEN, [["x" * 40, 1]]], [TOKEN, [["203.0.113.9", 0]]], [TOKEN, [], [], -1],
        [TOKEN, [], [], 0, 0, 1.5], [TOKEN, [], [], 0, 0, 32769, 65536], {}, [[[[[]]]]],
    ],
)  # fmt: skip
def test_what_is_out_of_bounds_is_refused(plain):
    with pytest.raises(RemoteError):
        decode_hello(msgpack.packb(plain))


def test_a_hello_of_a_later_version_is_read():
    later = decode_hello(msgpack.packb([TOKEN, [], [], 77, 0, 32768, 0, b"", "new"]))
    assert mapping_of(later.tcp_mapping) is Mapping.UNKNOWN


@pytest.mark.parametrize("message", [Hello(TOKEN), Go()])
def test_the_count_of_a_nat_is_told_or_not(message):
    assert count_in(message) is None
    assert count_in(counted(message, None)) is None
    assert count_in(counted(message, PortCount(40007, -2))) == PortCount(40007, -2)


def test_an_earlier_version_tells_no_count():
    assert count_in(decode_hello(msgpack.packb([TOKEN, [], [], 0, 4, 32769]))) is None


def test_kinds_keep_their_numbers():
    names = ["unknown", "none", "port_preserving", "endpoint_independent", "predictable", "symmetric"]
    assert [number_of(Mapping(name)) for name in names] == list(range(6))
    assert [mapping_of(number).value for number in range(6)] == names


def test_neither_side_chooses_the_token_alone():
    other = bytes(16 * [7])
    assert joint_token(TOKEN, other) == joint_token(other, TOKEN) not in (TOKEN, other)
