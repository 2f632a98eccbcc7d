"""Drives one fetch: asks peers for chunks side by side, has each checked and written. Ends with the file, or without helpers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import structlog
import trio

from daemon.calls import CallOptions, Calls
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
"""Files never stand in front of tokens."""

SMALL_SECONDS = 10.0
CHUNK_SECONDS = 60.0
"""For one chunk: 8 MiB at 140 KB/s. A slower peer is of no use to a fetch; one that is frozen is noticed by its link in 6 s."""

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


class Fetching:
    """One fetch at work. `tally` is kept up to date; `progressed` is called after each chunk."""

    def __init__(self, calls: Calls, address: Hash, manifest: Manifest, part: PartFile, rng: Random) -> None:
        flight = max(2, min(32, FLIGHT_BYTES // manifest.chunk_bytes))
        self._calls = calls
        self._address = address
        self._manifest = manifest
        self._part = part
        self._machine = fetch.Fetch(manifest.chunks, part.present, rng, fetch.FetchLimits(flight=flight))
        self._waiting: dict[tuple[PeerId, int], trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None
        self._finished = False
        self._meeting: set[PeerId] = set()
        self._wake = trio.CancelScope()
        self._wake_at = float("inf")
        self._hungry_since: float | None = None
        self._trouble: OSError | None = None
        self.tally = Tally()
        self.progressed: Callable[[], None] = lambda: None

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
                    self._nursery.start_soon(self._ask, peer, index)
                case fetch.Abandon(peer, index):
                    if (scope := self._waiting.pop((peer, index), None)) is not None:
                        scope.cancel()
                case fetch.Dropped(peer, reason):
                    self.tally.dropped[peer] = reason
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

    async def _ask(self, peer: PeerId, index: int) -> None:
        key = (peer, index)
        scope = self._waiting[key] = trio.CancelScope()
        event: fetch.Event | None = None
        with scope:
            try:
                event = await self._receive(peer, index)
            except RemoteError as error:
                missing = error.code is Code.NOT_FOUND
                event = fetch.Failed(peer, index, error.retry_after, missing)
                log.debug("a chunk did not come", peer=short(peer), index=index, reason=str(error))
            except OSError as error:  # our disk: no other peer can help
                self._trouble = error
                assert self._nursery is not None  # noqa: S101 - for the type checker
                self._nursery.cancel_scope.cancel()
        if self._waiting.get(key) is scope:
            del self._waiting[key]
            if event is not None:
                self._handle(event)
                self.progressed()

    async def _receive(self, peer: PeerId, index: int) -> fetch.Event:
        request = encode(messages.ChunkRequest(self._address, index))
        wanted = self._manifest.length(index)
        pieces: list[bytes] = []
        have = 0
        async with self._calls.stream(peer, messages.CHUNK_METHOD, request, timeout=CHUNK_SECONDS, options=BULK) as items:
            async for item in items:
                pieces.append(item)
                have += len(item)
                if have > wanted:
                    return fetch.Corrupt(peer, index)
        if have != wanted:
            return fetch.Corrupt(peer, index)
        # Shielded by the thread itself: a cancelled fetch never leaves half a chunk behind.
        if not await trio.to_thread.run_sync(self._part.store, index, pieces):
            return fetch.Corrupt(peer, index)
        self.tally.fetched += have
        self.tally.by_peer[peer] = self.tally.by_peer.get(peer, 0) + have
        return fetch.Stored(peer, index)

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
