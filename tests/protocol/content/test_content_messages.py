"""Manifests, messages and the rate: their laws, their golden bytes, and what is refused."""

import hashlib
import json
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.content.manifest import (
    CHUNK_SIZES,
    MAX_CHUNKS,
    MAX_FILE_BYTES,
    Manifest,
    address_of,
    chunk_bytes_of,
    open_manifest,
    spans,
    write_manifest,
)
from protocol.content.messages import ChunkHead, ChunkRequest, ContentRequest, Held, Offered, Shelf, bits_of, held_chunks
from protocol.content.rate import ByteRate
from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.limits import MAX_FRAME_BYTES

ADDRESS = bytes(range(32))
MESSAGES: dict[str, Message] = {
    "manifest of three chunks": Manifest(2 * (1 << 20) + 5, 1 << 20, bytes(32) + b"\x01" * 32 + b"\x02" * 32),
    "content request": ContentRequest(ADDRESS),
    "chunk request": ChunkRequest(300),
    "chunk head": ChunkHead(300, 1 << 20),
    "chunk head, not here": ChunkHead(7, 0),
    "held, all": Held(True),
    "held, some": Held(False, b"\x05\x80"),
    "offered": Offered(ADDRESS, "tiny.gguf", 1_700_000),
    "shelf, empty": Shelf(),
    "shelf of one": Shelf((Offered(ADDRESS, "tiny.gguf", 1),)),
}
ROWS = [json.loads(line) for line in (Path(__file__).parents[2] / "vectors" / "content.jsonl").read_text().splitlines()]


def plain(value: object) -> object:
    if isinstance(value, dict):
        return bytes.fromhex(str(value["hex"]))
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_every_message_has_its_row() -> None:
    assert [row["name"] for row in ROWS] == list(MESSAGES)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_messages_keep_their_bytes(row: dict[str, object]) -> None:
    golden = bytes.fromhex(str(row["hex"]))
    message = MESSAGES[str(row["name"])]
    assert encode(message) == golden == msgpack.packb(plain(row["plain"]))
    assert decode(type(message), golden) == message


def test_an_address_keeps_its_bytes() -> None:
    assert address_of(encode(MESSAGES["manifest of three chunks"])).hex() == ROWS[0]["address"]


@given(st.binary(min_size=1, max_size=64), st.integers(0, 3 << 20))
def test_a_manifest_opens_for_its_address_alone(seed: bytes, extra: int) -> None:
    size = len(seed) + extra
    hashes = b"".join(hashlib.sha256(seed + bytes([place])).digest() for place, _ in enumerate(spans(size)))
    address, raw = write_manifest(size, hashes)
    manifest = open_manifest(address, raw)
    assert sum(manifest.length(index) for index in range(manifest.chunks)) == size
    assert [length for _, length in spans(size)] == [manifest.length(index) for index in range(manifest.chunks)]
    with pytest.raises(RemoteError):
        open_manifest(bytes(32), raw)
    with pytest.raises(RemoteError):
        open_manifest(address, raw + b"\x00")


@pytest.mark.parametrize(
    "manifest",
    [
        Manifest(5, 2 << 20, bytes(32)),
        Manifest(5, 1 << 20, bytes(64)),
        Manifest((1 << 20) + 1, 1 << 20, bytes(32)),
        Manifest(5, 1 << 20, bytes(33)),
    ],
    ids=["another chunk size", "a hash too many", "a hash too few", "half a hash"],
)
def test_a_manifest_that_contradicts_itself_is_refused(manifest: Manifest) -> None:
    raw = encode(manifest)
    with pytest.raises(RemoteError) as caught:
        open_manifest(address_of(raw), raw)
    assert caught.value.code is Code.MALFORMED


@pytest.mark.parametrize("size", [0, MAX_FILE_BYTES + 1])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    raw = encode(Manifest(size, CHUNK_SIZES[-1], bytes(32)))
    with pytest.raises(RemoteError):
        open_manifest(address_of(raw), raw)


def test_the_largest_manifest_fits_a_frame() -> None:
    assert len(encode(Manifest(MAX_FILE_BYTES, CHUNK_SIZES[-1], bytes(32 * MAX_CHUNKS)))) < MAX_FRAME_BYTES
    assert chunk_bytes_of(MAX_FILE_BYTES) == CHUNK_SIZES[-1]
    with pytest.raises(LocalError):
        chunk_bytes_of(MAX_FILE_BYTES + 1)


@given(st.sets(st.integers(0, 99)))
def test_held_chunks_are_the_bits(present: set[int]) -> None:
    assert held_chunks(Held(False, bits_of(present, 100)), 100) == present


def test_chunks_that_a_file_has_not_are_refused() -> None:
    assert held_chunks(Held(True), 3) is None
    with pytest.raises(RemoteError):
        held_chunks(Held(False, b"\x08"), 3)


@pytest.mark.parametrize("name", ["../x.gguf", "/etc/passwd", ".hidden", "a b", "x\x1b[2J", "", "x" * 129, "a\n"])
def test_names_that_are_more_than_names_are_refused(name: str) -> None:
    with pytest.raises(RemoteError):
        decode(Offered, msgpack.packb([ADDRESS, name, 1]))


@given(st.lists(st.tuples(st.integers(1, 5000), st.floats(0, 2)), min_size=1, max_size=50))
def test_a_rate_is_never_exceeded(takes: list[tuple[int, float]]) -> None:
    rate, now, sent = ByteRate(1000.0, 2000.0), 0.0, 0
    for size, pause in takes:
        now += pause
        leaves = now + rate.take(size, now)
        sent += size
        assert sent <= 2000 + 1000 * leaves + 1e-6


def test_no_rate_is_no_wait() -> None:
    assert ByteRate(0.0, 0.0).take(1 << 30, 5.0) == 0.0
