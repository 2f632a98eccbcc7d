"""Drives the round machines: their timers, their messages over RPC, and our engine's work. Decides nothing of a round."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.calls import Calls, InboundCall
from daemon.round_work import RoundWork
from daemon.serving import Serving
from protocol.round import events as ev
from protocol.round.judging import Style
from protocol.round.member import MemberMachine
from protocol.round.messages import Header, Held, open_message, read_header
from protocol.round.pulling import PullRequest, as_hashes, fitting, read_reply, read_request
from protocol.round.requester import RequesterMachine
from protocol.wire.codec import encode
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId, peer_id_of, short

log = structlog.get_logger("swarmd.rounds")

METHOD = "round"
PULL_METHOD = "round.pull"

MAX_OPEN = 32
"""Rounds we sit in at once; an invitation beyond that is declined."""

MAX_HELD = 128
"""Roles held in all, those of closed rounds that still serve pulls included; the oldest closed one makes room."""

_SEND_SECONDS = 5.0
_INBOX = 1024
"""Events that wait for one machine: a committee of 50 sends each member some 250 in a whole round. Overflow is pulled again."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A round that closed for us in one role. `requested`: our own user asked."""

    round: Hash
    header: Header
    requested: bool
    outcome: ev.Outcome
    transcript: bytes


Report = Callable[[ev.Progress | ev.Folded | Finished], None]


@dataclass(slots=True, eq=False)
class _Role:
    """One of our machines in a round, with its inbox, its timer and its work on the engine."""

    machine: RequesterMachine | MemberMachine
    header: Header
    inbox: "trio.MemorySendChannel[ev.Event]"
    waiting: "trio.MemoryReceiveChannel[ev.Event]"
    requested: bool
    report: Report | None = None
    wake: float = math.inf
    over_at: float = math.inf
    work: trio.CancelScope | None = None


