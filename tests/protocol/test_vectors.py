"""Golden bytes: a changed byte on the wire fails here first. The plain values are packed by the `msgpack` package, not by ours.

`tests/vectors/rpc.jsonl` and `wire.jsonl` hold one row a line; {"hex": ...} stands for bytes inside a plain value.
"""

import json
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.rpc_frames import AnyFrame, Cancel, Credit, End, Fault, Hello, Item, Packed, Request
from protocol.wire.codec import Message, decode, encode, frame
from protocol.wire.envelope import open_envelope, seal
from protocol.wire.ids import peer_id_of, public_key_of, sha256

VECTORS = Path(__file__).parent.parent / "vectors"

FRAMES: dict[str, Message] = {
    "hello, as sent by default": Hello(),
    "hello of a later version": Hello(300, 1, ("bulk", "x-trial"), 16, 1 << 20),
    "request, least": Request(1, "infer", 30_000),
    "request, every field": Request(
        2**53 - 1, "round.pull", 86_400_000, b"\x00\xff", True, 0, "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    ),
    "item": Item(7, b"token"),
    "item, empty": Item(7, b""),
    "end": End(7, b"\x80"),
    "end, empty": End(200),
    "fault with a hint": Fault(7, "overloaded", "all slots are busy", 1500),
    "fault without": Fault(70_000, "gone"),
    "cancel": Cancel(128),
    "credit": Credit(7, 131_072),
    "packed": Packed(9000, b"\x78\x01"),
}


def rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


def plain(value: object) -> object:
    if isinstance(value, dict):
        return bytes.fromhex(str(value["hex"]))
    return [plain(one) for one in value] if isinstance(value, list) else value


RPC = rows("rpc.jsonl")


def test_every_frame_has_its_row() -> None:
    assert [row["name"] for row in RPC] == list(FRAMES)


@pytest.mark.parametrize("row", RPC, ids=lambda row: row["name"])
def test_rpc_frames_keep_their_bytes(row: dict[str, object]) -> None:
    golden = bytes.fromhex(str(row["hex"]))
    assert encode(FRAMES[str(row["name"])]) == golden
    assert msgpack.packb(plain(row["plain"])) == golden
    assert decode(AnyFrame, golden) == FRAMES[str(row["name"])]  # type: ignore[arg-type]


KINDS: dict[str, Callable[..., bytes]] = {
    "frame": lambda payload: frame(payload),
    "peer_id": lambda key: peer_id_of(key).encode(),
    "public_key": lambda peer: public_key_of(peer),
    "sha256": lambda *parts: sha256(*parts),
    "envelope": lambda seed, domain, payload: seal(domain, payload, Ed25519PrivateKey.from_private_bytes(seed)),
    "statement_hash": lambda domain, envelope: open_envelope(domain, envelope).hash,
}


@pytest.mark.parametrize("row", rows("wire.jsonl"), ids=lambda row: f"{row['kind']}: {row['name']}")
def test_wire_values_keep_their_bytes(row: dict[str, object]) -> None:
    arguments = plain(row["from"])
    assert isinstance(arguments, list)
    assert KINDS[str(row["kind"])](*arguments).hex() == row["hex"]
