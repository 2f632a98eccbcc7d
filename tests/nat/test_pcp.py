"""PCP on the wire: the octets of RFC 6887 sections 7.1, 7.2 and 11.1, and garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat.natpmp import Protocol
from nat.pcp import Mapped, MapRequest, Refusal, decode, encode

NONCE = bytes(range(12))
V4_ANY, CLIENT, OUTSIDE = "00" * 10 + "ffff 00000000", "00" * 10 + "ffff c0a80102", "00" * 10 + "ffff cb007107"

HEADER = "02 81 00 00 00000e10 00000064" + "00" * 12
BODY = f"{NONCE.hex()} 06 000000 1267 d431 {OUTSIDE}"
GRANTED = Mapped(NONCE, Protocol.TCP, 4711, "203.0.113.7", 54321, 3600, 100)

ANSWERS = {
    "granted": (HEADER + BODY, GRANTED),
    "granted, with an option after it": (HEADER + BODY + "02 00 0000", GRANTED),
    "granted over IPv6": (
        HEADER + f"{NONCE.hex()} 11 000000 1267 1267 20010db8" + "00" * 11 + "01",
        Mapped(NONCE, Protocol.UDP, 4711, "2001:db8::1", 4711, 3600, 100),
    ),
    "out of resources for 30 s": ("02 81 00 08 0000001e 00000064" + "00" * 12 + BODY, Refusal(8, 30)),
    "a NAT between": ("02 81 00 0c 0000001e 00000064" + "00" * 12 + BODY, Refusal(12, 30)),
    "NAT-PMP's way to say that it knows no version 2": ("0081 0001 00000064", Refusal(1, 0)),
    "version 1 of a draft": ("01 81 00 01 00000000 00000064" + "00" * 12, Refusal(1, 0)),
    "a request": ("02 01 0000 00000e10" + CLIENT + BODY, None),
    "another opcode": ("02 82 00 00 00000e10 00000064" + "00" * 12 + BODY, None),
    "another protocol": (HEADER + BODY.replace(" 06 ", " 84 "), None),
    "cut": ((HEADER + BODY)[:-2], None),
    "too long": (HEADER + BODY + "00" * 1100, None),
    "empty": ("", None),
}


def test_a_request_is_the_octets_of_the_rfc():
    raw = encode(MapRequest(NONCE, Protocol.TCP, "192.168.1.2", 4711, 4711, lifetime=3600))
    assert raw == bytes.fromhex(f"02 01 0000 00000e10 {CLIENT} {NONCE.hex()} 06 000000 1267 1267 {V4_ANY}")
    assert len(raw) == 60


def test_a_removal_asks_for_no_seconds():
    raw = encode(MapRequest(NONCE, Protocol.UDP, "192.168.1.2", 4711))
    assert raw == bytes.fromhex(f"02 01 0000 00000000 {CLIENT} {NONCE.hex()} 11 000000 1267 0000 {V4_ANY}")


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name):
    octets, wanted = ANSWERS[name]
    assert decode(bytes.fromhex(octets)) == wanted


def test_refusals_say_why():
    assert str(Refusal(8, 30)) == "out of resources"
    assert str(Refusal(99, 0)) == "result 99"


@given(st.binary(max_size=128))
def test_any_bytes_give_an_answer_or_none(raw):
    decode(raw)
