"""The bytes of offers and heartbeats, as version 1 of the wire has them: a changed byte is a changed protocol."""

import json
from pathlib import Path

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.offers import Offer, open_offer, sign_offer
from dht.presence import Presence, open_presence, sign_presence

VECTORS = Path(__file__).parents[1] / "vectors"


def rows(name):
    return [json.loads(line) for line in (VECTORS / name).read_text().splitlines()]


@pytest.mark.parametrize("row", rows("offers.jsonl"), ids=lambda row: row["name"])
def test_offers(row):
    offer = Offer(**{**row["fields"], "addresses": tuple(row["fields"]["addresses"])})
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
