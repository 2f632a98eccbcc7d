"""Drives the claim store: our observations become signed claims, gossip announces them, sync pulls what we lack."""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import structlog
import trio

from crdt_store import sync, sync_messages
from crdt_store.own_log import OwnLogFrozen, Statement
from crdt_store.scores import Score, Tally
from crdt_store.store import ClaimStore, StorageError
from daemon.admission import PeerSlots
from daemon.calls import Calls, InboundCall
from daemon.reputation_view import everybody, one_peer
from daemon.transport.interface import Transport, TransportError
from protocol.wire.codec import decode, encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, short
from protocol.wire.limits import MAX_GOSSIP_BYTES

log = structlog.get_logger("swarmd.reputation")

_CALL_SECONDS = 20.0
_SERVE_SECONDS = 60.0
"""The longest that one answer of ours may take to be read."""

MAX_SERVED = 4
"""Calls of one peer answered at once: it asks one thing after the other."""

_ANNOUNCE_SECONDS = 0.2
"""Claims of one round are announced together: gossip is for news, not for each line of it."""


class Reputation:
    """Our claims and everybody else's. `connected` lists peers that sync may ask."""

    def __init__(
        self,
        store: ClaimStore,
        calls: Calls,
        transport: Transport,
        unix_ms: Callable[[], int],
        rng: Random,
    ) -> None:
        self._store = store
        self._calls = calls
        self._transport = transport
        self._unix_ms = unix_ms
        self._rng = rng
        self._sync = sync.Sync(store)
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()
        self._served = PeerSlots(MAX_SERVED)
        self._calling: dict[PeerId, trio.CancelScope] = {}
        self.faults: Counter[str] = Counter()

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Serve and pull until cancelled."""
        self._calls.serve(sync_messages.HEADS_METHOD, self._serve_heads)
        self._calls.serve(sync_messages.RANGE_METHOD, self._serve_range)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await self._transport.subscribe(sync_messages.TOPIC, self._on_gossip)
                nursery.start_soon(self._announce_news)
                task_status.started()
                while True:
                    await trio.sleep(sync.SYNC_EVERY * self._rng.uniform(0.8, 1.2))
                    connected = sorted(self._transport.paths())
                    if connected:
                        self.begin(self._rng.choice(connected))
        finally:
            self._nursery = None

    def begin(self, peer: PeerId) -> None:
        """Compare with `peer` now, as after meeting it."""
        self._handle(sync.Begin(peer))

    def record(self, statements: Sequence[Statement]) -> None:
        """Turn observations into claims of our own, durable before they are announced; a full disk costs them, not the daemon."""
        try:
            for statement in statements:
                self._store.record(statement, self._unix_ms())
        except (StorageError, OwnLogFrozen) as error:
            log.error("a claim could not be written", reason=str(error))
        self._news.set()

    def score(self, peer: PeerId, skill: str) -> Score:
        """What to expect of `peer` in `skill` now: from memory, in microseconds."""
        return self._store.scores.score(peer, skill, self._unix_ms())

    def tally(self, peer: PeerId, skill: str) -> Tally:
        """The weighed evidence of what `peer` did right and wrong in `skill`, as of now."""
        return self._store.scores.tally(peer, skill, self._unix_ms())

    def view(self, peer: str | None) -> dict[str, Any]:
        """The JSON of GET /swarmd/v1/reputation: all scores and the newest claims, or one peer's with its evidence."""
        replica, scores = self._store.replica, self._store.scores
        view = {
            "replica_hash": replica.digest().hex(),
            "claims": len(replica),
            "issuers": len(replica.issuers()),
            "forks": [{"issuer": fork.issuer, "epoch": fork.epoch} for fork in replica.forks()],
            "storage_error": self._store.storage_error,
        }
        now = self._unix_ms()
        return view | (everybody(replica, scores, now) if peer is None else one_peer(replica, scores, PeerId(peer), now))

    async def _serve_heads(self, call: InboundCall) -> bytes:
        request = decode(sync_messages.HeadsRequest, call.body, sync_messages.MAX_HEADS_BYTES)
        with self._served.hold(call.peer):
            await trio.lowlevel.checkpoint()
            return encode(sync_messages.serve_heads(self._store.replica, request))

    async def _serve_range(self, call: InboundCall) -> bytes:
        request = decode(sync_messages.RangeRequest, call.body, sync_messages.MAX_HEADS_BYTES)
        with self._served.hold(call.peer), trio.move_on_after(_SERVE_SECONDS) as patience:
            for chunk in sync_messages.serve_range(self._store.replica, request):
                await call.send(encode(chunk))
        if patience.cancelled_caught:
            raise RemoteError(Code.DEADLINE, f"the claims were not taken within {_SERVE_SECONDS:.0f} s")
        return b""

    def _on_gossip(self, author: PeerId, payload: bytes) -> bool:
        try:
            announcement = decode(sync_messages.Announcement, payload, MAX_GOSSIP_BYTES)
        except RemoteError:
            return False
        return author == self._store.me or self._handle(sync.Announced(author, announcement))

    def _handle(self, event: sync.Event) -> bool:
        """Take one event; whether the peer kept to the protocol."""
        faultless = True
        for effect in self._sync.handle(event, trio.current_time()) if self._nursery is not None else ():
            match effect:
                case sync.AskHeads(peer, heads_request):
                    self._call(peer, self._ask_heads, heads_request)
                case sync.AskRange(peer, range_request):
                    self._call(peer, self._ask_range, range_request)
                case sync.Fault(peer, error):
                    faultless = False
                    self.faults[str(error.code)] += 1
                    log.debug("a peer broke the claim protocol", peer=short(peer), reason=error.message)
                case sync.Finished(peer, inserted):
                    if (open_call := self._calling.pop(peer, None)) is not None:
                        open_call.cancel()
                    if inserted:
                        log.debug("claims pulled", peer=short(peer), inserted=inserted, total=len(self._store.replica))

        return faultless

    def _call(self, peer: PeerId, ask: "Callable[[PeerId, Any], Awaitable[sync.Event]]", request: Any) -> None:
        """Ask one thing of `peer`; a newer question, or the end of the exchange, cancels what is still open."""

        async def run(scope: trio.CancelScope) -> None:
            answer: sync.Event = sync.CallFailed(peer)
            with scope:
                try:
                    answer = await ask(peer, request)
                except RemoteError as error:
                    if error.code in (Code.MALFORMED, Code.OVERSIZED):
                        self.faults[str(error.code)] += 1
                    log.debug("claims could not be had", peer=short(peer), reason=str(error))
            if not scope.cancel_called:
                self._calling.pop(peer, None)
                self._handle(answer)

        if self._nursery is not None:
            self._calling[peer] = trio.CancelScope()
            self._nursery.start_soon(run, self._calling[peer])

    async def _ask_heads(self, peer: PeerId, request: sync_messages.HeadsRequest) -> sync.Event:
        body = await self._calls.unary(peer, sync_messages.HEADS_METHOD, encode(request), timeout=_CALL_SECONDS)
        return sync.HeadsArrived(peer, decode(sync_messages.HeadsReply, body))

    async def _ask_range(self, peer: PeerId, request: sync_messages.RangeRequest) -> sync.Event:
        scope = self._calling[peer]
        async with self._calls.stream(peer, sync_messages.RANGE_METHOD, encode(request), timeout=_CALL_SECONDS) as chunks:
            async for raw in chunks:
                self._handle(sync.ChunkArrived(peer, decode(sync_messages.RangeChunk, raw)))
                if scope.cancel_called:
                    break  # that chunk was the last that this peer may give
                await trio.lowlevel.checkpoint()  # a chunk costs some 60 verifications
        return sync.RangeEnded(peer)

    async def _announce_news(self) -> None:
        while True:
            await self._news.wait()
            await trio.sleep(_ANNOUNCE_SECONDS)
            self._news = trio.Event()
            proofs = tuple(fork.proof for fork in self._store.replica.forks())
            announcement = sync_messages.announce(self._store.replica, self._store.me, proofs)
            try:
                await self._transport.publish(sync_messages.TOPIC, encode(announcement))
            except TransportError as error:
                log.debug("news of claims was not sent", reason=str(error))
