"""A line between claim stores in one process: the daemon's own driver on this side, what a daemon answers on the other.

No network and no transport: what is measured here is the claim store, its driver and its disk.
"""

import gc
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import trio

from crdt_store.replica import Replica
from crdt_store.store import ClaimStore
from crdt_store.sync_events import Verify
from crdt_store.sync_messages import HeadsRequest, RangeRequest, serve_heads, serve_range
from daemon import collector
from daemon.claim_sync import ClaimSync, in_thread
from protocol.wire.codec import decode, encode
from protocol.wire.ids import PeerId

PEER = PeerId("peer")


@dataclass
class Exchange:
    """One sync: what it moved and how long it took; `cpu` seconds of all cores, `stall_ms` the longest that the loop was late."""

    claims: int = 0
    signatures: int = 0
    missing_bytes: int = 0
    wire_bytes: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    stall_ms: float = 0.0
    stall_p99_ms: float = 0.0


class Wire:
    """Other peers and the lines to them: each answers from its replica as the daemon does, through bytes that are counted."""

    def __init__(self, sources: Mapping[PeerId, Replica], older: bool = False) -> None:
        """`older`: they know no checkpoints, so that every claim comes in its envelope."""
        self._sources = sources
        self._older = older
        self.bytes = 0

    def driver(self, store: ClaimStore) -> "CountingSync":
        """What a daemon pulls with, on this end of the lines."""
        here: Any = self
        return CountingSync(store, here, here, Random(1), in_thread)

    def serve(self, method: str, handler: Any) -> None:
        """Nobody asks us."""

    async def subscribe(self, topic: str, handler: Any) -> None:
        """No gossip here."""

    def paths(self) -> dict[PeerId, Any]:
        return {}

    async def unary(self, peer: PeerId, method: str, body: bytes, *, timeout: float) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._carry(encode(serve_heads(self._sources[peer], decode(HeadsRequest, self._carry(body)))))

    @asynccontextmanager
    async def stream(self, peer: PeerId, method: str, body: bytes, *, timeout: float) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            request = decode(RangeRequest, self._carry(body))
            if self._older:
                request = RangeRequest(request.ranges, request.proofs, request.picks)
            for chunk in serve_range(self._sources[peer], request):
                await trio.lowlevel.checkpoint()
                yield self._carry(encode(chunk))

        async with aclosing(chunks()) as items:
            yield items

    def _carry(self, raw: bytes) -> bytes:
        self.bytes += len(raw)
        return raw


class CountingSync(ClaimSync):
    """The daemon's own, and how many signatures it had checked."""

    signatures = 0

    async def _check(self, verify: Verify) -> None:
        self.signatures += verify.signatures
        await super()._check(verify)


async def sync_once(store: ClaimStore, source: Replica, older: bool = False) -> Exchange:
    """Pull everything by the daemon's own driver into a file; `older` as in `Wire`."""
    gc.unfreeze()  # an earlier pull's
    collector.settle()  # as a daemon does that stands
    result, wire = Exchange(), Wire({PEER: source}, older)
    before, held = store.replica.total_bytes, len(store.replica)
    gaps: list[float] = []
    sync = wire.driver(store)

    async def watch() -> None:
        while True:
            begun = time.perf_counter()
            await trio.sleep(0.002)
            gaps.append(time.perf_counter() - begun - 0.002)

    async with trio.open_nursery() as nursery:
        await nursery.start(sync.run)
        nursery.start_soon(watch)
        used, begun = time.process_time(), time.perf_counter()
        while store.replica.digest() != source.digest():
            sync.begin(PEER)
            while sync.busy(PEER):  # noqa: ASYNC110 - as a driver of the daemon sees it from outside
                await trio.sleep(0.002)
        await trio.to_thread.run_sync(store.save)
        result.seconds = time.perf_counter() - begun
        nursery.cancel_scope.cancel()
    result.cpu = time.process_time() - used
    result.claims, result.missing_bytes = len(store.replica) - held, source.total_bytes - before
    result.wire_bytes, result.signatures = wire.bytes, sync.signatures
    gaps.sort()
    result.stall_ms, result.stall_p99_ms = 1000 * gaps[-1], 1000 * gaps[len(gaps) * 99 // 100]
    return result
