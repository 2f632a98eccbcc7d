"""The bytes of offers and heartbeats, as version 1 of the wire has them: a changed byte is a changed protocol."""

import json
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.offers import Offer, open_offer, sign_offer
from dht.presence import Presence, open_presence, sign_presence
from protocol.wire.envelope import seal

VECTORS = Path(__file__).parents[1] / "vectors"


def rows(name):
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


@pytest.mark.parametrize("row", rows("offers.jsonl"), ids=lambda row: row["name"])
def test_offers(row):
    offer = Offer(**{name: tuple(value) if isinstance(value, list) else value for name, value in row["fields"].items()})
    signed = sign_offer(offer, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(row["seed"])))
    assert signed.raw.hex() == row["raw"]
    assert signed.hash.hex() == row["hash"]
    assert open_offer(bytes.fromhex(row["raw"]), offer.issued) == signed
    signer, payload, _ = msgpack.unpackb(signed.raw)
    assert signer == offer.peer
    assert msgpack.unpackb(payload) == list(row["fields"].values())


@pytest.mark.parametrize("row", rows("offers_presence.jsonl"), ids=lambda row: row["name"])
def test_heartbeats(row):
    fields = {k: bytes.fromhex(v) if k in ("offer_hash", "offer") else v for k, v in row["fields"].items()}
    presence = Presence(**fields)
    raw = sign_presence(presence, Ed25519PrivateKey.from_private_bytes(bytes.fromhex(row["seed"])))
    assert raw.hex() == row["raw"]
    assert open_presence(presence.peer, raw, presence.wall) == presence
    assert msgpack.unpackb(msgpack.unpackb(raw)[1]) == list(fields.values())


def test_what_older_peers_sign_is_still_read():
    """Appended fields may be missing: then they say nothing."""
    key = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    (row, *_) = rows("offers_presence.jsonl")
    signed = open_offer(bytes.fromhex(row["fields"]["offer"]), row["fields"]["wall"])
    short = msgpack.packb(msgpack.unpackb(msgpack.unpackb(signed.raw)[1])[:14])
    assert open_offer(seal("offer", short, key), signed.offer.issued).offer.features == ()
    beat = msgpack.packb(msgpack.unpackb(msgpack.unpackb(bytes.fromhex(row["raw"]))[1])[:7])
    heard = open_presence(signed.offer.peer, seal("presence", beat, key), row["fields"]["wall"])
    assert (heard.busy, heard.waiting, heard.first_token_ms, heard.slot_ms) == (row["fields"]["busy"], 0, 0, 0)
