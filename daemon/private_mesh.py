"""Our place in a private mesh: who is let in, what we show of ourselves, revocations brought to everybody. Drives `dht.grants`.

Three ways bring a revocation to each member: gossip at once, a comparison at each new connection, and one with a random peer
every few seconds, so that a lost message delays it by that much at most.
"""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Annotated

import msgspec
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.calls import Calls, InboundCall
from daemon.mesh_folder import Kept, MeshFolder, MeshFolderError
from daemon.transport.interface import MAX_PROOF_BYTES, MeshGate, Transport, TransportError
from dht.grants import REVOKED, Chain, Membership, Mesh, open_grant, verify_chain
from dht.revocations import MAX_REVOCATIONS, TOPIC, Known, RawRevocation, Revocations, merge_all
from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, HashField, PeerId, peer_id_of, short

log = structlog.get_logger("swarmd.mesh")

REVOCATIONS_METHOD = "mesh.revocations"
ADMIT_METHOD = "mesh.admit"
PRESENT_METHOD = "mesh.present"
COMPARE_SECONDS = 15.0
"""Between comparisons with a random peer: two of them fit into the minute in which a revocation must hold."""

ADMIT_SECONDS = 30.0
"""The longest pause between two questions for our own grant, of which the first comes at once, or two tries to write it."""
LOOK_SECONDS = 1.0
_CALL_SECONDS = 10.0
_GATHER_SECONDS = 0.05
_PAGE = 64
"""Revocations in one answer: at most 192 KiB."""

_TOLD = 8
"""Revocations of one answer that are gossiped on, the latest first: enough where two halves of a mesh meet again. A newcomer
learns all that ever were, and needs to tell nobody."""

MAX_SEEN = 4_096


class Proof(Message, frozen=True):
    """What a member shows in each handshake."""

    chain: Chain


class RevocationsRequest(Message, frozen=True):
    """The asker's digest, and how many of ours it has read in this comparison."""

    digest: HashField
    skip: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0


class RevocationsReply(Message, frozen=True):
    """The next of them in the order of their addresses; empty where the digests are equal or nothing is left."""

    revocations: Annotated[tuple[RawRevocation, ...], msgspec.Meta(max_length=_PAGE)] = ()


