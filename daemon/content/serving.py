"""Answers peers that ask for content: what we share, its manifest, its chunks. Decides how much of our line they get."""

from collections import Counter
from collections.abc import Iterator, Mapping

import trio

from daemon.admission import PeerSlots
from daemon.calls import Calls, InboundCall
from daemon.content.part_file import PartFile
from daemon.content.shelf import Shelf
from protocol.content import messages
from protocol.content.manifest import Manifest
from protocol.content.rate import ByteRate
from protocol.wire.codec import decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_CHUNK_BYTES

MAX_PEER_CALLS = 6
"""Calls of one peer at once: one for each file that it fetches, and the small ones."""

IDLE_SECONDS = 30.0
"""A peer that asks for nothing for this long has its call ended."""

MAX_READS = 16
"""Chunks held in memory at once, whoever asks: each has 8 MiB at most."""

STALL_SECONDS = 10.0
"""A peer that takes nothing for this long makes room for others."""

Partial = tuple[Manifest, bytes, PartFile]
"""A file on its way here: its manifest, the manifest's bytes, and what there is of it."""


class ContentServing:
    """`partial` is what is being fetched: whoever fetches shares already. `sent` counts bytes, `refused` error codes."""

    def __init__(self, shelf: Shelf, partial: Mapping[bytes, Partial], bytes_per_second: float) -> None:
        self._shelf = shelf
        self._partial = partial
        self._rate = ByteRate(bytes_per_second, burst=MAX_CHUNK_BYTES * 16)
        self._slots = PeerSlots(MAX_PEER_CALLS)
        self._reads = trio.CapacityLimiter(MAX_READS)
        self.sent = 0
        self.refused: Counter[str] = Counter()

    def serve(self, calls: Calls) -> None:
        """Answer the methods of `messages`, but for content.take, which is not ours to decide."""
        calls.serve(messages.LIST_METHOD, self._list)
        calls.serve(messages.MANIFEST_METHOD, self._manifest)
        calls.serve(messages.HELD_METHOD, self._held)
        calls.serve(messages.CHUNKS_METHOD, self._chunks)

    async def _list(self, call: InboundCall) -> bytes:
        await trio.lowlevel.checkpoint()
        files = [messages.Offered(one.address, one.name, one.size) for one in self._shelf.files()]
        return encode(messages.Shelf(tuple(files[: messages.MAX_SHELF])))

    async def _manifest(self, call: InboundCall) -> bytes:
        address = _address(call)
        with self._slots.hold(call.peer):
            partial = self._partial.get(address)
            raw = partial[1] if partial else (await trio.to_thread.run_sync(self._shelf.manifest, address))[1]
            for piece in _pieces(raw):
                await call.send(piece)
        return b""

    async def _held(self, call: InboundCall) -> bytes:
        address = _address(call)
        await trio.lowlevel.checkpoint()
        if (partial := self._partial.get(address)) is not None:
            manifest, _, part = partial
            return encode(messages.Held(False, messages.bits_of(set(part.present), manifest.chunks)))
        self._shelf.find(address)
        return encode(messages.Held(True))

    async def _chunks(self, call: InboundCall) -> bytes:
        address = _address(call)
        try:
            with self._slots.hold(call.peer):
                while (asked := await self._next(call)) is not None:
                    async with self._reads:
                        await self._chunk(call, address, decode(messages.ChunkRequest, asked, messages.MAX_REQUEST_BYTES).index)
        except RemoteError as error:
            self.refused[str(error.code)] += 1
            raise
        return b""

    async def _next(self, call: InboundCall) -> bytes | None:
        asked = None
        with trio.move_on_after(IDLE_SECONDS):
            asked = await call.receive()
        return asked

    async def _chunk(self, call: InboundCall, address: bytes, index: int) -> None:
        chunk = await trio.to_thread.run_sync(self._read, address, index)
        await call.send(encode(messages.ChunkHead(index, len(chunk))))
        for piece in _pieces(chunk):
            await self._send(call, piece)

    async def _send(self, call: InboundCall, piece: bytes) -> None:
        if (wait := self._rate.take(len(piece), trio.current_time())) > 0:
            await trio.sleep(wait)
        if not call.send_now(piece, dense=True):  # weights do not shrink
            with trio.move_on_after(STALL_SECONDS) as patience:
                await call.send(piece, dense=True)
            if patience.cancelled_caught:
                raise RemoteError(Code.DEADLINE, f"nothing was taken for {STALL_SECONDS:.0f} s")
        self.sent += len(piece)

    def _read(self, address: bytes, index: int) -> bytes:
        """The chunk, b"" where a file that is still on its way here does not have it yet."""
        partial = self._partial.get(address)
        if partial is None:
            return self._shelf.read(address, index)
        return partial[2].read(index) if index in partial[2].present else b""


def _address(call: InboundCall) -> bytes:
    return decode(messages.ContentRequest, call.body, messages.MAX_REQUEST_BYTES).address


def _pieces(raw: bytes) -> Iterator[bytes]:
    return (raw[start : start + MAX_CHUNK_BYTES] for start in range(0, len(raw), MAX_CHUNK_BYTES))
