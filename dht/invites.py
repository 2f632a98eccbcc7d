"""An invite into a private mesh: what stands in its text, and the issuer's book of those it gave. Sends nothing."""

import base64
import binascii
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.grants import Chain, Grant, Membership, Mesh, Rights, Serial, open_grant, sign_grant, verify_chain
from dht.offers import MAX_ADDRESSES, Address, Count
from dht.sealing import open_sealed, seal_to
from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import open_envelope, public_bytes, seal
from protocol.wire.errors import Code, LocalError, RemoteError, malformed
from protocol.wire.ids import PeerId, PeerIdField, peer_id_of

PREFIX = "swarmd-invite-"
DOMAIN = "invite"
PURPOSE = b"swarmd/1/invite"
KEY_BYTES = 32
MAX_INVITE_BYTES = 8 << 10
MAX_OPEN = 1_000
"""Invites in one book; used, expired and revoked ones are forgotten first."""


class Invite(Message, frozen=True):
    """All that a newcomer needs. `bearer` is the secret key that the last grant names, or empty where that names a peer."""

    mesh: Mesh
    key: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    chain: Chain
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
    bearer: Annotated[bytes, msgspec.Meta(max_length=32)] = b""

    @property
    def grant(self) -> Grant:
        """The grant of the invite itself."""
        return open_grant(self.chain[-1]).grant


class _Text(Message, frozen=True):
    recipient: Annotated[str, msgspec.Meta(pattern=r"^(12D3KooW[1-9A-HJ-NP-Za-km-z]{44})?\Z")]
    box: Annotated[bytes, msgspec.Meta(max_length=MAX_INVITE_BYTES)]


def write_invite(invite: Invite, recipient: PeerId | None, key: Ed25519PrivateKey, ephemeral: bytes) -> str:
    """The text of `invite`, signed by its issuer's `key`, sealed to `recipient`. `ephemeral` are 32 fresh random bytes."""
    signed = seal(DOMAIN, encode(invite), key)
    box = signed if recipient is None else seal_to(recipient, signed, ephemeral, PURPOSE)
    return PREFIX + base64.urlsafe_b64encode(encode(_Text(recipient or "", box))).decode().rstrip("=")


def recipient_of(text: str) -> PeerId | None:
    """Whom the invite is sealed to, None where it is for the first who comes; raises RemoteError(malformed)."""
    return PeerId(_read(text).recipient) or None


def read_invite(text: str, key: Ed25519PrivateKey, wall_ms: int) -> Invite:
    """The invite in `text`, verified; raises RemoteError with a sentence for people."""
    outer = _read(text)
    if outer.recipient and outer.recipient != peer_id_of(public_bytes(key)):
        raise RemoteError(Code.REFUSED, f"the invite is for {outer.recipient} and this peer is {peer_id_of(public_bytes(key))}")
    raw = open_sealed(key, outer.box, PURPOSE) if outer.recipient else outer.box
    opened = open_envelope(DOMAIN, raw, MAX_INVITE_BYTES)
    invite = decode(Invite, opened.payload, MAX_INVITE_BYTES)
    if not invite.chain or open_grant(invite.chain[-1]).issuer != opened.signer:
        raise malformed("the invite is signed by another peer than its grant")
    if bool(invite.bearer) != (invite.grant.rights is Rights.BEARER) or bool(invite.bearer) == bool(outer.recipient):
        raise malformed("the invite contradicts itself")
    accept(invite, key, wall_ms)
    return invite


def accept(invite: Invite, key: Ed25519PrivateKey, wall_ms: int) -> tuple[bytes, ...]:
    """The chain that `invite` gives to the holder of `key`; raises RemoteError where it gives none (any more)."""
    peer = peer_id_of(public_bytes(key))
    chain = tuple(invite.chain)
    if invite.bearer:
        bearer = Ed25519PrivateKey.from_private_bytes(invite.bearer)
        grant = invite.grant
        chain += (sign_grant(Grant(grant.mesh, grant.serial, peer, Rights.MEMBER, grant.issued, grant.expires), bearer),)
    verify_chain(invite.mesh, chain, peer, wall_ms)
    return chain


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One invite as its issuer keeps it: no secret is in it. `recipient` is a peer, or the bearer's public name with `once`."""

    serial: Serial
    recipient: PeerIdField
    once: bool
    rights: Rights
    created: Count
    expires: Count
    used_by: str = ""
    used_at: Count = 0
    revoked: Count = 0

    def state(self, wall_ms: int) -> str:
        """A word for people."""
        if self.revoked:
            return "revoked"
        return "used" if self.used_by else "expired" if self.expires <= wall_ms else "open"


class InviteBook(msgspec.Struct, frozen=True):
    """The invites of one issuer; every change gives a new book."""

    entries: tuple[Entry, ...] = ()

    def with_entry(self, entry: Entry, wall_ms: int) -> "InviteBook":
        """With one more; raises LocalError where the book is full of open ones."""
        kept = list(self.entries)
        while len(kept) >= MAX_OPEN:
            done = next((one for one in kept if one.state(wall_ms) != "open"), None)
            if done is None:
                raise LocalError(f"{MAX_OPEN} invites are open; revoke some or let them expire")
            kept.remove(done)
        return InviteBook((*kept, entry))

    def find(self, named: str) -> Entry | None:
        """The one invite whose serial begins with `named` (hex); raises LocalError where it is more than one."""
        found = [entry for entry in self.entries if named and entry.serial.hex().startswith(named.lower())]
        if len(found) > 1:
            raise LocalError(f"{len(found)} invites begin with {named}; give more of the number")
        return found[0] if found else None

    def admit(self, peer: PeerId, membership: Membership, wall_ms: int) -> tuple["InviteBook", Entry]:
        """Give the place of an invite to `peer`, whose chain is verified; again to the same one. Raises RemoteError(refused)."""
        entry = next((one for one in self.entries if one.serial == membership.serial), None)
        if entry is None:
            raise RemoteError(Code.NOT_FOUND, "no such invite is in the book")
        if entry.revoked:
            raise RemoteError(Code.REFUSED, "the invite was revoked")
        if entry.used_by and entry.used_by != peer:
            raise RemoteError(Code.REFUSED, "the invite was used by another peer")
        used = msgspec.structs.replace(entry, used_by=peer, used_at=entry.used_at or wall_ms)
        return self._replaced(used), used

    def revoke(self, serial: bytes, wall_ms: int) -> "InviteBook":
        """With that invite marked as revoked."""
        entry = next((one for one in self.entries if one.serial == serial), None)
        return self if entry is None else self._replaced(msgspec.structs.replace(entry, revoked=entry.revoked or wall_ms))

    def _replaced(self, entry: Entry) -> "InviteBook":
        return InviteBook(tuple(entry if one.serial == entry.serial else one for one in self.entries))


def _read(text: str) -> _Text:
    bare = "".join(text.split())
    if not bare.startswith(PREFIX):
        raise malformed(f"that is no invite: it does not begin with {PREFIX}")
    try:
        raw = base64.b64decode(bare.removeprefix(PREFIX) + "=" * (-(len(bare) - len(PREFIX)) % 4), altchars=b"-_", validate=True)
        return decode(_Text, raw, MAX_INVITE_BYTES + 128)
    except (binascii.Error, ValueError):
        raise malformed("the invite is damaged: some of it is missing or changed") from None
    except RemoteError:
        raise malformed("the invite is damaged: some of it is missing or changed") from None