class Rounds:
    """Every round this peer takes part in, as requester, as member or as both. `finished` hears of each role that closes."""

    def __init__(
        self, key: Ed25519PrivateKey, calls: Calls, serving: Serving, entropy: Callable[[int], bytes], unix_ms: Callable[[], int]
    ) -> None:
        self._key = key
        self._me = peer_id_of(public_bytes(key))
        self._calls = calls
        self._serving = serving
        self._entropy = entropy
        self._unix_ms = unix_ms
        self._work = RoundWork(serving)
        self._roles: dict[tuple[Hash, bool], _Role] = {}
        self._nursery: trio.Nursery | None = None
        self.finished: Callable[[Finished], None] = lambda _: None
        self.faults: dict[str, int] = {}

    @property
    def open_rounds(self) -> int:
        """Roles not yet closed."""
        return sum(1 for role in self._roles.values() if not role.machine.closed)

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Serve rounds until cancelled."""
        self._calls.serve(METHOD, self._handle_message)
        self._calls.serve(PULL_METHOD, self._handle_pull)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def ask(self, header: Header, report: Report) -> Finished:
        """Run a round as its requester and wait for its end; leaving early (cancellation) ends the round cleanly."""
        machine = RequesterMachine(self._key, header)
        done = trio.Event()
        result: list[Finished] = []

        def on_report(effect: ev.Progress | ev.Folded | Finished) -> None:
            report(effect)
            if isinstance(effect, Finished):
                result.append(effect)
                done.set()

        role = self._add(machine, header, requested=True)
        role.report = on_report
        self._start(role, "")
        try:
            await done.wait()
        finally:
            if not result:
                self._deliver(role, ev.Stopped("the user left"))
        return result[0]

    def peer_gone(self, peer: PeerId) -> None:
        """The last path to `peer` is gone: no open round waits for it any longer."""
        for role in list(self._roles.values()):
            if not role.machine.closed and any(candidate.peer_id == peer for candidate in role.header.candidates):
                self._deliver(role, ev.PeerGone(peer))

    def stop(self, reason: str) -> None:
        """End every open round cleanly, as when draining."""
        for role in list(self._roles.values()):
            if not role.machine.closed:
                self._deliver(role, ev.Stopped(reason))

    async def _handle_message(self, call: InboundCall) -> bytes:
        self._take(open_message(call.body), call.peer, (True, False))
        return b""

    async def _handle_pull(self, call: InboundCall) -> bytes:
        return encode(fitting(self._held(read_request(call.body))))

    def _held(self, request: PullRequest) -> list[bytes]:
        round_id = Hash(request.round)
        found: dict[bytes, None] = {}
        for requested in (True, False):
            role = self._roles.get((round_id, requested))
            if role is not None:
                found |= dict.fromkeys(role.machine.serve(as_hashes(request)))
        return list(found)

    def _take(self, held: Held, sender: PeerId, roles: tuple[bool, ...]) -> None:
        """Hand a message to our machines in its round; a header that we have no machine for seats us."""
        if isinstance(held.message, Header):
            seat = self._roles.get((held.hash, False)) or self._invited(held)
            self._deliver(seat, ev.Received(sender, held.raw))
            return
        found = [role for requested in roles if (role := self._roles.get((Hash(held.message.round), requested))) is not None]
        if not found:
            raise RemoteError(Code.NOT_FOUND, "we hold no such round")
        for role in found:
            self._deliver(role, ev.Received(sender, held.raw))

    def _invited(self, held: Held) -> _Role:
        header = read_header(held.raw).message
        assert isinstance(header, Header)  # noqa: S101 - read_header returns nothing else
        if self._nursery is None:
            raise RemoteError(Code.OVERLOADED, "not ready for rounds yet", retry_after=1.0)
        model = self._serving.engine.model if self._serving.engine is not None else None
        style: Style = "compact" if model is not None and model.judge_prompt == "compact" else "instructed"
        machine = MemberMachine(self._key, held.raw, self._entropy, self._unix_ms(), style)
        refusal = self._refusal(header)
        role = self._add(machine, header, requested=False)
        self._start(role, refusal)
        return role

    def _refusal(self, header: Header) -> str:
        """Why we cannot sit in this round; "" if we can."""
        engine = self._serving.engine
        mine = next((candidate for candidate in header.candidates if candidate.peer_id == self._me), None)
        if engine is None or engine.model is None:
            return "this peer serves no model"
        if mine is not None and mine.config_digest.hex() != engine.model.config_digest:
            return "this peer serves another model by now"
        if sum(1 for (_, requested), role in self._roles.items() if not requested and not role.machine.closed) >= MAX_OPEN:
            return "this peer sits in as many rounds as it can"
        return ""

    def _add(self, machine: RequesterMachine | MemberMachine, header: Header, requested: bool) -> _Role:
        if len(self._roles) >= MAX_HELD:
            closed = [(role.over_at, name) for name, role in self._roles.items() if role.machine.closed]
            if not closed:
                raise RemoteError(Code.OVERLOADED, "too many rounds at once", retry_after=5.0)
            self._deliver(self._roles.pop(min(closed)[1]), None)
        send, receive = trio.open_memory_channel[ev.Event](_INBOX)
        role = _Role(machine, header, send, receive, requested)
        self._roles[(machine.round, requested)] = role
        return role

    def _start(self, role: _Role, refusal: str) -> None:
        if self._nursery is None:
            raise RemoteError(Code.OVERLOADED, "not ready for rounds yet", retry_after=1.0)
        self._nursery.start_soon(self._drive, role, refusal)

    def _deliver(self, role: _Role, event: ev.Event | None) -> None:
        if event is None:
            role.inbox.close()
            return
        try:
            role.inbox.send_nowait(event)
        except trio.WouldBlock:
            self._count("overflow")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._count("late")

    async def _drive(self, role: _Role, refusal: str) -> None:
        """One machine's life: events in, effects out, until it closed and has served pulls for the length of a round."""
        async with trio.open_nursery() as nursery:
            event: ev.Event | None = ev.Started(refusal)
            while event is not None:
                for effect in role.machine.handle(event, trio.current_time()):
                    self._perform(role, effect, nursery)
                event = await self._next(role)
            nursery.cancel_scope.cancel()
        role.waiting.close()
        if self._roles.get((role.machine.round, role.requested)) is role:
            del self._roles[(role.machine.round, role.requested)]

    async def _next(self, role: _Role) -> ev.Event | None:
        event: ev.Event | None = None
        with trio.move_on_at(min(role.wake, role.over_at)) as wait:
            try:
                event = await role.waiting.receive()
            except trio.EndOfChannel:
                return None
        if not wait.cancelled_caught:
            return event
        if trio.current_time() >= role.over_at:
            return None
        role.wake = math.inf
        return ev.Woken()

    def _perform(self, role: _Role, effect: ev.Effect, nursery: trio.Nursery) -> None:
        match effect:
            case ev.Send(peers, raw):
                for peer in peers:
                    if peer == self._me:
                        self._pass_to_other_role(role, raw)
                    else:
                        nursery.start_soon(self._push, role, peer, raw)
            case ev.Pull(hashes, peers):
                nursery.start_soon(self._pull, role, hashes, peers)
            case ev.WakeAt(time):
                role.wake = time
            case ev.Generate() | ev.Judge():
                role.work = trio.CancelScope()
                nursery.start_soon(self._run_work, role, effect, role.work)
            case _:
                self._note(role, effect)

    def _note(self, role: _Role, effect: ev.Effect) -> None:
        match effect:
            case ev.StopWork():
                if role.work is not None:
                    role.work.cancel()
            case ev.Progress() | ev.Folded():
                if role.report is not None:
                    role.report(effect)
            case ev.Fault(peer, code, message):
                self._count(str(code))
                log.debug("a peer broke the round's protocol", peer=short(peer), code=str(code), reason=message)
            case ev.Equivocation(peer):
                self._count("equivocation")
                log.warning("a peer signed two statements for one slot and was dropped", peer=short(peer))
            case ev.Closed(outcome, transcript):
                role.over_at = trio.current_time() + role.header.durations.total_ms / 1000
                done = Finished(role.machine.round, role.header, role.requested, outcome, transcript)
                if role.report is not None:
                    role.report(done)
                self.finished(done)

    def _pass_to_other_role(self, role: _Role, raw: bytes) -> None:
        try:
            self._take(open_message(raw), self._me, (not role.requested,))
        except RemoteError as error:
            log.debug("our own round message found no taker", reason=error.message)

    async def _push(self, role: _Role, peer: PeerId, raw: bytes) -> None:
        try:
            await self._calls.unary(peer, METHOD, raw, timeout=_SEND_SECONDS)
        except RemoteError as error:
            if error.code is Code.GONE:
                self._deliver(role, ev.PeerGone(peer))
            log.debug("a round message was not taken", peer=short(peer), code=str(error.code), reason=error.message)

    async def _pull(self, role: _Role, hashes: tuple[Hash, ...], peers: tuple[PeerId, ...]) -> None:
        wanted = set(hashes)
        for peer in peers:
            request = PullRequest(role.machine.round, tuple(sorted(wanted))[:100])
            try:
                if peer == self._me:
                    raws: tuple[bytes, ...] = tuple(self._held(request))
                else:
                    raws = read_reply(await self._calls.unary(peer, PULL_METHOD, encode(request), timeout=_SEND_SECONDS))
                found = {open_message(raw).hash for raw in raws}
            except RemoteError as error:
                log.debug("a pull failed", peer=short(peer), code=str(error.code), reason=error.message)
                continue
            self._deliver(role, ev.Pulled(peer, raws))
            wanted -= found
            if not wanted:
                return

    async def _run_work(self, role: _Role, effect: ev.Generate | ev.Judge, scope: trio.CancelScope) -> None:
        with scope:
            self._deliver(role, await self._work.run(effect))

    def _count(self, reason: str) -> None:
        self.faults[reason] = self.faults.get(reason, 0) + 1
