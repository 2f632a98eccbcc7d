"""Gives, lists and revokes invites into our private mesh, and lets in who comes by one, as `dht.invites` decides."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from crdt_store.claims import Kind
from crdt_store.own_log import Statement
from daemon.calls import Calls, InboundCall
from daemon.private_mesh import ADMIT_METHOD, PrivateMesh, Proof
from daemon.transport.interface import Transport
from dht.grants import MAX_CHAIN, SERIAL_BYTES, Grant, Membership, Rights, sign_grant
from dht.invites import Entry, Invite, write_invite
from dht.offers import MAX_ADDRESSES
from dht.revocations import Revocation, sign_revocation
from protocol.wire.codec import encode
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import Hash, PeerId, is_peer_id, peer_id_of, short

log = structlog.get_logger("swarmd.invites")

MAX_EXPIRY_MS = 366 * 24 * 3600 * 1000
NO_MESH = "this daemon is in the public mesh, which needs no invites; `swarmd mesh create NAME` makes a private one"

Recorder = Callable[[Sequence[Statement]], None]


class InviteDesk:
    """The issuer's side of one mesh; in the public mesh (None) every call is refused with a sentence."""

    def __init__(self, mesh: PrivateMesh | None, transport: Transport, calls: Calls, record: Recorder) -> None:
        self._mesh = mesh
        self._transport = transport
        self._record = record
        self._saving = trio.Lock()
        if mesh is not None:
            self._book = self._saved = mesh.folder.invites()
            for entry in self._book.entries:
                if entry.used_by:
                    mesh.used(mesh.me, entry.serial, PeerId(entry.used_by))
            calls.serve(ADMIT_METHOD, self._serve_admit)

    # ---- what people ask

    async def create(self, recipient: PeerId | None, expires_ms: int, may_invite: bool) -> dict[str, Any]:
        """A new invite for `recipient` (None: for the first who comes), good for `expires_ms`; raises RemoteError."""
        mesh, own = self._issuer()
        now = mesh.unix_ms()
        if not 0 < expires_ms <= MAX_EXPIRY_MS:
            raise RemoteError(Code.MALFORMED, "an invite is good for at least 1 ms and at most 366 days")
        if recipient == mesh.me:
            raise RemoteError(Code.MALFORMED, "that is this peer itself, which is a member already")
        if may_invite and recipient is None:
            raise RemoteError(Code.MALFORMED, "only an invite for a named peer may let it invite others")
        addresses = self._addresses(mesh)
        if not addresses:
            raise RemoteError(Code.REFUSED, "this peer has no address that others could dial: listen on one, or join by a relay")
        bearer = None if recipient is not None else Ed25519PrivateKey.generate()
        subject = recipient if bearer is None else peer_id_of(public_bytes(bearer))
        assert subject is not None  # noqa: S101 - one of the two is there
        rights = Rights.BEARER if bearer is not None else Rights.INVITER if may_invite else Rights.MEMBER
        if len(own.links) + (2 if bearer is not None else 1) > MAX_CHAIN:
            raise RemoteError(Code.REFUSED, f"this peer is too far from the founder: a member has {MAX_CHAIN} grants at most")
        grant = Grant(mesh.mesh.id, os.urandom(SERIAL_BYTES), subject, rights, now, now + expires_ms)
        chain = (*mesh.kept.chain, sign_grant(grant, mesh.key))
        secret = b"" if bearer is None else bearer.private_bytes_raw()
        text = write_invite(Invite(mesh.mesh, mesh.kept.key, chain, addresses, secret), recipient, mesh.key, os.urandom(32))
        lasting = Rights.INVITER if may_invite else Rights.MEMBER
        entry = Entry(grant.serial, subject, bearer is not None, lasting, now, grant.expires)
        try:
            self._book = self._book.with_entry(entry, now)
        except LocalError as error:
            raise RemoteError(Code.OVERLOADED, str(error)) from None
        await self._save()
        log.info("made an invite", invite=grant.serial.hex()[:8], recipient=short(recipient) if recipient else "first to come")
        return {"invite": text, **_row(entry, now), "depth": len(own.links) + 1}

    def rows(self) -> list[dict[str, Any]]:
        """Our invites, newest first; none of their secrets."""
        mesh = self._private()
        now = mesh.unix_ms()
        return [_row(entry, now) for entry in sorted(self._book.entries, key=lambda one: -one.created)]

    async def revoke(self, named: str) -> dict[str, Any]:
        """Take back an invite (a number) or remove a peer (its id, or an end of it); raises RemoteError."""
        mesh, own = self._issuer()
        serial, subject = self._meant(mesh, named)
        now = mesh.unix_ms()
        said = Revocation(mesh.mesh.id, serial, subject, now, mesh.kept.chain)
        raw = sign_revocation(said, mesh.key)
        if serial:
            self._book = self._book.revoke(serial, now)
            await self._save()
        new = await mesh.revoke(raw)
        if new is None and not mesh.revocations.says(mesh.me, said):
            raise RemoteError(Code.OVERLOADED, f"the mesh keeps {len(mesh.revocations)} revocations and has no room for this one")
        entry = next((one for one in self._book.entries if one.serial == serial), None)
        removed = subject or (entry.used_by if entry is not None else "")
        if removed and new is not None:
            self._record([Statement(PeerId(removed), Kind.MEMBER_REMOVED, evidence=new.hash)])
        return {"invite": serial.hex() or None, "peer_id": removed or None, "new": new is not None, "founder": not own.links}

    def view(self) -> dict[str, Any] | None:
        """The mesh as `status` shows it; None for the public one."""
        mesh = self._mesh
        if mesh is None:
            return None
        problem = mesh.problem()
        membership = mesh.membership() if problem is None else None
        return {
            "name": mesh.mesh.name,
            "id": mesh.mesh.id.hex(),
            "founder": mesh.mesh.founder,
            "member": problem is None,
            "reason": problem,
            "may_invite": membership is not None and membership.may_invite,
            "provisional_until": membership.expires or None if membership is not None else None,
            "revoked": len(mesh.revocations),
            "refused": dict(mesh.refused),
        }

    # ---- what newcomers ask

    async def _serve_admit(self, call: InboundCall) -> bytes:
        """Give a newcomer with one of our invites a grant without end; that it has the place is on disk before it is told."""
        mesh, _ = self._issuer()
        membership = mesh.member(call.peer)
        if membership is None:
            raise RemoteError(Code.REFUSED, "no grant was shown")
        if membership.inviter != mesh.me:  # another may put the number of our invite on a grant of its own
            raise RemoteError(Code.REFUSED, "the invite was given by another peer")
        self._book, entry = self._book.admit(call.peer, membership, mesh.unix_ms())
        await self._save()
        grant = Grant(mesh.mesh.id, entry.serial, call.peer, entry.rights, entry.used_at)
        return encode(Proof((*mesh.kept.chain, sign_grant(grant, mesh.key))))

    # ---- parts

    def _private(self) -> PrivateMesh:
        if self._mesh is None:
            raise RemoteError(Code.REFUSED, NO_MESH)
        return self._mesh

    def _issuer(self) -> tuple[PrivateMesh, Membership]:
        mesh = self._private()
        membership = mesh.membership()
        if not membership.may_invite:
            raise RemoteError(Code.REFUSED, f"this peer may not invite into the mesh {mesh.mesh.name} or remove from it")
        return mesh, membership

    def _meant(self, mesh: PrivateMesh, named: str) -> tuple[bytes, str]:
        """(serial, "") of an invite or (b"", peer id) of a peer."""
        try:
            entry = self._book.find(named)
        except LocalError as error:
            raise RemoteError(Code.MALFORMED, str(error)) from None
        if entry is not None:
            return entry.serial, ""
        known = [*mesh.members(), *(PeerId(one.used_by) for one in self._book.entries if one.used_by)]
        found = {peer for peer in known if peer == named or (len(named) >= 4 and peer.endswith(named))}
        if not found and is_peer_id(named):
            found = {PeerId(named)}
        if len(found) != 1:
            many = f"{len(found)} peers are meant by {named[:60]!r}; give more of the id"
            none = f"no invite and no member is known by {named[:60]!r}; `swarmd invite list` and `swarmd peers` show them"
            raise RemoteError(Code.NOT_FOUND, many if found else none)
        (peer,) = found
        if peer in (mesh.mesh.founder, mesh.me):
            raise RemoteError(Code.REFUSED, "the founder cannot be removed, and nobody removes himself: use `swarmd leave`")
        return b"", peer

    def _addresses(self, mesh: PrivateMesh) -> tuple[str, ...]:
        """Ours first, then those by which we joined: a newcomer may come while we are away."""
        return tuple(dict.fromkeys([*self._transport.addresses(), *mesh.kept.addresses]))[:MAX_ADDRESSES]

    async def _save(self) -> None:
        """Return once the book is on disk, and say who got a place; one at a time, or an older book could land last."""
        mesh = self._private()
        async with self._saving:
            if (book := self._book) == self._saved:
                return
            try:
                await trio.to_thread.run_sync(mesh.folder.write_invites, book)
            except OSError as error:
                raise RemoteError(Code.INTERNAL, f"the invites cannot be written: {error.strerror}") from None
            before = {entry.serial: entry.used_by for entry in self._saved.entries}
            self._saved = book
        for entry in book.entries:
            if entry.used_by and before.get(entry.serial) != entry.used_by:
                log.info("let a peer into the mesh", peer=short(entry.used_by), invite=entry.serial.hex()[:8])
                said = Statement(PeerId(entry.used_by), Kind.MEMBER_ADMITTED, evidence=Hash(entry.serial + bytes(16)))
                self._record([said])


def _row(entry: Entry, now: int) -> dict[str, Any]:
    return {
        "id": entry.serial.hex(),
        "for": None if entry.once else entry.recipient,
        "once": entry.once,
        "may_invite": entry.rights is Rights.INVITER,
        "state": entry.state(now),
        "created": entry.created,
        "expires": entry.expires,
        "used_by": entry.used_by or None,
        "used_at": entry.used_at or None,
    }
