"""Keys and logs for the tests of crdt_store: everything is derived from fixed seeds."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.claims import NO_HASH, Claim, Kind, SignedClaim, sign_claim
from crdt_store.memory import MemoryStorage
from crdt_store.store import ClaimStore
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import PeerId, peer_id_of


@dataclass
class Author:
    """A peer that writes claims, honest or not."""

    key: Ed25519PrivateKey
    id: PeerId = field(init=False)

    def __post_init__(self) -> None:
        self.id = peer_id_of(public_bytes(self.key))

    def claim(self, seq: int, previous: bytes = NO_HASH, epoch: int = 1, value: int = 0, **changes: object) -> SignedClaim:
        fields = {
            "issuer": self.id,
            "epoch": epoch,
            "seq": seq,
            "previous": previous,
            "subject": self.id,
            "kind": Kind.CALL_SERVED,
            "skill": "math",
            "value": value,
            "evidence": NO_HASH,
            "time": 1_700_000_000_000 + seq,
        }
        return sign_claim(Claim(**{**fields, **changes}), self.key)

    def log(self, length: int, epoch: int = 1, value: int = 0, after: list[SignedClaim] | None = None) -> list[SignedClaim]:
        """`length` claims, the first of which are those of `after`."""
        log = list(after or [])
        while len(log) < length:
            log.append(self.claim(len(log), log[-1].hash if log else NO_HASH, epoch, value))
        return log


@pytest.fixture(scope="session")
def author() -> Callable[[int], Author]:
    return lambda number: Author(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))


@pytest.fixture(scope="session")
def alice(author: Callable[[int], Author]) -> Author:
    return author(1)


@pytest.fixture(scope="session")
def bob(author: Callable[[int], Author]) -> Author:
    return author(2)


@pytest.fixture
def store(author: Callable[[int], Author]) -> Callable[..., ClaimStore]:
    """Makes a store that holds these records, in memory."""

    def filled(*records: SignedClaim) -> ClaimStore:
        made = ClaimStore(MemoryStorage(), author(200).key, 1)
        made.insert_many(records)
        return made

    return filled
