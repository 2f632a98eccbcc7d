"""Frames and typed MessagePack: what is cut where, what is refused, and that the bytes are plain MessagePack."""

import sys

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.job import Job, Role, Sampling, Turn, check_job
from protocol.wire.codec import FrameReader, Message, decode, encode, encode_frame, frame
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_FRAME_BYTES, MAX_PROMPT_BYTES

PAYLOADS = st.lists(st.binary(max_size=300), max_size=8)


class Before(Message, frozen=True):
    name: str


class After(Message, frozen=True):
    name: str
    count: int = 7


@settings(derandomize=True, deadline=None)
@given(PAYLOADS, st.randoms(use_true_random=True))
def test_frames_come_out_whole_however_the_bytes_arrive(payloads: list[bytes], rng) -> None:  # type: ignore[no-untyped-def]
    stream = b"".join(frame(payload) for payload in payloads)
    assert FrameReader().feed(stream) == payloads
    singly = FrameReader()
    assert [out for at in range(len(stream)) for out in singly.feed(stream[at : at + 1])] == payloads
    cut = sorted(rng.randrange(len(stream) + 1) for _ in range(5))
    parted = FrameReader()
    pieces = [stream[start:end] for start, end in zip([0, *cut], [*cut, len(stream)], strict=True)]
    assert [out for piece in pieces for out in parted.feed(piece)] == payloads
    assert parted.pending == 0


def test_a_frame_in_single_bytes_is_not_held_by_the_piece() -> None:
    reader, body = FrameReader(), bytes(range(250)) * 80
    pieces = [memoryview(bytes([byte])) for byte in frame(body)]
    assert not any(reader.feed(piece) for piece in pieces[:-1])
    assert reader.pending == len(body) + 3
    assert sum(sys.getsizeof(part) for part in reader._parts) < 2 * len(body), "a view of each byte takes 300 times as much"
    assert reader.feed(pieces[-1]) == [body]


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    reader = FrameReader(limit=10)
    assert reader.feed(frame(bytes(10))) == [bytes(10)]
    with pytest.raises(RemoteError) as refused:
        reader.feed((11).to_bytes(4, "big"))
    assert refused.value.code is Code.OVERSIZED


def test_our_own_frame_is_bounded_too() -> None:
    assert len(frame(bytes(MAX_FRAME_BYTES))) == MAX_FRAME_BYTES + 4
    with pytest.raises(RemoteError):
        frame(bytes(MAX_FRAME_BYTES + 1))
    with pytest.raises(RemoteError):
        encode_frame(bytes(MAX_FRAME_BYTES))


@given(st.binary(max_size=70_000))
def test_a_value_framed_as_it_is_encoded_is_the_frame_of_its_encoding(value: bytes) -> None:
    assert encode_frame(value) == frame(encode(value))


def test_an_appended_field_is_ignored_by_old_readers_and_defaulted_by_new_ones() -> None:
    assert decode(Before, encode(After("x", 3))) == Before("x")
    assert decode(After, encode(Before("x"))) == After("x", 7)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", Code.MALFORMED),
        (b"\xc1", Code.MALFORMED),
        (b"\x91", Code.MALFORMED),
        (encode(["x", 1]) + b"\x00", Code.MALFORMED),
        (b"\x91\xa1\xff", Code.MALFORMED),
        (b"\x91" * 5000 + b"\xc0", Code.MALFORMED),
        (b"\xdd\xff\xff\xff\xff", Code.MALFORMED),
        (b"\x92\xa1x\xd3" + bytes([0x80] + [0] * 7), None),
        (b"\x92\xa1x\xcb" + bytes(8), Code.MALFORMED),
        (b"\x92\xa1x" + bytes(100), Code.OVERSIZED),
    ],
)
def test_hostile_bytes_are_refused_with_their_code(raw: bytes, code: Code | None) -> None:
    if code is None:
        assert decode(After, raw, limit=64).count == -(2**63)
        return
    limit = 64 if code is Code.OVERSIZED else MAX_FRAME_BYTES
    with pytest.raises(RemoteError) as refused:
        decode(After, raw, limit)
    assert refused.value.code is code


def test_the_bytes_are_those_of_the_msgpack_package() -> None:
    job = Job((Turn(Role.USER, "Grüße"),), Sampling(64, 700, 950, 2**31 - 1, ("\n",)), "owner/name-1.5")
    plain = [[["user", "Grüße"]], [64, 700, 950, 2**31 - 1, ["\n"]], "owner/name-1.5", None]
    assert encode(job) == msgpack.packb(plain)
    assert msgpack.unpackb(encode(job)) == plain
    assert decode(Job, encode(job)) == job
    assert decode(Job, msgpack.packb(plain[:3])) == job  # as written before jobs had extras


def _job(**changes: object) -> list[object]:
    fields: dict[str, object] = {"turns": [["user", "hi"]], "sampling": [16, 0, 1000, 0, []], "model": ""} | changes
    return list(fields.values())


@pytest.mark.parametrize(
    "plain",
    [
        _job(turns=[]),
        _job(turns=[["user", "x"]] * 257),
        _job(turns=[["tool", "x"]]),
        _job(sampling=[0]),
        _job(sampling=[4097]),
        _job(sampling=[1, 2001]),
        _job(sampling=[1, 0, 0]),
        _job(sampling=[1, 0, 1, -1]),
        _job(sampling=[1, 0, 1, 0, ["a"] * 5]),
        _job(sampling=[1, 0, 1, 0, [""]]),
        _job(sampling=[1, 0.5]),
        *(_job(model=name) for name in ("-flag", "../etc", "a/b/c", "a b", "\n", "name\n", "/", "a/", "x" * 97, ".hidden")),
    ],
)
def test_a_job_out_of_bounds_is_malformed(plain: list[object]) -> None:
    with pytest.raises(RemoteError) as refused:
        decode(Job, msgpack.packb(plain))
    assert refused.value.code is Code.MALFORMED
    assert decode(Job, msgpack.packb(_job())).model == ""


def test_the_prompt_is_bounded_as_a_whole() -> None:
    half = "é" * (MAX_PROMPT_BYTES // 4)
    job = Job((Turn(Role.USER, half), Turn(Role.USER, half)))
    assert check_job(job) is job
    with pytest.raises(RemoteError) as refused:
        check_job(Job((*job.turns, Turn(Role.USER, "x"))))
    assert refused.value.code is Code.OVERSIZED
