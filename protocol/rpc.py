"""The multiplexer of one RPC link: many calls on one stream. Decides ids, credit, deadlines and breaches of contract; does no IO.

A link belongs to the peer that opened it: only the opener starts calls on it, the acceptor only answers. Two peers that open
links to each other at the same moment therefore have two independent links, and ids need no agreement.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf

from protocol.rpc_call import OpenCall
from protocol.rpc_events import (
    FRAMES_AT_ONCE,
    Breach,
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
from protocol.rpc_faults import error_of, fault_of
from protocol.rpc_frames import (
    ITEM_OVERHEAD_BYTES,
    MAX_BODY_BYTES,
    MAX_CREDIT_BYTES,
    MAX_DEADLINE_MS,
    MAX_OPEN_CALLS,
    MAX_OPEN_REQUEST_BYTES,
    MAX_TRACEPARENT_CHARS,
    OLDEST_VERSION,
    VERSION,
    AnyFrame,
    Cancel,
    Credit,
    End,
    Fault,
    Hello,
    Item,
    Packed,
    Request,
)
from protocol.rpc_packing import CAPABILITY, packed_frame, unpack
from protocol.rpc_queue import Lane, SendQueue
from protocol.wire.codec import FrameReader, Message, decoder, encode_frame
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.limits import MAX_CHUNK_BYTES, MAX_FRAME_BYTES

STRAY_BYTES = 512
"""Control frames that may still be under way for a call that this side finished: a cancel, an end, a few credits."""

MAX_UNREAD_BYTES = 4 << 20
"""Queued answers at which a peer that asks and does not read is dropped; a link's own flow never queues half of it."""


_parse: Callable[[bytes | memoryview], AnyFrame] = decoder(AnyFrame)  # type: ignore[arg-type]  # a union is a form, not a type


class _Violation(Exception):
    def __init__(self, breach: Breach, detail: str) -> None:
        super().__init__(detail)
        self.breach = breach
        self.detail = detail


