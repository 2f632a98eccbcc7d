"""Drives one fetch: asks peers for chunks side by side, has each checked and written. Ends with the file, or without helpers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import structlog
import trio

from daemon.calls import CallOptions, Calls, StreamedCall
from daemon.content.part_file import PartFile
from daemon.transport.interface import TransportError
from protocol.content import fetch, messages
from protocol.content.manifest import Manifest, open_manifest
from protocol.wire.codec import decode, encode
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import Hash, PeerId, short
from protocol.wire.limits import MAX_FRAME_BYTES

log = structlog.get_logger("swarmd.content")

BULK = CallOptions(priority=6, bulk=True)
_LANE = CallOptions(priority=6, bulk=True, more=True)
"""Files never stand in front of tokens."""

SMALL_SECONDS = 10.0
CHUNK_SECONDS = 60.0
"""For one chunk: 8 MiB at 140 KB/s. A slower peer is of no use to a fetch; one that is frozen is noticed by its link in 6 s."""

LANE_SECONDS = 6 * 3600.0
"""Of one call, which fetches chunks from one peer as long as there are any; then a new one is opened."""

SEARCH_SECONDS = 5.0
"""Between two looks for peers that share it, while some are missing; also how often a peer that has a part is asked again."""

STARVED_SECONDS = 30.0
"""How long a fetch waits while nobody offers what is missing."""

MAX_SOURCES = 16
FLIGHT_BYTES = 64 << 20
"""Of chunks under way, which lie in memory until they are checked."""

FindSources = Callable[[], Awaitable[Mapping[PeerId, tuple[str, ...]]]]
"""Peers that may share the content, as strangers say, with their addresses."""

Reach = Callable[[PeerId, tuple[str, ...]], Awaitable[None]]
"""Connects to a peer; raises TransportError."""


@dataclass(slots=True)
class Tally:
    """What a fetch has done so far; `by_peer` in bytes."""

    fetched: int = 0
    by_peer: dict[PeerId, int] = field(default_factory=dict)
    dropped: dict[PeerId, str] = field(default_factory=dict)


async def fetch_manifest(calls: Calls, peer: PeerId, address: Hash) -> tuple[Manifest, bytes]:
    """The manifest that `peer` gives for `address`; raises RemoteError."""
    pieces = bytearray()
    request = encode(messages.ContentRequest(address))
    async with calls.stream(peer, messages.MANIFEST_METHOD, request, timeout=SMALL_SECONDS, options=BULK) as items:
        async for item in items:
            pieces += item
            if len(pieces) > MAX_FRAME_BYTES:
                raise malformed("a manifest has no end")
    raw = bytes(pieces)
    return open_manifest(address, raw), raw


@dataclass(slots=True)
class _Lane:
    """The one call that fetches from a peer: what it still has to be asked for, and what it was asked for and owes."""

    ask: "trio.MemorySendChannel[int]"
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    owed: set[int] = field(default_factory=set)


class Fetching:
    """One fetch at work. `tally` is kept up to date."""

    def __init__(self, calls: Calls, address: Hash, manifest: Manifest, part: PartFile, rng: Random) -> None:
        flight = max(2, min(32, FLIGHT_BYTES // manifest.chunk_bytes))
        self._calls = calls
        self._address = address
        self._manifest = manifest
        self._part = part
        self._machine = fetch.Fetch(manifest.chunks, part.present, rng, fetch.FetchLimits(flight=flight))
        self._lanes: dict[PeerId, _Lane] = {}
        self._nursery: trio.Nursery | None = None
        self._finished = False
        self._meeting: set[PeerId] = set()
        self._wake = trio.CancelScope()
        self._wake_at = float("inf")
        self._hungry_since: float | None = None
        self._trouble: OSError | None = None
        self.tally = Tally()

    @property
    def sources(self) -> int:
        """Peers that are asked now."""
        return len(self._machine.peers)

    async def run(self, find: FindSources, reach: Reach) -> None:
        """Return once every chunk is there; raises RemoteError(not_found) where nobody shares the rest, OSError of our disk."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._search, find, reach)
            nursery.start_soon(self._keep_time)
            self._handle(fetch.Tick())
        if self._trouble is not None:
            raise self._trouble
        if not self._finished:
            raise RemoteError(Code.NOT_FOUND, f"no peer shares the {self._machine.missing} chunks that are missing")

    def _handle(self, event: fetch.Event) -> None:
        if self._nursery is None or self._nursery.cancel_scope.cancel_called:
            return
        starved = False
        for effect in self._machine.handle(event, trio.current_time()):
            match effect:
                case fetch.AskChunk(peer, index):
                    self._ask(peer, index)
                case fetch.Abandon(peer, index):
                    if (lane := self._lanes.get(peer)) is not None:
                        lane.owed.discard(index)
                case fetch.Dropped(peer, reason):
                    self.tally.dropped[peer] = reason
                    if (lane := self._lanes.pop(peer, None)) is not None:
                        lane.scope.cancel()
                    log.info("a peer is not asked for this file any more", peer=short(peer), reason=reason)
                case fetch.WakeAt(time):
                    self._wake_at = time
                    self._wake.cancel()
                case fetch.Starved():
                    starved = True
                case fetch.Finished():
                    self._finished = True
                    self._nursery.cancel_scope.cancel()
        self._hungry_since = (self._hungry_since or trio.current_time()) if starved else None

    def _ask(self, peer: PeerId, index: int) -> None:
        lane = self._lanes.get(peer)
        if lane is None:
            # Without a bound of its own: the machine asks one peer for a few chunks at a time.
            send, receive = trio.open_memory_channel[int](float("inf"))
            lane = self._lanes[peer] = _Lane(send)
            assert self._nursery is not None  # noqa: S101 - for the type checker
            self._nursery.start_soon(self._run_lane, peer, lane, receive)
        lane.owed.add(index)
        lane.ask.send_nowait(index)

    async def _run_lane(self, peer: PeerId, lane: _Lane, asked: "trio.MemoryReceiveChannel[int]") -> None:
        failure: RemoteError | None = None
        with lane.scope:
            try:
                await self._use_lane(peer, lane, asked)
            except RemoteError as error:
                failure = error
        asked.close()
        if self._lanes.get(peer) is lane:
            del self._lanes[peer]
        retry_after, missing = (failure.retry_after, failure.code is Code.NOT_FOUND) if failure is not None else (None, False)
        if failure is not None:
            log.debug("chunks did not come", peer=short(peer), owed=len(lane.owed), reason=str(failure))
        for index in sorted(lane.owed):
            self._handle(fetch.Failed(peer, index, retry_after, missing))

    async def _use_lane(self, peer: PeerId, lane: _Lane, asked: "trio.MemoryReceiveChannel[int]") -> None:
        request = encode(messages.ContentRequest(self._address))
        async with self._calls.stream(peer, messages.CHUNKS_METHOD, request, timeout=LANE_SECONDS, options=_LANE) as items:
            failure: RemoteError | None = None
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    async for index in asked:
                        await items.send(encode(messages.ChunkRequest(index)))

                nursery.start_soon(send)
                # A RemoteError must leave as itself, not inside the nursery's exception group.
                try:
                    async for raw in items:
                        await self._receive(peer, lane, items, decode(messages.ChunkHead, raw, messages.MAX_REQUEST_BYTES))
                except RemoteError as error:
                    failure = error
                nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure

    async def _receive(self, peer: PeerId, lane: _Lane, items: StreamedCall, head: messages.ChunkHead) -> None:
        """Take what `head` announces; a chunk that is not owed (any more) is thrown away."""
        index = head.index
        owed = index in lane.owed
        if index >= self._manifest.chunks or head.length not in (0, self._manifest.length(index)):
            self._handle(fetch.Corrupt(peer, index))
            raise malformed("a chunk has another length than the file's")
        if not head.length:
            lane.owed.discard(index)
            self._handle(fetch.Failed(peer, index, missing=True))
            return
        chunk = bytearray()
        with trio.move_on_after(CHUNK_SECONDS) as patience:
            while len(chunk) < head.length and (piece := await anext(items, None)) is not None:
                chunk += piece
        if patience.cancelled_caught:
            raise RemoteError(Code.DEADLINE, f"a chunk took more than {CHUNK_SECONDS:.0f} s")
        if len(chunk) != head.length:
            self._handle(fetch.Corrupt(peer, index))
            raise malformed("a chunk's pieces do not make up its length")
        if owed and self._nursery is not None:
            self._nursery.start_soon(self._store, peer, lane, index, chunk)

    async def _store(self, peer: PeerId, lane: _Lane, index: int, chunk: bytearray) -> None:
        try:
            # A thread that has begun is waited for: a cancelled fetch never leaves half a chunk behind.
            right = await trio.to_thread.run_sync(self._part.store, index, chunk)
        except OSError as error:  # our disk: no other peer can help
            self._trouble = error
            assert self._nursery is not None  # noqa: S101 - for the type checker
            self._nursery.cancel_scope.cancel()
            return
        if index not in lane.owed:
            return
        lane.owed.discard(index)
        if right:
            size = self._manifest.length(index)
            self.tally.fetched += size
            self.tally.by_peer[peer] = self.tally.by_peer.get(peer, 0) + size
        self._handle(fetch.Stored(peer, index) if right else fetch.Corrupt(peer, index))

    async def _search(self, find: FindSources, reach: Reach) -> None:
        """Look for sources until the file is whole, or nobody has offered what is missing for too long."""
        async with trio.open_nursery() as nursery:
            while True:
                for peer, addresses in [*(await find()).items()][:MAX_SOURCES]:
                    if peer not in self.tally.dropped and peer not in self._meeting:
                        nursery.start_soon(self._meet, peer, addresses, reach)
                await trio.sleep(SEARCH_SECONDS)
                since = self._hungry_since
                if since is not None and trio.current_time() - since >= STARVED_SECONDS and self._nursery is not None:
                    self._nursery.cancel_scope.cancel()

    async def _meet(self, peer: PeerId, addresses: tuple[str, ...], reach: Reach) -> None:
        request = encode(messages.ContentRequest(self._address))
        self._meeting.add(peer)
        try:
            await reach(peer, addresses)
            raw = await self._calls.unary(peer, messages.HELD_METHOD, request, timeout=SMALL_SECONDS)
            chunks = messages.held_chunks(decode(messages.Held, raw), self._manifest.chunks)
        except (RemoteError, TransportError) as error:
            log.debug("a peer does not share the file after all", peer=short(peer), reason=str(error))
            return
        finally:
            self._meeting.discard(peer)
        self._handle(fetch.Source(peer, chunks))

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope() as self._wake:
                await trio.sleep_until(self._wake_at)
                self._wake_at = float("inf")
                self._handle(fetch.Tick())
