"""Carries out what `crdt_store.sync` decides: calls to peers, answers to them, gossip, and work that must not hold up the loop.

Signatures are checked and disks written in another thread. Between two signatures (0.07 ms each, in which others run) it needs
the interpreter's lock, which a busy loop gives back only every 5 ms: so it bounds how late the loop is, more than it hastens.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

import structlog
import trio

from crdt_store import sync, sync_events, sync_messages
from crdt_store.forks import Fork, ForkProof
from crdt_store.store import ClaimStore
from daemon.admission import PeerSlots
from daemon.calls import Calls, InboundCall
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

_SAVE_SECONDS = 0.1
"""Copies of others' claims wait this long for more: a transaction costs as much as fifty of them, and peers give them again."""

_COMPACT_SECONDS = 600.0
_COMPACT_AT_ONCE = 4
_COMPACT_PAUSE = 0.05
"""Checkpoints are made every ten minutes, 4 of them in 4 ms, and then others' turn comes: a tenth of a core at most."""

_MAX_PROOFS = 256
"""Fork proofs that wait to be announced; what is beyond reaches others as they sync."""

T = TypeVar("T")
Aside = Callable[[Callable[[], T]], Awaitable[T]]
"""Runs a function in another thread and waits for it."""


async def in_thread(work: Callable[[], Any]) -> Any:
    """`Aside` with a real thread. (A virtual clock would run on meanwhile: simulations give a function that works inline.)"""
    return await trio.to_thread.run_sync(work)


