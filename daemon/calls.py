"""Calls between peers over "/swarmd/rpc/1". Decides which link a call takes and what its failure is called; knows no method.

Each side uses the links that it opened for its own calls: one for control and tokens and, once a body needs more than one chunk,
one for bulk. Links stay open while idle. A lost link fails its calls at once; the next call opens a fresh one.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from daemon.lines import Lines
from daemon.rpc_link import Inbox, Link
from daemon.transport.interface import Stream, Transport, TransportError
from protocol.rpc import RpcMachine
from protocol.rpc_events import IncomingCall, NewCall
from protocol.rpc_frames import PROTOCOL, Hello
from protocol.rpc_packing import CAPABILITY
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import PeerId, short
from protocol.wire.limits import MAX_CHUNK_BYTES

OPEN_SECONDS = 10.0
"""Bound of opening a link, as `Transport.connect` bounds a dial."""

MAX_INBOUND_LINKS = 4
"""Links one peer may open to us: calls and bulk, on two paths while one takes over from the other. A further one replaces the
oldest, so that a restarted peer is served at once."""

RETIRE_SECONDS = 1.0
"""Between looks at whether the calls on a link that was taken over are done."""

HELLO = Hello(capabilities=(CAPABILITY,))

STOPPING = "this node is stopping"

_CANCELLED = Code.CANCELLED.value

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CallOptions:
    """How a call travels.

    `priority` runs from 0 (most urgent) to 7; `traceparent` is W3C Trace Context; `more` lets the caller send items too; `bulk`
    takes the bulk link whatever the body's size.
    """

    priority: int = 4
    traceparent: str = ""
    more: bool = False
    bulk: bool = False


DEFAULT_OPTIONS = CallOptions()


class InboundCall:
    """One call of a peer, as its handler sees it. `deadline` is on trio's clock.

    The handler is cancelled at the deadline, when the caller cancels, and when the link is lost.
    """

    def __init__(self, link: Link, incoming: IncomingCall, inbox: Inbox) -> None:
        self.peer: PeerId = link.peer
        self.method = incoming.method
        self.body = incoming.body
        self.deadline = incoming.deadline
        self.priority = incoming.priority
        self.traceparent = incoming.traceparent
        self._link = link
        self._id = incoming.call
        self._inbox = inbox

    def send_now(self, item: bytes, dense: bool = False) -> bool:
        """Stream one item (at most 64 KiB) back if that can be done without waiting; False where it was not.

        `dense`: it does not shrink, so no line is slow enough to try.
        """
        return self._link.send_now(self._id, self._inbox, item, dense)

    async def send(self, item: bytes, dense: bool = False) -> None:
        """Stream one item (at most 64 KiB) back; waits for the caller's credit; raises RemoteError once the call is over."""
        await self._link.send(self._id, self._inbox, item, dense)

    async def receive(self) -> bytes | None:
        """The caller's next item; None after its last one. Only for calls made with `more`."""
        item = await self._inbox.next()
        if item is not None:
            self._link.consumed(self._id, item)
        return item


Handler = Callable[[InboundCall], Awaitable[bytes | None]]
"""Answers one call with its final body. RemoteError becomes the peer's error; anything else is our bug and reads as internal."""


class StreamedCall:
    """The items of one call, as an async iterator; `result` is the final body once the iteration ended, b"" before."""

    def __init__(self, link: Link, call: int, inbox: Inbox) -> None:
        self.result = b""
        self._link = link
        self._id = call
        self._inbox = inbox

    def __aiter__(self) -> "StreamedCall":
        return self

    async def __anext__(self) -> bytes:
        item = await self._inbox.next()
        if item is None:
            self.result = self._inbox.final
            raise StopAsyncIteration
        self._link.consumed(self._id, item)
        return item

    def ready(self) -> list[bytes]:
        """Takes the items that came and were not iterated over yet, without waiting."""
        items = self._inbox.ready()
        for item in items:
            self._link.consumed(self._id, item)
        return items

    async def send(self, item: bytes) -> None:
        """Stream one item to the handler. Only for calls made with `more`."""
        await self._link.send(self._id, self._inbox, item)

    async def finish(self) -> None:
        """Say that our items are complete."""
        await self._link.end(self._id, self._inbox, b"")