class RpcMachine:
    """One link. Every method is synchronous; what `take` returns must be written in order. Misuse by our side raises LocalError.

    `hello` is what our side offers: a bigger window (bytes per call and direction) fills long fat links and costs memory.
    `packs` says whether the line is slow enough for compressing to pay; it is asked for big frames to who offers it alone.
    """

    def __init__(self, *, opener: bool, hello: Hello = Hello(), packs: Callable[[], bool] = bool) -> None:  # noqa: B008 - frozen
        self.opener = opener
        self._packs = packs
        self.hello = hello
        self.peer_hello: Hello | None = None
        self.broken = False
        self.behind: list[memoryview] = []  # frames that came and wait: `receive` is to be called again, if only with b""
        self._reader = FrameReader(MAX_FRAME_BYTES)
        self._queue = SendQueue()
        self._calls: dict[int, OpenCall] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._last_id = 0
        self._request_bytes = 0
        self._growth = 0
        self._stray_allowance = 0
        self._queue.push_urgent(encode_frame(hello))

    @property
    def wants_to_write(self) -> bool:
        """Whether `take` would return bytes."""
        return bool(self._queue) and not self.broken

    @property
    def queued(self) -> int:
        """Bytes waiting for `take`; hold new items and calls back while it is high."""
        return self._queue.queued

    @property
    def wake_at(self) -> float:
        """When `tick` has something to do; inf where nothing is due."""
        while self._deadlines and self._deadlines[0][1] not in self._calls:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else inf

    @property
    def open_calls(self) -> int:
        """Calls open now."""
        return len(self._calls)

    def fits(self, body_bytes: int) -> bool:
        """Whether the open requests leave room for one of `body_bytes`; `start` refuses it otherwise."""
        return self._request_bytes + body_bytes <= MAX_OPEN_REQUEST_BYTES

    def take(self) -> bytes | bytearray:
        """The next bytes to write, small frames first; b"" where nothing waits."""
        if self.broken:
            return b""
        frames = self._queue.batch()
        return frames[0] if len(frames) == 1 else b"".join(frames)

    # Local inputs.

    def start(self, new: NewCall, now: float) -> int:
        """Open a call and return its id; raises RemoteError(overloaded) at the peer's limits, (deadline) when late, (gone)."""
        if not self.opener or len(new.body) > MAX_BODY_BYTES:
            raise LocalError("only the opener starts calls, with a body of at most MAX_BODY_BYTES")
        if self.broken:
            raise RemoteError(Code.GONE, "the link is closed")
        left = int((new.deadline - now) * 1000)
        if left < 1:
            raise RemoteError(Code.DEADLINE, "the deadline passed before the call left")
        limit = self.peer_hello.max_calls if self.peer_hello else MAX_OPEN_CALLS
        if len(self._calls) >= limit or self._request_bytes + len(new.body) > MAX_OPEN_REQUEST_BYTES:
            raise RemoteError(Code.OVERLOADED, "too many calls are open to this peer")
        self._last_id += 1
        call = self._admit(self._last_id, new.deadline, len(new.body), new.more)
        request = Request(
            call.id,
            new.method,
            min(left, MAX_DEADLINE_MS),
            new.body,
            new.more,
            new.priority,
            new.traceparent[:MAX_TRACEPARENT_CHARS],
        )
        self._queue.push(call, self._framed(request), opens=True)
        return call.id

    def send_item(self, call_id: int, body: bytes, dense: bool = False) -> bool:
        """Queue an item; False where the call is over or its credit does not reach (CreditAvailable follows).

        `dense`: no try is made to compress it, on whatever line.
        """
        if len(body) > MAX_CHUNK_BYTES:
            raise LocalError(f"an item of {len(body)} bytes where {MAX_CHUNK_BYTES} are allowed")
        call = self._sending(call_id)
        cost = len(body) + ITEM_OVERHEAD_BYTES
        if call is None or call.credit < cost:
            return False
        call.credit -= cost
        item = Item(call_id, body)
        self._queue.push(call, encode_frame(item) if dense else self._framed(item))
        return True

    def end(self, call_id: int, body: bytes = b"") -> None:
        """Acceptor: the call succeeded. Opener: its items are complete. Nothing happens where the call is over already."""
        if len(body) > MAX_BODY_BYTES:
            raise LocalError(f"a final body of {len(body)} bytes where {MAX_BODY_BYTES} are allowed")
        call = self._sending(call_id)
        if call is not None:
            call.sent_end = True
            self._queue.push(call, self._framed(End(call_id, body)))
            if not self.opener:
                self._close(call)

    def fault(self, call_id: int, error: RemoteError) -> None:
        """Acceptor: the call failed; items sent before still arrive. Nothing happens where the call is over already."""
        call = self._sending(call_id)
        if call is not None:
            self._fault(call, error)

    def cancel(self, call_id: int) -> None:
        """Opener: nobody wants the answer any more. Nothing happens where the call is over already."""
        call = self._calls.get(call_id)
        if call is not None and self.opener:
            call.dropped = True
            if call.left:
                self._stray_allowance += call.granted + MAX_FRAME_BYTES
                self._queue.push_urgent(encode_frame(Cancel(call_id)))
            self._close(call)

    def consumed(self, call_id: int, body_bytes: int) -> None:
        """The application took an item of `body_bytes`; the peer hears of it once half the window is free."""
        call = self._calls.get(call_id)
        if call is None or call.got_end:
            return
        call.unreported += body_bytes + ITEM_OVERHEAD_BYTES
        growth = call.earned_growth(self._growth)
        if growth or call.unreported * 2 >= call.window:
            call.window += growth
            self._growth += growth
            allowance = call.unreported + growth
            call.granted += allowance
            call.unreported = 0
            self._queue.push_urgent(encode_frame(Credit(call_id, allowance)))

    def lost(self, reason: str) -> list[Effect]:
        """The stream is gone: every open call fails with GONE."""
        self.broken = True
        failed: list[Effect] = [CallFailed(call, RemoteError(Code.GONE, reason)) for call in self._calls]
        self._calls.clear()
        self._deadlines.clear()
        self.behind.clear()
        return failed

    def tick(self, now: float) -> list[Effect]:
        """Fail the calls whose deadline passed."""
        effects: list[Effect] = []
        while self.wake_at <= now:
            call = self._calls[heappop(self._deadlines)[1]]
            error = RemoteError(Code.DEADLINE, "the deadline passed")
            if self.opener:
                self.cancel(call.id)
            else:
                call.dropped = True
                call.left = True
                self._fault(call, error)
            effects.append(CallFailed(call.id, error))
        return effects

    # Bytes from the peer.

    def receive(self, received: bytes | memoryview, now: float) -> list[Effect]:
        """What the peer's bytes mean. A breach of the contract ends in LinkBroken, never in an exception."""
        if self.broken:
            return []
        effects: list[Effect] = []
        try:
            frames = self._reader.feed(received) if received else []
            if self.behind or len(frames) > FRAMES_AT_ONCE:
                self.behind += frames
                frames, self.behind = self.behind[:FRAMES_AT_ONCE], self.behind[FRAMES_AT_ONCE:]
            for raw in frames:
                self._on_frame(_parse(raw), len(raw), now, effects)
            if self._queue.queued > MAX_UNREAD_BYTES and not self.opener:
                raise _Violation(Breach.NOT_READING, "the peer asks and does not read")
        except _Violation as violation:
            effects += self._break(violation.breach, violation.detail)
        except RemoteError as error:
            breach = Breach.OVERSIZED if error.code is Code.OVERSIZED else Breach.MALFORMED
            effects += self._break(breach, error.message)
        return effects

    def _framed(self, message: Message) -> bytes | bytearray:
        unpacks = self.peer_hello is not None and CAPABILITY in self.peer_hello.capabilities
        return packed_frame(message, self._packs) if unpacks else encode_frame(message)

    def _unpacked(self, packed: Packed) -> tuple[Request | Item | End, int]:
        inner = _parse(unpack(packed)) if CAPABILITY in self.hello.capabilities else packed
        if not isinstance(inner, Request | Item | End):
            raise _Violation(Breach.MALFORMED, "a packed frame that was not offered, or is no request, item or end")
        return inner, packed.size

    def _on_frame(self, received: AnyFrame, size: int, now: float, effects: list[Effect]) -> None:
        if self.peer_hello is None or isinstance(received, Hello):
            self._on_hello(received, effects)
            return
        if isinstance(received, Packed):
            received, size = self._unpacked(received)
        if isinstance(received, Request):
            self._on_request(received, now, effects)
            return
        if isinstance(received, Cancel if self.opener else Fault):
            raise _Violation(Breach.WRONG_SIDE, f"{type(received).__name__} from the wrong side")
        call = self._calls.get(received.call)
        if call is None:
            self._on_stray(received.call, size)
            return
        match received:  # without positions: they cost more than the rest of a small frame
            case End():
                self._on_end(call, received.body, effects)
            case Item():
                self._on_item(call, received.body, effects)
            case Credit():
                self._on_credit(call, received.allowance, effects)
            case Fault():
                self._close(call)
                effects.append(CallFailed(call.id, error_of(received)))
            case Cancel():
                call.dropped = True
                self._close(call)
                effects.append(CallFailed(call.id, RemoteError(Code.CANCELLED, "the caller cancelled")))

    def _on_hello(self, received: AnyFrame, effects: list[Effect]) -> None:
        if not isinstance(received, Hello) or self.peer_hello is not None:
            raise _Violation(Breach.NO_HELLO, "a link begins with exactly one Hello")
        version = min(VERSION, received.version)
        if version < max(OLDEST_VERSION, received.oldest):
            raise _Violation(Breach.VERSION, f"the peer speaks versions {received.oldest} to {received.version}")
        self.peer_hello = received
        for call in self._calls.values():
            call.credit = received.window
            if call.more:
                effects.append(CreditAvailable(call.id))

    def _on_request(self, request: Request, now: float, effects: list[Effect]) -> None:
        if self.opener:
            raise _Violation(Breach.WRONG_SIDE, "only the opener starts calls")
        if request.call <= self._last_id:
            raise _Violation(Breach.CALL_ID, f"call {request.call} after {self._last_id}")
        if len(self._calls) >= MAX_OPEN_CALLS:
            raise _Violation(Breach.TOO_MANY_CALLS, f"more than {MAX_OPEN_CALLS} open calls")
        if self._request_bytes + len(request.body) > MAX_OPEN_REQUEST_BYTES:
            raise _Violation(Breach.TOO_MANY_BYTES, f"more than {MAX_OPEN_REQUEST_BYTES} bytes of open requests")
        self._last_id = request.call
        deadline = now + request.deadline_ms / 1000
        call = self._admit(request.call, deadline, len(request.body), request.more)
        if len(self._calls) > self.hello.max_calls:
            self._fault(call, RemoteError(Code.OVERLOADED, "this peer takes fewer calls at once"))
            return
        effects.append(
            IncomingCall(call.id, request.method, request.body, deadline, request.more, request.priority, request.traceparent)
        )

    def _on_item(self, call: OpenCall, body: bytes, effects: list[Effect]) -> None:
        if call.got_end or (not self.opener and not call.more):
            raise _Violation(Breach.WRONG_SIDE, "an item where none may follow")
        call.granted -= len(body) + ITEM_OVERHEAD_BYTES
        if call.granted < 0:
            raise _Violation(Breach.CREDIT, "more items than the credit allows")
        effects.append(IncomingItem(call.id, body))

    def _on_end(self, call: OpenCall, body: bytes, effects: list[Effect]) -> None:
        if call.got_end or (not self.opener and not call.more):
            raise _Violation(Breach.WRONG_SIDE, "an end where none may follow")
        call.got_end = True
        if self.opener:
            self._close(call)
            effects.append(CallEnded(call.id, body))
        else:
            effects.append(IncomingEnd(call.id, body))

    def _on_credit(self, call: OpenCall, allowance: int, effects: list[Effect]) -> None:
        call.credit += allowance
        if call.credit > MAX_CREDIT_BYTES:
            raise _Violation(Breach.CREDIT, "a credit beyond every window")
        effects.append(CreditAvailable(call.id))

    def _on_stray(self, call_id: int, size: int) -> None:
        """A frame for a call that is not open: right only where it was under way when our side finished the call."""
        self._stray_allowance -= size
        if call_id > self._last_id or self._stray_allowance < 0:
            raise _Violation(Breach.STRAY, f"a frame of call {call_id}, which is not open")

    # Calls.

    def _admit(self, call_id: int, deadline: float, request_bytes: int, more: bool) -> OpenCall:
        window = self.hello.window
        call = self._calls[call_id] = OpenCall(
            id=call_id,
            deadline=deadline,
            request_bytes=request_bytes,
            credit=self.peer_hello.window if self.peer_hello else 0,
            granted=window,
            more=more,
            window=window,
        )
        self._request_bytes += request_bytes
        heappush(self._deadlines, (deadline, call_id))
        if len(self._deadlines) > 2 * MAX_OPEN_CALLS + 64:
            self._deadlines = [(c.deadline, c.id) for c in self._calls.values()]
            heapify(self._deadlines)
        return call

    def _sending(self, call_id: int) -> OpenCall | None:
        call = self._calls.get(call_id)
        if call is not None and (call.sent_end or (self.opener and not call.more)):
            raise LocalError("this side of the call is finished")
        return call

    def _fault(self, call: OpenCall, error: RemoteError) -> None:
        self._queue.push(Lane() if call.dropped else call, encode_frame(fault_of(call.id, error)))
        self._close(call)

    def _close(self, call: OpenCall) -> None:
        del self._calls[call.id]
        self._request_bytes -= call.request_bytes
        self._growth -= call.window - self.hello.window
        if not self.opener or call.more:
            flow = call.granted + MAX_FRAME_BYTES if call.more and not call.got_end else 0
            self._stray_allowance += STRAY_BYTES + flow

    def _break(self, breach: Breach, detail: str) -> list[Effect]:
        return [*self.lost("the link was closed"), LinkBroken(breach, detail)]
