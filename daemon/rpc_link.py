"""One RPC link on one stream: reads, writes, keeps its deadlines. Decides nothing; the machine in protocol/rpc.py does.

Only the writer task touches the stream's sending side, so a caller that is cancelled never leaves half a frame behind.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from math import inf

import structlog
import trio

from daemon.transport.interface import PluggableStream, Stream, TransportError, WantsToSend
from protocol.rpc import RpcMachine
from protocol.rpc_events import (
    CallEnded,
    CallFailed,
    CreditAvailable,
    Effect,
    IncomingCall,
    IncomingEnd,
    IncomingItem,
    LinkBroken,
    NewCall,
)
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import short

MAX_QUEUED_BYTES = 1 << 20
"""Unsent bytes of a link at which new calls and items wait: one full frame, and what the transport itself queues again."""

ANSWERS_AT_ONCE = 16
"""Before the writer has its turn: the caller goes on with these while we go on with the rest. Measured, 64 small calls in flight
are a third more a second than where each side waits for all of the other's; 8 and 24 gain less."""

CLOSE_SECONDS = 1.0

log = structlog.get_logger(__name__)


class _Bell:
    """Wakes one waiting task; a ring while nobody waits is kept."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self, at_once: bool = False) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = trio.Event()


class Inbox:
    """What came for one call and nobody took yet, and how the call ended. Bounded by the credit that the machine grants."""

    __slots__ = ("_items", "_waiting", "outcome")

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._waiting: trio.lowlevel.Task | None = None
        self.outcome: bytes | RemoteError | None = None

    def put(self, item: bytes) -> None:
        self._items.append(item)
        self._wake()

    def finish(self, outcome: bytes | RemoteError) -> None:
        """The final body, or why there is none; a failure also overrules an opener's finished items."""
        if self.outcome is None or isinstance(outcome, RemoteError):
            self.outcome = outcome
            self._wake()

    @property
    def final(self) -> bytes:
        """The final body; b"" where the call did not end well."""
        return self.outcome if isinstance(self.outcome, bytes) else b""

    async def next(self) -> bytes | None:
        """The next item; None once the call ended well; raises RemoteError once it failed and every item before was taken."""
        while not self._items:
            if isinstance(self.outcome, RemoteError):
                raise self.outcome
            if self.outcome is not None:
                return None
            # One reader, so a task in place of an Event, which costs three times as much.
            self._waiting = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._left)
        return self._items.popleft()

    def ready(self) -> list[bytes]:
        """Takes the items that are here already."""
        items = list(self._items)
        self._items.clear()
        return items

    def _left(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _wake(self) -> None:
        if self._waiting is not None:
            trio.lowlevel.reschedule(self._waiting)
            self._waiting = None


Answer = Callable[["Link", IncomingCall, Inbox], Awaitable[None]]
"""Answers one inbound call; whatever it raises but cancellation is a bug of ours."""


class Link:
    """The driver of one `RpcMachine`. `breaches` counts how peers broke the contract, by reason."""

    def __init__(self, stream: Stream, machine: RpcMachine, breaches: "Counter[str]", answer: Answer | None = None) -> None:
        self.peer = stream.peer
        self.closed = False
        self._stream = stream
        self._machine = machine
        self._breaches = breaches
        self._answer = answer
        self._inboxes: dict[int, Inbox] = {}
        self._answering: dict[int, trio.CancelScope] = {}
        self._reason = "the link was lost"
        self._scope = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._room = trio.lowlevel.ParkingLot()
        self._to_write = _Bell()
        self._wake_writer: WantsToSend = self._to_write.ring
        self._is_rung = False
        self._rearm = _Bell()
        self._armed = inf
        self._unanswered: deque[tuple[IncomingCall, Inbox]] = deque()
        self._answerers = trio.lowlevel.ParkingLot()
        self._called = False
        """Whether an answerer is on its way to the unanswered calls."""

    async def run(self) -> None:
        """Carry the link until it ends, from whichever side; then every open call has failed with GONE."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    if isinstance(self._stream, PluggableStream):
                        self._wake_writer = self._stream.plug(self._take, self._arrived)
                        self._wake_writer(False)  # for what was queued before, also where it was rung for
                        await self._catch_up()
                    else:
                        nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_deadlines)
                    await self._read()
        finally:
            self.close(self._reason)
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True), suppress(TransportError):
                await self._stream.reset()

    def close(self, reason: str) -> None:
        """End the link; its calls fail with `reason`."""
        if not self.closed:
            self.closed = True
            self._reason = reason
            self._apply(self._machine.lost(reason))
            self._room.unpark_all()
            self._scope.cancel()

    @property
    def busy(self) -> bool:
        """Whether a call of ours runs on it."""
        return bool(self._inboxes)

    # Calls of ours.

    def has_room(self, body_bytes: int) -> bool:
        """Whether the link is open and takes such a request now; where not, `wait_for_room`."""
        return not self.closed and self._machine.queued <= MAX_QUEUED_BYTES and self._machine.fits(body_bytes)

    def start(self, new: NewCall, now: float) -> tuple[int, Inbox]:
        """Open a call; raises RemoteError(gone | overloaded | deadline)."""
        call = self._machine.start(new, now)
        inbox = self._inboxes[call] = Inbox()
        self._ring(at_once=self._machine.open_calls == 1)
        self._check_timer(new.deadline)
        return call, inbox

    def cancel(self, call: int) -> None:
        """Tell the peer that nobody waits any more; nothing happens where the call is over."""
        if inbox := self._inboxes.pop(call, None):
            if inbox.outcome is None:
                inbox.finish(RemoteError(Code.CANCELLED, "the call was left"))
            self._machine.cancel(call)
            self._ring()
            self._make_room()

    def consumed(self, call: int, item: bytes) -> None:
        """`item` was taken by the application."""
        self._machine.consumed(call, len(item))
        if self._machine.wants_to_write:
            self._ring()

    # Both sides.

    def send_now(self, call: int, inbox: Inbox, item: bytes, dense: bool = False) -> bool:
        """Queue one item if the peer's credit and the link have room for it now; False where `send` would wait or raise."""
        if isinstance(inbox.outcome, RemoteError) or not self.has_room(0) or not self._machine.send_item(call, item, dense):
            return False
        self._ring()
        return True

    async def send(self, call: int, inbox: Inbox, item: bytes, dense: bool = False) -> None:
        """Queue one item, waiting for the peer's credit and for room; raises RemoteError once the call is over."""
        if not isinstance(item, bytes):
            raise LocalError(f"an item is bytes, not {type(item).__name__}")
        await trio.lowlevel.checkpoint_if_cancelled()
        await self.wait_for_room(inbox)
        while not self._machine.send_item(call, item, dense):
            if call not in self._inboxes:
                raise RemoteError(Code.CANCELLED, "the peer has ended the call")
            await self._room.park()
            await self.wait_for_room(inbox)
        self._ring()

    async def end(self, call: int, inbox: Inbox, body: bytes) -> None:
        """Send the final body (acceptor) or finish our items (opener)."""
        if not isinstance(body, bytes):
            raise LocalError(f"a final body is bytes, not {type(body).__name__}")
        if inbox.outcome is not None or not self.has_room(0):
            await self.wait_for_room(inbox)
        self._machine.end(call, body)
        self._ring(at_once=not self._machine.open_calls)

    async def wait_for_room(self, inbox: Inbox | None = None, body_bytes: int = 0) -> None:
        """Wait while the link is full; raises RemoteError(gone) once it is closed, or what ended the call of `inbox`."""
        while True:
            if inbox is not None and isinstance(inbox.outcome, RemoteError):
                raise inbox.outcome
            if self.closed:
                raise RemoteError(Code.GONE, self._reason)
            if self._machine.queued <= MAX_QUEUED_BYTES and self._machine.fits(body_bytes):
                return
            await self._room.park()

    def _make_room(self) -> None:
        if self._room:
            self._room.unpark_all()

    # Calls of the peer.

    def fault(self, call: int, error: RemoteError) -> None:
        """Answer a call with an error; nothing happens where the call is over."""
        self._machine.fault(call, error)
        self._ring()

    async def _answer_calls(self) -> None:
        """Answer calls one after the other. Whoever takes one first calls another answerer, in case this one has to wait."""
        assert self._answer is not None  # noqa: S101 - for the type checker
        while True:
            self._called = False
            with trio.CancelScope() as scope:  # one for many calls: it costs as much as a small call, and few are cancelled
                answered = 0
                while self._unanswered:
                    if answered == ANSWERS_AT_ONCE:
                        answered = 0
                        await trio.lowlevel.cancel_shielded_checkpoint()
                        continue
                    answered += 1
                    incoming, inbox = self._unanswered.popleft()
                    if isinstance(inbox.outcome, RemoteError):
                        continue
                    if self._unanswered:
                        self._call_answerer()
                    self._answering[incoming.call] = scope
                    try:
                        await self._answer(self, incoming, inbox)
                    finally:
                        self._inboxes.pop(incoming.call, None)
                        failed = self._answering.pop(incoming.call, None) is None
                    if failed:  # meanwhile, which cancelled the scope
                        break
            if not self._unanswered:
                await self._answerers.park()

    def _call_answerer(self) -> None:
        if self._called or self._nursery is None:
            return
        self._called = True
        if self._answerers:
            self._answerers.unpark()
        else:
            self._nursery.start_soon(self._answer_calls)

    # The three tasks.

    async def _read(self) -> None:
        try:
            while received := await self._stream.receive_some():
                if self._arrived(received):
                    await self._catch_up()
            await self._catch_up()
            self.close("the peer closed the link")
        except TransportError as error:
            self.close(str(error))

    def _arrived(self, received: bytes | memoryview) -> bool:
        """Whether more of it waits: then b"" is to follow, after a turn of the event loop and before anything else."""
        self._apply(self._machine.receive(received, trio.current_time()))
        return bool(self._machine.behind)

    async def _catch_up(self) -> None:
        while self._machine.behind:
            await trio.lowlevel.checkpoint()
            self._arrived(b"")

    def _ring(self, at_once: bool = False) -> None:
        """Have the writer take what waits: once for all that was queued since it took the last, or `at_once`."""
        if not self._is_rung:
            self._is_rung = True
            self._wake_writer(at_once)

    def _take(self) -> bytes | bytearray:
        self._is_rung = False
        batch = self._machine.take()
        if batch:
            self._make_room()
        return batch

    async def _write(self) -> None:
        try:
            while True:
                while batch := self._take():
                    await self._stream.send_all(bytes(batch))
                await self._to_write.wait()
        except TransportError as error:
            self.close(str(error))

    async def _keep_deadlines(self) -> None:
        while True:
            self._armed = self._machine.wake_at
            with trio.move_on_at(self._armed):
                await self._rearm.wait()
            self._apply(self._machine.tick(trio.current_time()))

    def _check_timer(self, deadline: float) -> None:
        if deadline < self._armed:
            self._rearm.ring()

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:  # without positions: they cost more than the rest of a small call
                case IncomingItem():
                    if inbox := self._inboxes.get(effect.call):
                        inbox.put(effect.body)
                case CallEnded():
                    self._over(effect.call, effect.body)
                case IncomingCall():
                    self._begin_answer(effect)
                case IncomingEnd():
                    if inbox := self._inboxes.get(effect.call):
                        inbox.finish(effect.body)
                case CallFailed():
                    self._over(effect.call, effect.error)
                case CreditAvailable():
                    self._make_room()
                case LinkBroken(breach, detail):
                    self._breaches[breach.value] += 1
                    known = self._breaches[breach.value]
                    say = log.debug if known & (known - 1) else log.warning  # the 1st, 2nd, 4th: a peer may do it all day
                    say("link dropped", peer=short(self.peer), breach=breach.value, detail=detail, dropped=known)
                    self.close("the link was closed: the peer broke the contract")
        if self._machine.wants_to_write:
            self._ring()

    def _over(self, call: int, outcome: bytes | RemoteError) -> None:
        if inbox := self._inboxes.pop(call, None):
            inbox.finish(outcome)
        if scope := self._answering.pop(call, None):
            scope.cancel()
        self._make_room()

    def _begin_answer(self, incoming: IncomingCall) -> None:
        if self._nursery is None or self._answer is None:
            raise LocalError("an opener's link takes no calls")
        inbox = self._inboxes[incoming.call] = Inbox()
        self._unanswered.append((incoming, inbox))
        self._call_answerer()
        self._check_timer(incoming.deadline)
