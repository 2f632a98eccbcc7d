"""Every round we take part in: which we join, which of our machines hears what, and how all of them end. Decides no round."""

from collections import Counter
from collections.abc import Awaitable, Callable

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.calls import Calls, InboundCall
from daemon.round_effects import RoundEffects
from daemon.round_invitations import Invitations
from daemon.round_links import METHOD, PULL_METHOD, RoundLinks
from daemon.round_role import Finished, Report, Role
from daemon.round_table import RoundTable, held_by
from daemon.serving import Serving
from protocol.round import events as ev
from protocol.round.messages import Header, Held, open_message
from protocol.round.pulling import fitting, read_request
from protocol.round.requester import RequesterMachine
from protocol.wire.codec import encode
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId, peer_id_of

log = structlog.get_logger("swarmd.rounds")

_STOP_SECONDS = 1.0
"""How long a daemon that stops waits for its words of farewell to leave."""


class Rounds:
    """Our part in every round. `reach` tries to connect to a peer and says whether it is connected."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        calls: Calls,
        serving: Serving,
        entropy: Callable[[int], bytes],
        unix_ms: Callable[[], int],
        reach: Callable[[PeerId], Awaitable[bool]],
    ) -> None:
        self._key = key
        self.me = peer_id_of(public_bytes(key))
        self._calls = calls
        self._table = RoundTable(self.me)
        self._links = RoundLinks(calls, reach, self._peer_gone)
        self._effects = RoundEffects(self.me, self._table, self._links, serving, self._pass_to_other_role)
        self._invitations = Invitations(key, self._table, serving, entropy, unix_ms)
        self._nursery: trio.Nursery | None = None
        self._stopping = ""
        self.faults: Counter[str] = self._links.faults

    def on_finished(self, finished: Callable[[Finished], None]) -> None:
        """Tell `finished` of each role that closes."""
        self._effects.finished = finished

    @property
    def open_rounds(self) -> int:
        """Roles not yet closed."""
        return len(self._table.open())

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Serve rounds until cancelled."""
        self._calls.serve(METHOD, self._handle_message)
        self._calls.serve(PULL_METHOD, self._handle_pull)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def ask(self, header: Header, report: Report, plant: Callable[[str], str] | None = None) -> Finished:
        """Run a round as its requester and wait for its end; leaving early (cancellation) ends the round cleanly.

        `plant` changes what our own member says.
        `report` is called until the round closes, even if the caller left; raises RemoteError(overloaded | internal).
        """
        result: list[Finished] = []
        closed = trio.Event()

        def on_report(effect: ev.Progress | ev.Folded | Finished) -> None:
            report(effect)
            if isinstance(effect, Finished):
                result.append(effect)
                closed.set()

        if self._stopping:
            raise RemoteError(Code.OVERLOADED, self._stopping, retry_after=5.0)
        role = self._begin(Role(RequesterMachine(self._key, header), self.me, on_report), None)
        if plant is not None:
            self._effects.plants[role.machine.round] = plant
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_then, role.ended, closed)
                await closed.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._effects.plants.pop(role.machine.round, None)
            if not result:
                role.tell(ev.Stopped("the user left"))
        if not result:
            raise RemoteError(Code.INTERNAL, "the round ended by a fault of this peer")
        return result[0]

    def peer_lost(self, peer: PeerId) -> None:
        """The last path to `peer` is gone: if it cannot be reached again at once, no open round waits for it any longer."""
        if self._nursery is not None and any(role.involves(peer) for role in self._table.open()):
            self._nursery.start_soon(self._links.still_there, peer)

    async def stop(self, reason: str) -> None:
        """End every open round cleanly, as when draining, and join no other; waits a moment for the farewells to leave."""
        self._stopping = reason
        for role in self._table.open():
            role.tell(ev.Stopped(reason))
        with trio.move_on_after(_STOP_SECONDS):
            while self.open_rounds or self._links.pushing:  # noqa: ASYNC110 - two counters of two owners, waited for once
                await trio.sleep(0.02)

    def _peer_gone(self, peer: PeerId) -> None:
        for role in self._table.open():
            if role.involves(peer):
                role.tell(ev.PeerGone(peer))

    # ---- what peers send

    async def _handle_message(self, call: InboundCall) -> bytes:
        try:
            self._take(open_message(call.body), call.peer, (True, False))
        except RemoteError as error:
            self.faults[str(error.code)] += 1
            raise
        return b""

    async def _handle_pull(self, call: InboundCall) -> bytes:
        try:
            request = read_request(call.body)
            roles = self._table.find(Hash(request.round))
            if not any(role.involves(call.peer) for role in roles):
                raise RemoteError(Code.NOT_FOUND, "we hold no such round")
        except RemoteError as error:
            self.faults[str(error.code)] += 1
            raise
        return encode(fitting(held_by(roles, request)))

    def _take(self, held: Held, sender: PeerId, kinds: tuple[bool, ...]) -> None:
        """Hand a message to our machines in its round; a header that we have no machine for seats us."""
        if isinstance(held.message, Header):
            seated = self._table.find(held.hash, (False,))
            role = seated[0] if seated else self._begin(*self._invitations.answer(held, sender, self._stopping))
            role.receive(sender, held.raw)
            return
        roles = self._table.find(Hash(held.message.round), kinds)
        if not roles:
            raise RemoteError(Code.NOT_FOUND, "we hold no such round")
        for role in roles:
            role.receive(sender, held.raw)

    # ---- roles

    def _begin(self, role: Role, refusal: RemoteError | None) -> Role:
        if self._nursery is None:
            raise RemoteError(Code.OVERLOADED, "not ready for rounds yet", retry_after=1.0)
        self._table.add(role)
        self._nursery.start_soon(self._drive, role, refusal)
        return role

    async def _drive(self, role: Role, refusal: RemoteError | None) -> None:
        try:
            await role.run(refusal, self._effects.perform)
        except Exception as error:  # noqa: BLE001 - a bug of ours in one round must not end the others
            self.faults["internal"] += 1
            log.error("a round ended by a fault of this peer", round=role.machine.round.hex()[:12], error=repr(error)[:300])
        self._table.discard(role)

    def _pass_to_other_role(self, role: Role, raw: bytes) -> None:
        try:
            self._take(open_message(raw), self.me, (not role.requested,))
        except RemoteError as error:
            log.debug("our own round message found no taker", reason=error.message)


async def _then(first: trio.Event, second: trio.Event) -> None:
    await first.wait()
    second.set()
