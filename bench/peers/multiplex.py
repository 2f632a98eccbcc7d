"""The least that can carry these loads on one byte stream: ids, lengths, bytes, one writer. The floor under any RPC layer.

It has no deadline, no cancel, no credit, no error and no typed frame: what a side made of it reaches is a limit, not a product.
"""

import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from bench.loads import ACK, PUSH_CHUNK_BYTES, Kind

HEAD = struct.Struct(">IQB")
ECHO, WHOLE, PART, FINISH, STREAM = range(5)
"""What a frame asks: its body back; a short reply; nothing yet; how many bytes the parts had; a stream of items."""

QUEUE_BYTES = 1 << 20
"""Unsent bytes at which callers wait, as in swarmd."""

ITEMS = struct.Struct(">II")


class Pipe(Protocol):
    """An ordered byte stream."""

    async def read(self) -> bytes:
        """The next bytes; b"" at the end."""

    async def write(self, payload: bytes) -> None: ...


class FrameWriter:
    """Joins whatever is queued into one write per wake-up."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._parts: list[bytes] = []
        self._size = 0
        self._kick = trio.Event()
        self._room = trio.Event()

    async def put(self, call: int, what: int, body: bytes) -> None:
        """Queue one frame; waits while the queue is full."""
        while self._size >= QUEUE_BYTES:
            if self._room.is_set():
                self._room = trio.Event()
            await self._room.wait()
        self._parts += (HEAD.pack(len(body), call, what), body)
        self._size += len(body)
        self._kick.set()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._kick.wait()
            self._kick = trio.Event()
            batch, self._parts, self._size = b"".join(self._parts), [], 0
            self._room.set()
            await self._pipe.write(batch)


async def read_frames(pipe: Pipe, take: Callable[[int, int, bytes], Awaitable[None] | None]) -> None:
    """Give every frame (call, what, body) to `take` until the pipe ends."""
    buffer = bytearray()
    while received := await pipe.read():
        buffer += received
        at = 0
        while len(buffer) - at >= HEAD.size:
            size, call, what = HEAD.unpack_from(buffer, at)
            end = at + HEAD.size + size
            if end > len(buffer):
                break
            waiting = take(call, what, bytes(buffer[at + HEAD.size : end]))
            at = end
            if waiting is not None:
                await waiting
        del buffer[:at]


async def serve_pipe(pipe: Pipe) -> None:
    """Answer every frame until the pipe ends."""
    writer = FrameWriter(pipe)
    received = 0

    async def items(call: int, body: bytes) -> None:
        count, size = ITEMS.unpack(body)
        item = bytes(size)
        for _ in range(count):
            await writer.put(call, STREAM, item)

    def take(call: int, what: int, body: bytes) -> Awaitable[None] | None:
        nonlocal received
        if what == PART:
            received += len(body)
            return None
        if what == STREAM:
            return items(call, body)
        reply = body if what == ECHO else ACK
        if what == FINISH:
            reply, received = b"%d" % received, 0
        return writer.put(call, what, reply)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.run)
        await read_frames(pipe, take)
        nursery.cancel_scope.cancel()


class _Waiting:
    __slots__ = ("body", "event", "frames_left", "received")

    def __init__(self, frames: int) -> None:
        self.event = trio.Event()
        self.frames_left = frames
        self.received = 0
        self.body = b""


class PipeCaller:
    """Calls on one pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._writer = FrameWriter(pipe)
        self._last = 0
        self._waiting: dict[int, _Waiting] = {}

    async def run(self) -> None:
        """Carry the calls until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writer.run)
            await read_frames(self._pipe, self._arrived)
            raise ConnectionError("the server has gone")

    def _arrived(self, call: int, _what: int, body: bytes) -> None:
        waiting = self._waiting[call]
        waiting.received += len(body)
        waiting.frames_left -= 1
        if not waiting.frames_left:
            waiting.body = body
            del self._waiting[call]
            waiting.event.set()

    async def _call(self, what: int, body: bytes, frames: int = 1) -> _Waiting:
        self._last += 1
        waiting = self._waiting[self._last] = _Waiting(frames)
        await self._writer.put(self._last, what, body)
        await waiting.event.wait()
        return waiting

    async def unary(self, kind: Kind, body: bytes) -> bytes:
        return (await self._call(ECHO if kind is Kind.ECHO else WHOLE, body)).body

    async def push(self, body: bytes) -> int:
        for start in range(0, len(body), PUSH_CHUNK_BYTES):
            await self._writer.put(0, PART, body[start : start + PUSH_CHUNK_BYTES])
        return int((await self._call(FINISH, b"")).body)

    async def items(self, count: int, size: int) -> int:
        return (await self._call(STREAM, ITEMS.pack(count, size), count)).received
