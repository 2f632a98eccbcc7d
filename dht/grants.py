"""Who is a member of a private mesh: grants signed in a chain from its founder. Decides what a chain is worth; stores none.

A grant names its subject and the invite it came from (`serial`). An invite's grant lives as long as the invite; the one that its
issuer gives in exchange, once the newcomer is there, has no end. So an expired invite lets nobody in.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.offers import CLOCK_SLACK_MS, Count
from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import open_envelope, seal
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, HashField, PeerId, PeerIdField, sha256, short

DOMAIN = "grant"
SERIAL_BYTES = 16
MAX_CHAIN = 4
"""Founder, inviter, bearer of an invite, member: nobody needs more, and every handshake carries it."""

MAX_GRANT_BYTES = 512
REVOKED = "the membership was revoked"
MESH_NAME = r"^[a-z0-9][a-z0-9-]{0,31}\Z"

Serial = Annotated[bytes, msgspec.Meta(min_length=SERIAL_BYTES, max_length=SERIAL_BYTES)]
RawGrant = Annotated[bytes, msgspec.Meta(max_length=MAX_GRANT_BYTES)]
Chain = Annotated[tuple[RawGrant, ...], msgspec.Meta(max_length=MAX_CHAIN)]


class Rights(IntEnum):
    """What a grant allows its subject."""

    MEMBER = 0
    INVITER = 1
    """To be a member and to let others in."""
    BEARER = 2
    """The subject is the key inside an invite: it is no member, and names exactly one."""


class Mesh(Message, frozen=True):
    """A private mesh. `founder` is where all grants begin; `salt` tells apart two meshes of one name and founder."""

    name: Annotated[str, msgspec.Meta(pattern=MESH_NAME)]
    founder: PeerIdField
    salt: Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]

    @property
    def id(self) -> Hash:
        """The mesh's address."""
        return sha256(b"swarmd/1/mesh", encode(self))


class Grant(Message, frozen=True):
    """`subject` is let into `mesh`. `expires` is unix milliseconds, 0 for never."""

    mesh: HashField
    serial: Serial
    subject: PeerIdField
    rights: Rights
    issued: Count
    expires: Count = 0


class Link(msgspec.Struct, frozen=True):
    """A verified grant and who signed it."""

    issuer: PeerId
    grant: Grant


class Revoked(Protocol):
    """What `verify_chain` asks of the revocations."""

    def __call__(self, grant: Grant, authorities: Sequence[PeerId]) -> bool:
        """Whether one of `authorities` (everybody above the grant) has taken it back."""


class Membership(msgspec.Struct, frozen=True):
    """What a verified chain says of its peer; the founder's has no links."""

    peer: PeerId
    links: tuple[Link, ...] = ()

    @property
    def expires(self) -> int:
        """Unix milliseconds at which its first grant ends, 0 for never."""
        return min((link.grant.expires for link in self.links if link.grant.expires), default=0)

    @property
    def provisional(self) -> bool:
        """Whether it still rests on an invite."""
        return self.expires != 0

    @property
    def may_invite(self) -> bool:
        """Whether the peer may let others in."""
        return not self.links or self.links[-1].grant.rights is Rights.INVITER

    @property
    def serial(self) -> bytes:
        """The invite that it came by; empty for the founder."""
        return self.links[-1].grant.serial if self.links else b""

    @property
    def inviter(self) -> PeerId | None:
        """Who gave that invite; None for the founder."""
        if not self.links:
            return None
        borne = len(self.links) > 1 and self.links[-2].grant.rights is Rights.BEARER
        return self.links[-2 if borne else -1].issuer

    def refusal(self, wall_ms: int, revoked: "Revoked") -> str | None:
        """Why it counts no more at `wall_ms`; None while it does. No signature is checked again."""
        authorities: list[PeerId] = []
        for link in self.links:
            authorities.append(link.issuer)
            grant = link.grant
            if grant.expires and grant.expires <= wall_ms:
                return "the invite has expired"
            if grant.issued > wall_ms + CLOCK_SLACK_MS:
                return "a grant was issued in the future; one of the clocks is wrong"
            if revoked(grant, authorities):
                return REVOKED
        return None


def sign_grant(grant: Grant, key: Ed25519PrivateKey) -> bytes:
    """The encoded envelope of `grant`."""
    return seal(DOMAIN, encode(grant), key)


def open_grant(raw: bytes) -> Link:
    """Verify a grant's signature; raises RemoteError."""
    opened = open_envelope(DOMAIN, raw, MAX_GRANT_BYTES)
    return Link(opened.signer, decode(Grant, opened.payload, MAX_GRANT_BYTES))


def nothing_revoked(grant: Grant, authorities: Sequence[PeerId]) -> bool:
    """No revocation is known."""
    return False


def verify_chain(
    mesh: Mesh, chain: Sequence[bytes], peer: PeerId, wall_ms: int, revoked: Revoked = nothing_revoked
) -> Membership:
    """What `chain` makes of `peer` at `wall_ms`; raises RemoteError(refused), whose message is fit to be told to the peer."""
    if not chain:
        if peer == mesh.founder:
            return Membership(peer)
        raise _refused(f"no grant of the mesh {mesh.name}")
    if len(chain) > MAX_CHAIN:
        raise _refused("a chain of too many grants")
    membership = Membership(peer, tuple(open_grant(raw) for raw in chain))
    above: Grant | None = None
    for link in membership.links:
        _check_link(mesh, above, link)
        above = link.grant
    if above is None or above.rights is Rights.BEARER or above.subject != peer:
        raise _refused("the grants are another peer's")
    if (refusal := membership.refusal(wall_ms, revoked)) is not None:
        raise _refused(refusal)
    return membership


def _check_link(mesh: Mesh, above: Grant | None, link: Link) -> None:
    if link.grant.mesh != mesh.id:
        raise _refused("a grant of another mesh")
    if link.issuer != (mesh.founder if above is None else above.subject):
        raise _refused(f"a grant by {short(link.issuer)}, who may give none")
    if above is None or above.rights is Rights.INVITER:
        return
    if above.rights is not Rights.BEARER or link.grant.serial != above.serial or link.grant.rights is not Rights.MEMBER:
        raise _refused(f"a grant by {short(link.issuer)}, who may give none")


def _refused(sentence: str) -> RemoteError:
    return RemoteError(Code.REFUSED, sentence)