class PrivateMesh:
    """One mesh, from the gate of every connection to its revocations. `attach` it before `run`."""

    def __init__(
        self, folder: MeshFolder, kept: Kept, key: Ed25519PrivateKey, unix_ms: Callable[[], int], rng: Random
    ) -> None:
        """`kept` is what the folder has; raises MeshFolderError where another file of it is damaged."""
        self.mesh: Mesh = kept.mesh
        self.me = peer_id_of(public_bytes(key))
        self.kept = kept
        self.folder = folder
        self.key = key
        self.unix_ms = unix_ms
        self._rng = rng
        self.revocations = Revocations(self.mesh)
        self._heard: list[Known] = []
        """Gossiped revocations that hold already and are not in the folder yet."""
        merge_all(self.revocations, folder.revocations())
        self._members: OrderedDict[PeerId, Membership] = OrderedDict()
        self._users: OrderedDict[tuple[PeerId | None, bytes], PeerId] = OrderedDict()
        """Who came by which invite: (who gave it, its number). Another issuer may give the same number, to shut somebody out."""
        own = Membership(self.me, tuple(map(open_grant, kept.chain)))
        if own.inviter is not None:
            self.used(own.inviter, own.serial, self.me)
        self._transport: Transport | None = None
        self._calls: Calls | None = None
        self._nursery: trio.Nursery | None = None
        self.refused: dict[str, int] = {}
        self.removed: Callable[[PeerId], None] = lambda _: None
        """Called for each peer that a revocation puts out, those of earlier runs once at the start."""

    # ---- the gate

    def gate(self) -> MeshGate:
        """What the transport asks of every connection."""
        return MeshGate(self.kept.key, self._proof, self._judge, f"/{self.mesh.id.hex()[:16]}", self.admits)

    def _proof(self) -> bytes:
        return encode(Proof(self.kept.chain))

    def _judge(self, peer: PeerId, raw: bytes) -> str | None:
        try:
            self._take(peer, decode(Proof, raw, MAX_PROOF_BYTES).chain)
        except RemoteError as error:
            self.refused[error.message[:80]] = self.refused.get(error.message[:80], 0) + 1
            if len(self.refused) > 64:
                self.refused.clear()
            return error.message
        return None

    def _take(self, peer: PeerId, chain: tuple[bytes, ...]) -> None:
        """Judge `peer` by its chain and remember what it is worth; raises RemoteError."""
        membership = verify_chain(self.mesh, chain, peer, self.unix_ms(), self.revocations.voids)
        if (refusal := self._refusal(peer, membership)) is not None:
            raise RemoteError(Code.REFUSED, refusal)
        if membership.inviter is not None:
            self.used(membership.inviter, membership.serial, peer)
        self._members[peer] = membership
        self._members.move_to_end(peer)
        if len(self._members) > MAX_SEEN:
            self._members.popitem(last=False)

    def used(self, inviter: PeerId, serial: bytes, peer: PeerId) -> None:
        """`peer` came by that invite: nobody else may, unless the issuer decided so."""
        self._users[inviter, serial] = peer
        self._users.move_to_end((inviter, serial))
        if len(self._users) > MAX_SEEN:
            self._users.popitem(last=False)

    def _refusal(self, peer: PeerId, membership: Membership | None) -> str | None:
        """Why `peer` is not let in now, with what its grants were worth when they were shown."""
        if self.revocations.names(peer):
            return REVOKED
        if membership is None:
            return "no grant was shown"
        if membership.provisional and self._users.get((membership.inviter, membership.serial), peer) != peer:
            return "the invite was used by another peer"
        return membership.refusal(self.unix_ms(), self.revocations.voids)

    def admits(self, peer: PeerId) -> bool:
        """Whether what `peer` says still counts: its offers, gossip and claims. True for those whose grants we never saw."""
        if peer == self.me or (peer not in self._members and not self.revocations.names(peer)):
            return True
        return self._refusal(peer, self._members.get(peer)) is None

    def member(self, peer: PeerId) -> Membership | None:
        """What `peer` showed, if it still counts."""
        membership = self._members.get(peer)
        return membership if self._refusal(peer, membership) is None else None

    # ---- ourselves

    def membership(self) -> Membership:
        """What our own chain is worth now; raises RemoteError where it is worth nothing."""
        if self.revocations.names(self.me):
            raise RemoteError(Code.REFUSED, REVOKED)
        return verify_chain(self.mesh, self.kept.chain, self.me, self.unix_ms(), self.revocations.voids)

    def problem(self) -> str | None:
        """Why the mesh does not take us any more, for `status`."""
        try:
            self.membership()
        except RemoteError as error:
            return f"this peer is no member of the mesh {self.mesh.name}: {error.message}"
        return None

    def members(self) -> dict[PeerId, Membership]:
        """Those whose grants we have seen since the start."""
        return dict(self._members)

    # ---- life

    def attach(self, transport: Transport, calls: Calls) -> None:
        """Serve the mesh's calls over `calls`."""
        self._transport, self._calls = transport, calls
        calls.serve(REVOCATIONS_METHOD, self._serve_revocations)
        calls.serve(PRESENT_METHOD, self._serve_present)

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Keep the mesh closed until cancelled."""
        transport = self._attached()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for known in self.revocations.known():
                    self._put_out(known)
                transport.listen_to_peers(self._on_connection)
                await transport.subscribe(TOPIC, self._on_gossip)
                for peer in transport.paths():
                    self._on_connection(peer, True)
                for part in (self._compare_now_and_then, self._watch_memberships, self._seek_admission):
                    nursery.start_soon(part)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            if self._heard:
                self._keep_heard()

    def _attached(self) -> Transport:
        assert self._transport is not None  # noqa: S101 - node.py attaches before it runs
        return self._transport

    def _on_connection(self, peer: PeerId, connected: bool) -> None:
        if connected and self._nursery is not None:
            self._nursery.start_soon(self._compare, peer)

    async def _watch_memberships(self) -> None:
        """Close what an expired or revoked grant let in."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            await self._expel()

    async def _compare_now_and_then(self) -> None:
        while True:
            await trio.sleep(COMPARE_SECONDS * self._rng.uniform(0.8, 1.2))
            connected = sorted(self._attached().paths())
            if connected:
                await self._compare(self._rng.choice(connected))

    # ---- revocations

    async def revoke(self, raw: bytes) -> Known | None:
        """Take a revocation of our own, close what it voids, and tell everybody; None where it was known. Raises RemoteError."""
        known = self.revocations.add(raw)
        if known is not None:
            self._keep(known)
            await self._tell(raw)
            await self._expel()
        return known

    async def _tell(self, raw: bytes) -> None:
        try:
            await self._attached().publish(TOPIC, raw)
        except TransportError as error:
            log.debug("a revocation was not gossiped", reason=str(error))

    def _on_gossip(self, _author: PeerId, payload: bytes) -> bool:
        try:
            known = self.revocations.add(payload)
        except RemoteError:
            return False
        if known is not None:
            self._heard.append(known)
            if self._nursery is None:
                self._keep_heard()
            elif len(self._heard) == 1:
                self._nursery.start_soon(self._take_heard)
        return True

    async def _take_heard(self) -> None:
        """Many come at once where many are revoked at once: one file is written for all, and one look taken at who is out."""
        await trio.sleep(_GATHER_SECONDS)
        self._keep_heard()
        await self._expel()

    def _keep_heard(self) -> None:
        heard, self._heard = self._heard, []
        self._keep(*heard)

    def _keep(self, *known: Known) -> None:
        """Make durable and heed: a revocation that a restart forgets would let the peer in again."""
        try:
            self.folder.write_revocations(self.revocations.all())
        except OSError as error:
            log.error("revocations could not be written; a restart forgets them", reason=error.strerror)
        for one in known:
            said = one.revocation
            self._put_out(one)
            log.info("revoked", invite=said.serial.hex()[:8], peer=short(said.subject), by=short(one.signer))

    def _put_out(self, known: Known) -> None:
        said = known.revocation
        users = [peer for (_, serial), peer in self._users.items() if serial == said.serial]
        for gone in [PeerId(said.subject)] if said.subject else users:
            if gone != self.me and not self.admits(gone):
                self.removed(gone)

    async def _expel(self) -> None:
        """Close every path to peers that are members no more; their calls end with it."""
        transport = self._attached()
        for peer in list(transport.paths()):
            reason = self._refusal(peer, self._members.get(peer))
            if reason is not None:
                log.info("a peer is out of the mesh", peer=short(peer), reason=reason)
                await transport.disconnect(peer)

    async def _compare(self, peer: PeerId) -> None:
        """Bring over the revocations that `peer` has and we do not."""
        if (calls := self._calls) is None:
            return
        for skip in range(0, MAX_REVOCATIONS, _PAGE):  # bounded: a liar always has another page
            request = RevocationsRequest(self.revocations.digest() if not skip else Hash(bytes(32)), skip)
            try:
                raw = await calls.unary(peer, REVOCATIONS_METHOD, encode(request), timeout=_CALL_SECONDS)
                reply = decode(RevocationsReply, raw)
            except RemoteError as error:
                log.debug("revocations were not compared", peer=short(peer), reason=error.message)
                return
            new, bad = merge_all(self.revocations, reply.revocations)
            if new:
                self._keep(*new)
                for one in sorted(new, key=lambda one: -one.revocation.issued)[:_TOLD]:
                    await self._tell(one.raw)
                await self._expel()
            if bad or len(reply.revocations) < _PAGE:
                return

    async def _serve_revocations(self, call: InboundCall) -> bytes:
        request = decode(RevocationsRequest, call.body)
        if request.digest == self.revocations.digest():
            return encode(RevocationsReply())
        return encode(RevocationsReply(self.revocations.all()[request.skip : request.skip + _PAGE]))

    # ---- from an invite's grant to one without end

    async def _seek_admission(self) -> None:
        """While our grant is an invite's, ask its issuer for ours."""
        pause = 0.2
        while True:
            try:
                membership = self.membership()
            except RemoteError:
                membership = None
            if membership is not None and not membership.provisional:
                return
            if membership is not None and await self._ask_for_admission(membership):
                return
            await trio.sleep(pause * self._rng.uniform(0.5, 1.0))
            pause = min(ADMIT_SECONDS, pause * (2 if self._attached().paths() else 1))

    async def _ask_for_admission(self, membership: Membership) -> bool:
        calls, transport = self._calls, self._attached()
        issuer = membership.inviter
        if calls is None or issuer is None or not transport.paths():
            return False
        try:
            raw = await calls.unary(issuer, ADMIT_METHOD, b"", timeout=_CALL_SECONDS)
            chain = decode(Proof, raw, MAX_PROOF_BYTES).chain
            if verify_chain(self.mesh, chain, self.me, self.unix_ms(), self.revocations.voids).provisional:
                return False
        except RemoteError as error:
            log.debug("not admitted yet", issuer=short(issuer), reason=error.message)
            return False
        self.kept = msgspec.structs.replace(self.kept, chain=chain)
        log.info("admitted to the mesh", mesh=self.mesh.name, by=short(issuer))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_grant)
            for peer in transport.paths():
                nursery.start_soon(self._present, peer)
        return True

    async def _keep_grant(self) -> None:
        """Write our grant, as often as the disk needs: after a restart we would have the invite's alone, which ends."""
        while True:
            try:
                await trio.to_thread.run_sync(self.folder.write, self.kept)
            except OSError as error:
                log.error("our grant could not be written; a restart forgets it", reason=error.strerror)
                await trio.sleep(ADMIT_SECONDS)
            else:
                return

    async def _present(self, peer: PeerId) -> None:
        """Show a connected peer our new grants, so that it does not close when the old ones end."""
        try:
            if self._calls is not None:
                await self._calls.unary(peer, PRESENT_METHOD, self._proof(), timeout=_CALL_SECONDS)
        except RemoteError as error:
            log.debug("new grants were not shown", peer=short(peer), reason=error.message)

    async def _serve_present(self, call: InboundCall) -> bytes:
        self._take(call.peer, decode(Proof, call.body, MAX_PROOF_BYTES).chain)
        return b""


def open_private_mesh(data_dir: Path, key: Ed25519PrivateKey, unix_ms: Callable[[], int], rng: Random) -> PrivateMesh | None:
    """The private mesh of a data folder; None where it is the public one's. Raises MeshFolderError."""
    folder = MeshFolder(data_dir)
    kept = folder.read()
    left = folder.left() if kept is None else None
    if left is not None:
        raise MeshFolderError(
            f"the peer in {data_dir} left the private mesh {left.name} and may not show itself elsewhere; "
            "join that mesh again, or name another --mesh or --data-dir"
        )
    return None if kept is None else PrivateMesh(folder, kept, key, unix_ms, rng)
