"""Who is no longer a member of a private mesh: a grow-only set of signed statements that merges in any order. Tells nobody."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.grants import SERIAL_BYTES, Chain, Grant, Mesh, Rights, open_grant, verify_chain
from dht.offers import Count
from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import Opened, open_envelope, seal
from protocol.wire.errors import LocalError, RemoteError, malformed
from protocol.wire.ids import Hash, HashField, PeerId, sha256

DOMAIN = "revocation"
TOPIC = "/swarmd/revocations/1"
MAX_REVOCATION_BYTES = 3 << 10
MAX_REVOCATIONS = 10_000
MAX_BY_OTHERS = 1_000
"""Revocations of all delegates together: whoever may invite must not be able to fill the founder's place."""

RawRevocation = Annotated[bytes, msgspec.Meta(max_length=MAX_REVOCATION_BYTES)]


class Revocation(Message, frozen=True):
    """The signer takes back the grants of `serial`, or of the peer `subject`; one of them is empty.

    `authority` is the signer's own chain, empty for the founder. `issued` is unix milliseconds, for people.
    """

    mesh: HashField
    serial: Annotated[bytes, msgspec.Meta(max_length=SERIAL_BYTES)]
    subject: Annotated[str, msgspec.Meta(pattern=r"^(12D3KooW[1-9A-HJ-NP-Za-km-z]{44})?\Z")]
    issued: Count
    authority: Chain = ()


class Known(msgspec.Struct, frozen=True):
    """A verified revocation, its signer, its address and its bytes."""

    signer: PeerId
    revocation: Revocation
    hash: Hash
    raw: bytes


def sign_revocation(revocation: Revocation, key: Ed25519PrivateKey) -> bytes:
    """The encoded envelope of `revocation`; raises LocalError where it names nothing or both."""
    if bool(revocation.serial) == bool(revocation.subject):
        raise LocalError("a revocation names a serial or a subject")
    return seal(DOMAIN, encode(revocation), key)


def open_revocation(mesh: Mesh, raw: bytes) -> Known:
    """Verify a revocation and that its signer may let peers into `mesh`; raises RemoteError.

    The signer's own chain is judged without regard to time and to revocations, so that the verdict never changes.
    """
    opened: Opened = open_envelope(DOMAIN, raw, MAX_REVOCATION_BYTES)
    said = decode(Revocation, opened.payload, MAX_REVOCATION_BYTES)
    if said.mesh != mesh.id:
        raise malformed("a revocation of another mesh")
    if bool(said.serial) == bool(said.subject) or len(said.serial) not in (0, SERIAL_BYTES):
        raise malformed("a revocation names a serial or a subject")
    if opened.signer != mesh.founder:
        last = open_grant(said.authority[-1]).grant if said.authority else None
        if last is None or last.rights is not Rights.INVITER:
            raise malformed("a revocation by a peer that may let nobody in")
        verify_chain(mesh, said.authority, opened.signer, last.issued)
    return Known(opened.signer, said, opened.hash, raw)


class Revocations:
    """All that are known of one mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._known: dict[Hash, Known] = {}
        self._raws: set[bytes] = set()
        self._by_others = 0
        self._serials: dict[bytes, set[PeerId]] = {}
        self._subjects: dict[str, set[PeerId]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def add(self, raw: bytes) -> Known | None:
        """Take a revocation; it, where it is new and there is room. Raises RemoteError for a bad one."""
        if raw in self._raws:
            return None  # verified once; who repeats it costs us next to nothing
        known = open_revocation(self._mesh, raw)
        said, by_other = known.revocation, known.signer != self._mesh.founder
        full = len(self._known) >= MAX_REVOCATIONS or (by_other and self._by_others >= MAX_BY_OTHERS)
        if known.hash in self._known or full or self.says(known.signer, said):
            return None
        self._known[known.hash] = known
        self._raws.add(raw)
        self._by_others += by_other
        if said.serial:
            self._serials.setdefault(said.serial, set()).add(known.signer)
        else:
            self._subjects.setdefault(said.subject, set()).add(known.signer)
        return known

    def says(self, signer: PeerId, said: Revocation) -> bool:
        """Whether `signer` has said the same, be it at another time: then it adds nothing."""
        return signer in (self._serials.get(said.serial, ()) if said.serial else self._subjects.get(said.subject, ()))

    def voids(self, grant: Grant, authorities: Sequence[PeerId]) -> bool:
        """Whether one of `authorities` has taken `grant` back (`grants.Revoked`)."""
        signers = self._serials.get(grant.serial, set()) | self._subjects.get(grant.subject, set())
        return not signers.isdisjoint(authorities)

    def names(self, peer: PeerId) -> bool:
        """Whether the founder has removed `peer`, whatever chain it has."""
        return self._mesh.founder in self._subjects.get(peer, ())

    def all(self) -> tuple[bytes, ...]:
        """Every revocation, in the order of their addresses."""
        return tuple(self._known[address].raw for address in sorted(self._known))

    def digest(self) -> Hash:
        """Equal for equal sets."""
        return sha256(b"swarmd/1/revocations", *sorted(self._known))

    def known(self) -> tuple[Known, ...]:
        """Every revocation, oldest first, for people."""
        return tuple(sorted(self._known.values(), key=lambda one: (one.revocation.issued, one.hash)))


def merge_all(into: Revocations, raws: Sequence[bytes]) -> tuple[list[Known], int]:
    """Add many: the new ones, and how many were bad."""
    new: list[Known] = []
    bad = 0
    for raw in raws:
        try:
            known = into.add(raw)
        except RemoteError:
            bad += 1
            continue
        if known is not None:
            new.append(known)
    return new, bad
