"""Peers with keys from fixed seeds, and the offers and heartbeats that they sign."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.offers import LIFETIME_MS, Offer, SignedOffer, sign_offer
from dht.presence import Presence, sign_presence
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import PeerId, peer_id_of

WALL = 1_700_000_000_000


@dataclass
class Peer:
    """One peer of the mesh, as others hear it."""

    key: Ed25519PrivateKey
    id: PeerId = field(init=False)

    def __post_init__(self) -> None:
        self.id = peer_id_of(public_bytes(self.key))

    def fields(self, epoch: int = 1, version: int = 0, **changes: object) -> Offer:
        values = {
            "peer": self.id,
            "epoch": epoch,
            "version": version,
            "model": "acme/small",
            "config_digest": "ab" * 32,
            "engine": "llama.cpp",
            "engine_version": "b4567",
            "judge_prompt": "compact",
            "context_tokens": 2048,
            "slots": 4,
            "addresses": (f"/ip4/127.0.0.1/tcp/4001/p2p/{self.id}",),
            "issued": WALL,
            "expires": WALL + LIFETIME_MS,
        }
        return Offer(**{**values, **changes})

    def offer(self, epoch: int = 1, version: int = 0, **changes: object) -> SignedOffer:
        return sign_offer(self.fields(epoch, version, **changes), self.key)

    def beat(self, beat: int, offer: SignedOffer, carry: bool = True, busy: int = 0, wall: int = WALL) -> bytes:
        raw = offer.raw if carry else b""
        return sign_presence(Presence(self.id, offer.offer.epoch, beat, offer.hash, busy, wall, raw), self.key)


@pytest.fixture(scope="session")
def peer() -> Callable[[int], Peer]:
    return lambda number: Peer(Ed25519PrivateKey.from_private_bytes(bytes([number % 256, number // 256]) * 16))


@pytest.fixture(scope="session")
def alice(peer: Callable[[int], Peer]) -> Peer:
    return peer(1)


@pytest.fixture(scope="session")
def bob(peer: Callable[[int], Peer]) -> Peer:
    return peer(2)
