"""One of our machines in a round, driven: its bounded inbox, its one timer, its life. Decides nothing and sends nothing."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

from protocol.round import events as ev
from protocol.round.member import MemberMachine
from protocol.round.messages import Header
from protocol.round.requester import RequesterMachine
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId

MAX_WAITING = 1024
"""Peers' messages that wait for one machine: a committee of 50 sends each member some 250 in a whole round."""

MAX_WAITING_OF_PEER = 64
"""Of one peer; an honest one sends 10 in a whole round, and what is refused is sent again or pulled."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A round that closed for us in one role. `requested`: our own user asked."""

    round: Hash
    header: Header
    requested: bool
    outcome: ev.Outcome
    transcript: bytes


Report = Callable[[ev.Progress | ev.Folded | Finished], None]


class Role:
    """A requester's or a member's machine. `over_at` is when a closed one stops serving pulls, on trio's clock."""

    def __init__(self, machine: RequesterMachine | MemberMachine, requester: PeerId, report: Report | None = None) -> None:
        """With a `report` it is our user's: the requester's machine."""
        self.machine = machine
        self.header = machine.header
        self.requester = requester
        self.requested = isinstance(machine, RequesterMachine)
        self.report = report
        self.over_at = math.inf
        self.wake = math.inf
        self.work: trio.CancelScope | None = None
        self.ended = trio.Event()
        self._peers = frozenset((requester, *(candidate.peer_id for candidate in self.header.candidates)))
        self._waiting_of: Counter[PeerId] = Counter()
        # Unbounded for what our own tasks say: an answer of our engine must not be lost because peers filled the inbox.
        self._inbox, self._events = trio.open_memory_channel[ev.Event](math.inf)

    def involves(self, peer: PeerId) -> bool:
        """Whether `peer` asked or was invited."""
        return peer in self._peers

    def receive(self, sender: PeerId, raw: bytes) -> None:
        """Queue a peer's message; raises RemoteError(refused | overloaded)."""
        if sender not in self._peers:
            raise RemoteError(Code.REFUSED, "this round does not involve you")
        if self._waiting_of[sender] >= MAX_WAITING_OF_PEER or self._waiting_of.total() >= MAX_WAITING:
            raise RemoteError(Code.OVERLOADED, "too many messages of this round wait here", retry_after=1.0)
        if self.tell(ev.Received(sender, raw)):
            self._waiting_of[sender] += 1

    def tell(self, event: ev.Event) -> bool:
        """Queue an event of our own; False where the role is over."""
        try:
            self._inbox.send_nowait(event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def retire(self) -> None:
        """End after what is queued."""
        self._inbox.close()

    async def run(self, refusal: RemoteError | None, perform: "Callable[[Role, ev.Effect, trio.Nursery], None]") -> None:
        """Events in, effects out (first `refusal`, if any), until it closed and has served pulls for as long as a round lasts."""
        try:
            async with trio.open_nursery() as nursery:
                event: ev.Event | None = ev.Started(refusal.message, refusal.code) if refusal is not None else ev.Started()
                while event is not None:
                    for effect in self.machine.handle(event, trio.current_time()):
                        perform(self, effect, nursery)
                    event = await self._next()
                nursery.cancel_scope.cancel()
        finally:
            self._inbox.close()
            self._events.close()
            self.ended.set()

    async def _next(self) -> ev.Event | None:
        event: ev.Event | None = None
        with trio.move_on_at(min(self.wake, self.over_at)) as wait:
            try:
                event = await self._events.receive()
            except trio.EndOfChannel:
                return None
        if not wait.cancelled_caught:
            if isinstance(event, ev.Received):
                self._waiting_of[event.sender] -= 1
            return event
        if trio.current_time() >= self.over_at:
            return None
        self.wake = math.inf
        return ev.Woken()