class ClaimSync:
    """Exchanges claims with peers. `aside` is `in_thread` but in simulations."""

    def __init__(self, store: ClaimStore, calls: Calls, transport: Transport, rng: Random, aside: "Aside[Any]") -> None:
        self._store = store
        self._calls = calls
        self._transport = transport
        self._rng = rng
        self._aside = aside
        self._sync = sync.Sync(store)
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()
        self._unsaved = trio.Event()
        self._proofs: deque[ForkProof] = deque(maxlen=_MAX_PROOFS)
        self._served = PeerSlots(MAX_SERVED)
        self._calling: dict[PeerId, trio.CancelScope] = {}
        self._checking = trio.Lock()
        """One thread checks, a chunk at a time and peers in turn: what the first one brings, the next one's chunk need not."""
        self.storing = trio.Lock()
        """Held while the storage is written."""
        self.faults: Counter[str] = Counter()
        self.proved: Callable[[Fork], None] = lambda _: None
        """Told of forks that claims given to us proved, where nobody gave the proof."""

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
                nursery.start_soon(self._save)
                nursery.start_soon(self._compact)
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
        self._handle(sync_events.Begin(peer))

    def busy(self, peer: PeerId) -> bool:
        """Whether an exchange with `peer` is under way."""
        return self._sync.busy(peer)

    def shunned(self, peer: PeerId) -> bool:
        """Whether `peer` lied so often that it is not asked now."""
        return self._sync.shunned(peer, trio.current_time())

    def announce(self) -> None:
        """Our log grew: tell everybody soon."""
        self._news.set()

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
        return author == self._store.me or self._handle(sync_events.Announced(author, announcement))

    def _handle(self, event: sync_events.Event) -> bool:
        """Take one event; whether the peer kept to the protocol."""
        if self._nursery is None:
            return True
        effects = self._sync.handle(event, trio.current_time())
        for effect in effects:
            self._carry_out(effect)
        learned = self._store.take_new_forks()
        if learned and not isinstance(event, sync_events.Announced):  # what came by gossip has reached everybody
            self._proofs.extend(fork.proof for fork in learned)
            self._news.set()
        for fork in self._store.take_proved_forks():
            self.proved(fork)
        if self._store.unsaved:
            self._unsaved.set()
        return not any(isinstance(effect, sync_events.Fault) for effect in effects)

    def _carry_out(self, effect: sync_events.Effect) -> None:
        match effect:
            case sync_events.AskHeads(peer, heads_request):
                self._call(peer, self._ask_heads, heads_request)
            case sync_events.AskRange(peer, range_request):
                self._call(peer, self._ask_range, range_request)
            case sync_events.Fault(peer, error):
                self.faults[str(error.code)] += 1
                log.debug("a peer broke the claim protocol", peer=short(peer), reason=error.message)
            case sync_events.Finished(peer, inserted):
                if (open_call := self._calling.pop(peer, None)) is not None:
                    open_call.cancel()
                if inserted:
                    log.debug("claims pulled", peer=short(peer), inserted=inserted, total=len(self._store.replica))

    def _call(self, peer: PeerId, ask: "Callable[[PeerId, Any], Awaitable[sync_events.Event]]", request: Any) -> None:
        """Ask one thing of `peer`; a newer question, or the end of the exchange, cancels what is still open."""

        async def run(scope: trio.CancelScope) -> None:
            if scope.cancel_called:
                return  # the exchange ended before this began, and what it is known by is gone
            answer: sync_events.Event = sync_events.CallFailed(peer)
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

    async def _ask_heads(self, peer: PeerId, request: sync_messages.HeadsRequest) -> sync_events.Event:
        body = await self._calls.unary(peer, sync_messages.HEADS_METHOD, encode(request), timeout=_CALL_SECONDS)
        return sync_events.HeadsArrived(peer, decode(sync_messages.HeadsReply, body))

    async def _ask_range(self, peer: PeerId, request: sync_messages.RangeRequest) -> sync_events.Event:
        scope = self._calling[peer]
        async with self._calls.stream(peer, sync_messages.RANGE_METHOD, encode(request), timeout=_CALL_SECONDS) as chunks:
            async for raw in chunks:
                await self._take(sync_events.ChunkArrived(peer, decode(sync_messages.RangeChunk, raw)))
                if scope.cancel_called:
                    break  # that chunk was the last that this peer may give
        return sync_events.RangeEnded(peer)

    async def _take(self, arrived: sync_events.ChunkArrived) -> None:
        """One chunk: sorted out, its signatures checked aside, taken in."""
        async with self._checking:
            for effect in self._sync.handle(arrived, trio.current_time()):
                if isinstance(effect, sync_events.Verify):
                    verify = effect
                    break
                self._carry_out(effect)
            else:
                return
            if verify.at <= trio.current_time():
                await self._check(verify)
                return
        await trio.sleep_until(verify.at)  # over its allowance: others go first
        async with self._checking:
            await self._check(verify)

    async def _check(self, verify: sync_events.Verify) -> None:
        self._handle(await self._aside(lambda: sync_events.check(verify)))

    async def _save(self) -> None:
        while True:
            await self._unsaved.wait()
            await trio.sleep(_SAVE_SECONDS)
            self._unsaved = trio.Event()
            async with self.storing:
                await self._aside(self._store.save)

    async def _compact(self) -> None:
        """Older claims lose their signatures to checkpoints, a few at a time, so that no call waits for it."""
        while True:
            await trio.sleep(_COMPACT_SECONDS * self._rng.uniform(0.8, 1.2))
            made = False
            for issuer in self._store.replica.issuers():
                while self._store.compact(issuer, _COMPACT_AT_ONCE):
                    made = True
                    self._unsaved.set()
                    await trio.sleep(_COMPACT_PAUSE)
                await trio.lowlevel.checkpoint()
            if made:
                self._sync.made_room()

    async def _announce_news(self) -> None:
        while True:
            await self._news.wait()
            await trio.sleep(_ANNOUNCE_SECONDS)
            self._news = trio.Event()
            proofs = sync_messages.take_proofs(self._proofs)
            announcement = sync_messages.announce(self._store.replica, self._store.me, proofs)
            if self._proofs:
                self._news.set()
            try:
                await self._transport.publish(sync_messages.TOPIC, encode(announcement))
            except TransportError as error:
                log.debug("news of claims was not sent", reason=str(error))
