"""The messages of "embed": golden bytes packed by another package, bounds, and what a vector may be."""

import math
from array import array

import msgpack
import pytest

from protocol.embedding import (
    MAX_TEXTS,
    Embedded,
    EmbedJob,
    read_embed_job,
    read_embedded,
    read_vector,
    write_vector,
)
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_CHUNK_BYTES, MAX_PROMPT_BYTES


def test_golden_bytes() -> None:
    job = EmbedJob(("mod 83 7", "é"), "tiny-all")
    golden = bytes.fromhex("9292a86d6f64203833203 7a2c3a9a874696e792d616c6c".replace(" ", ""))
    assert encode(job) == msgpack.packb([["mod 83 7", "é"], "tiny-all"]) == golden
    assert read_embed_job(golden) == job
    assert encode(Embedded(300)) == bytes.fromhex("91cd012c")
    assert read_embedded(bytes.fromhex("91cd012c")) == Embedded(300)
    assert write_vector(array("f", [1.0, -0.5])) == bytes.fromhex("0000803f000000bf")
    assert list(read_vector(bytes.fromhex("0000803f000000bf"), 2)) == [1.0, -0.5]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ([[], "m"], Code.MALFORMED),
        ([[""], "m"], Code.MALFORMED),
        ([["x"] * (MAX_TEXTS + 1), "m"], Code.MALFORMED),
        ([["x"], ""], Code.MALFORMED),
        ([["x"], "../m"], Code.MALFORMED),
        ([[1], "m"], Code.MALFORMED),
        ([["é" * (MAX_PROMPT_BYTES // 2), "x"], "m"], Code.OVERSIZED),
    ],
)
def test_jobs_out_of_bounds(fields: list[object], code: Code) -> None:
    with pytest.raises(RemoteError) as refused:
        read_embed_job(msgpack.packb(fields))
    assert refused.value.code is code


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 3,
        b"\0" * (MAX_CHUNK_BYTES + 4),
        array("f", [math.nan]).tobytes(),
        array("f", [1.0, math.inf]).tobytes(),
        array("f", [1.0] * 3).tobytes(),
    ],
)
def test_what_is_no_vector(raw: bytes) -> None:
    with pytest.raises(RemoteError) as refused:
        read_vector(raw, 2 if len(raw) == 12 else None)
    assert refused.value.code is Code.MALFORMED