@dataclass(slots=True)
class _Opening:
    done: trio.Event = field(default_factory=trio.Event)
    link: Link | None = None
    reason: str = STOPPING


class Calls:
    """All calls of one peer, both ways.

    `outcomes` counts (side, method, outcome): "in" or "out"; the method, "unknown" where a stranger made it up; "ok" or a `Code`.
    `breaches` counts links dropped because the peer broke the contract, by `Breach`.
    """

    def __init__(self, transport: Transport, *, hello: Hello = HELLO) -> None:
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.breaches: Counter[str] = Counter()
        self._transport = transport
        self._hello = hello
        self._handlers: dict[str, Handler] = {}
        self._links: dict[tuple[PeerId, bool], Link] = {}
        self._openings: dict[tuple[PeerId, bool], _Opening] = {}
        self._inbound: dict[PeerId, list[Link]] = {}
        self._lines = Lines(transport)
        self._nursery: trio.Nursery | None = None

    def serve(self, method: str, handler: Handler) -> None:
        """Answer `method` with `handler`, each call in its own task."""
        if method in self._handlers:
            raise LocalError(f"{method} is served already")
        self._handlers[method] = handler

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Own every link until cancelled; then all calls fail with GONE."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._transport.handle(PROTOCOL, self._accept)
                self._transport.listen_to_paths(self._move)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            for link in [link for links in self._inbound.values() for link in links]:
                link.close(STOPPING)

    def path_kind(self, peer: PeerId) -> str | None:
        """How `peer` is reached now; None where it is not connected."""
        path = self._transport.path(peer)
        return None if path is None else str(path.kind)

    async def unary(
        self, peer: PeerId, method: str, body: bytes, *, timeout: float, options: CallOptions = DEFAULT_OPTIONS
    ) -> bytes:
        """Ask and wait for the one answer, at most `timeout` seconds; raises RemoteError with the reason's code."""
        # Not by way of `stream`: its two context managers cost more than the rest of a small call.
        outcome = _CANCELLED
        try:
            link, call, inbox = await self._start(peer, method, body, timeout, options)
            try:
                if await inbox.next() is not None:
                    raise RemoteError(Code.MALFORMED, f"the peer streamed where {method} has one answer")
            finally:
                link.cancel(call)
            outcome = "ok"
            return inbox.final
        except RemoteError as error:
            outcome = error.code.value
            raise
        finally:
            self.outcomes["out", method, outcome] += 1

    @asynccontextmanager
    async def stream(
        self, peer: PeerId, method: str, body: bytes, *, timeout: float, options: CallOptions = DEFAULT_OPTIONS
    ) -> AsyncIterator[StreamedCall]:
        """Ask and iterate over what comes. Leaving early, also by cancellation, cancels the peer's handler.

        The whole call, from finding a link to the last item, has `timeout` seconds; raises RemoteError with the reason's code.
        """
        outcome = _CANCELLED
        try:
            link, call, inbox = await self._start(peer, method, body, timeout, options)
            try:
                yield StreamedCall(link, call, inbox)
            finally:
                link.cancel(call)
                if isinstance(inbox.outcome, bytes):
                    outcome = "ok"
        except RemoteError as error:
            outcome = error.code.value
            raise
        finally:
            self.outcomes["out", method, outcome] += 1

    async def _start(
        self, peer: PeerId, method: str, body: bytes, timeout: float, options: CallOptions
    ) -> tuple[Link, int, Inbox]:
        now = trio.current_time()
        deadline = now + timeout
        new = NewCall(method, body, deadline, options.more, options.priority, options.traceparent)
        key = (peer, options.bulk or len(body) > MAX_CHUNK_BYTES)
        link = self._links.get(key)
        if link is not None and link.has_room(len(body)):
            return link, *link.start(new, now)
        with trio.move_on_at(deadline):
            link = await self._link(key)
            await link.wait_for_room(body_bytes=len(body))
            return link, *link.start(new, trio.current_time())
        raise RemoteError(Code.DEADLINE, "the deadline passed before the call left")

    # Links.

    async def _link(self, key: tuple[PeerId, bool]) -> Link:
        link = self._links.get(key)
        if link is not None and not link.closed:
            return link
        opening = self._openings.get(key)
        if opening is None:
            if self._nursery is None:
                raise RemoteError(Code.GONE, STOPPING)
            opening = self._openings[key] = _Opening()
            self._nursery.start_soon(self._open, key, opening)
        await opening.done.wait()
        if opening.link is None:
            raise RemoteError(Code.GONE, opening.reason)
        return opening.link

    async def _open(self, key: tuple[PeerId, bool], opening: _Opening) -> None:
        try:
            with trio.fail_after(OPEN_SECONDS):
                stream = await self._transport.open_stream(key[0], PROTOCOL)
            machine = RpcMachine(opener=True, hello=self._hello, packs=partial(self._lines.are_slow, key[0]))
            opening.link = self._links[key] = Link(stream, machine, self.breaches)
        except TransportError as error:
            opening.reason = str(error)
            return
        except trio.TooSlowError:
            opening.reason = f"no link within {OPEN_SECONDS:.0f} s"
            return
        finally:
            del self._openings[key]
            opening.done.set()
        try:
            await opening.link.run()
        finally:
            if self._links.get(key) is opening.link:
                del self._links[key]

    def _move(self, peer: PeerId) -> None:
        """Open new calls to `peer` over its better path; those that run stay on the link that they have."""
        for bulk in (False, True):
            link = self._links.pop((peer, bulk), None)
            if link is not None and self._nursery is not None:
                self._nursery.start_soon(self._retire, link)

    async def _retire(self, link: Link) -> None:
        await trio.sleep(RETIRE_SECONDS)  # for a caller that was given the link and has not called yet
        while link.busy and not link.closed:  # noqa: ASYNC110 - seldom, and not urgent
            await trio.sleep(RETIRE_SECONDS)
        link.close("a better path has taken over")

    async def _accept(self, stream: Stream) -> None:
        if self._nursery is None:
            await stream.reset()
            return
        machine = RpcMachine(opener=False, hello=self._hello, packs=partial(self._lines.are_slow, stream.peer))
        link = Link(stream, machine, self.breaches, self._answer)
        links = self._inbound.setdefault(stream.peer, [])
        links.append(link)
        for surplus in links[:-MAX_INBOUND_LINKS]:
            surplus.close("the peer opened a newer link")
        try:
            await link.run()
        finally:
            links.remove(link)
            if not links and self._inbound.get(stream.peer) is links:
                del self._inbound[stream.peer]

    # Answering.

    async def _answer(self, link: Link, incoming: IncomingCall, inbox: Inbox) -> None:
        handler = self._handlers.get(incoming.method)
        outcome = _CANCELLED
        try:
            if handler is None:
                raise RemoteError(Code.UNSUPPORTED, "this peer does not serve that method")
            try:
                reply = await handler(InboundCall(link, incoming, inbox))
            except BaseExceptionGroup as group:
                raise _essence(group) from None
            await link.end(incoming.call, inbox, b"" if reply is None else reply)
            outcome = "ok"
        except trio.Cancelled:
            if isinstance(inbox.outcome, RemoteError):
                outcome = inbox.outcome.code.value
            raise
        except Exception as error:  # noqa: BLE001 - whatever a handler raises ends its call alone
            fault = self._fault_of(error, incoming.method, link.peer)
            outcome = fault.code.value
            link.fault(incoming.call, fault)
        finally:
            self.outcomes["in", incoming.method if handler else "unknown", outcome] += 1

    def _fault_of(self, error: Exception, method: str, peer: PeerId) -> RemoteError:
        if isinstance(error, RemoteError):
            return error
        log.error("handler failed", method=method, peer=short(peer), error=repr(error)[:300])
        return RemoteError(Code.INTERNAL, "the peer failed to answer")


def _essence(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception that stands for a nursery's many: the end of the process, cancellation, a bug, a refusal."""
    leaves: list[BaseException] = []
    rest: list[BaseException] = [group]
    while rest:
        error = rest.pop()
        if isinstance(error, BaseExceptionGroup):
            rest += error.exceptions
        else:
            leaves.append(error)

    def rank(error: BaseException) -> int:
        if not isinstance(error, Exception):
            return 1 if isinstance(error, trio.Cancelled) else 0
        return 3 if isinstance(error, RemoteError) else 2

    return min(leaves, key=rank)
