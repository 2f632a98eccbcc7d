"""Serves this node's engine to peers and to the local user alike: a fair wait for a slot, then tokens as they come."""

from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager

import msgspec
import trio

from daemon.admission import FairSlots, PeerSlots, Ticket
from daemon.calls import InboundCall
from daemon.config import LimitsConfig
from daemon.engine.continuing import CannotContinue
from daemon.engine.interface import Chunk, Engine, EngineError, EngineRefused, EngineState, EngineUnsupported, Vectors
from daemon.first_token import LEAST_SAMPLES, RecentTimes
from daemon.metrics import Metrics
from daemon.patience import Patience
from dht.presence import MAX_BUSY, MAX_TOLD_MS
from dht.standing import Load
from protocol import likelihood
from protocol.delta import delta_items
from protocol.embedding import Embedded, EmbedJob, read_embed_job, text_bytes, write_vector
from protocol.inference import Begun, Completion, as_read, read_continuation, read_job, write_completion
from protocol.job import Job, Turn, Usage, prompt_bytes
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId

LOCAL = "local user"
ROUNDS = "rounds"
"""Callers of our own among the peers. All rounds are one, however many there are: an invitation buys no turn in the queue."""

_WEIGHTS: dict[Hashable, float] = {LOCAL: 4.0}
"""Turns of a caller for slots where more than one waits, to a peer's one: the box is its owner's first, and not alone."""


class Serving:
    """Admission and generation on one engine. `busy` counts what runs and what waits, as offers and presence report it."""

    def __init__(
        self,
        engine: Engine | None,
        limits: LimitsConfig,
        metrics: Metrics,
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._patience = patience
        self._slots = FairSlots(1, limits.queue, _WEIGHTS)
        self._of_peer = PeerSlots(limits.peer_calls)
        self._first_tokens = RecentTimes()

    @property
    def busy(self) -> int:
        """Requests that run or wait."""
        return self._slots.running + self._slots.waiting

    @property
    def queued_seconds(self) -> float:
        """How long a new request would take, by those before it and what requests took lately; 0 where a slot is free."""
        return self._slots.queued_s

    def load(self, now: float) -> Load:
        """What we tell others of our load, `now` on trio's clock."""
        slots, times = self._slots, self._first_tokens
        return Load(
            min(self.busy, MAX_BUSY),
            min(slots.waiting, MAX_BUSY),
            _told_ms(times.quantile(0.5, now)),
            _told_ms(times.quantile(0.95, now, LEAST_SAMPLES)),
            _told_ms(slots.mean_s),
        )

    @property
    def engine(self) -> Engine | None:
        return self._engine

    @property
    def ready(self) -> bool:
        """Whether the engine answers now."""
        return self._engine is not None and self._engine.state is EngineState.READY

    def within_limits(self, job: Job, begun: Begun | None = None) -> Job:
        """A peer's job as we serve it: its tokens cut to our limit; raises RemoteError(oversized) for too long a prompt."""
        size = prompt_bytes(as_read(job, begun))
        if size > self._limits.prompt_bytes:
            reason = f"the prompt has {size} bytes where this peer takes {self._limits.prompt_bytes}"
            raise RemoteError(Code.OVERSIZED, reason)
        if job.sampling.max_tokens <= self._limits.max_tokens:
            return job
        return msgspec.structs.replace(job, sampling=msgspec.structs.replace(job.sampling, max_tokens=self._limits.max_tokens))

    async def handle_infer(self, call: InboundCall) -> bytes:
        """RPC method "infer"."""
        return await self._serve(call, lambda: (read_job(call.body), None))

    async def handle_continue(self, call: InboundCall) -> bytes:
        """RPC method "infer.continue"."""

        def read() -> tuple[Job, Begun]:
            continuation = read_continuation(call.body)
            return continuation.job, continuation.begun

        return await self._serve(call, read)

    async def _serve(self, call: InboundCall, read: Callable[[], tuple[Job, Begun | None]]) -> bytes:
        with self._counted(call.peer):
            job, begun = read()
            return write_completion(await self._stream(call, self.within_limits(job, begun), begun))

    @contextmanager
    def _counted(self, peer: PeerId) -> Iterator[None]:
        """One call of `peer`, within what it may have open here, and counted by how it ended."""
        outcome = "error"
        try:
            with self._of_peer.hold(peer, self._slots.retry_after()):
                yield
            outcome = "ok"
        except RemoteError as error:
            outcome = str(error.code)
            raise
        except trio.Cancelled:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.served.labels(outcome).inc()

    async def _stream(self, call: InboundCall, job: Job, begun: Begun | None) -> Completion:
        last = Chunk("", "stop", Usage())
        started: float | None = trio.current_time()
        at_once = self._slots.free > 0
        async with self.generate(job, begun, call.peer) as chunks:
            async for chunk in chunks:
                if started is not None and chunk.text:
                    self._note_first_token(started, at_once)
                    started = None
                for item in delta_items(chunk.text, chunk.tool_calls, chunk.logprobs, chunk.tokens):
                    await self._send(call, item)
                if chunk.finish_reason is not None:
                    last = chunk
        return completion_of(last)

    async def _send(self, call: InboundCall, item: bytes) -> None:
        if call.send_now(item):
            return
        with trio.move_on_after(self._patience.reader) as patience:
            await call.send(item)
        if patience.cancelled_caught:
            raise RemoteError(Code.DEADLINE, f"nothing of the answer was taken for {self._patience.reader:g} s")

    def _note_first_token(self, started: float, at_once: bool) -> None:
        now = trio.current_time()
        self._metrics.first_token_seconds.observe(now - started)
        if at_once:  # a wait for a slot is told by the queue, and not twice
            self._first_tokens.note(now - started, now)

    async def handle_embed(self, call: InboundCall) -> bytes:
        """RPC method "embed"."""
        with self._counted(call.peer):
            job = read_embed_job(call.body)
            if (size := text_bytes(job)) > self._limits.prompt_bytes:
                reason = f"the texts have {size} bytes where this peer takes {self._limits.prompt_bytes}"
                raise RemoteError(Code.OVERSIZED, reason)
            made = await self.embed(job, call.peer)
            for vector in made.vectors:
                await self._send(call, write_vector(vector))
            return encode(Embedded(made.prompt_tokens))

    async def embed(self, job: EmbedJob, caller: Hashable = LOCAL) -> Vectors:
        """Vectors by our own engine; raises RemoteError as `generate` does."""
        engine = self._ready_engine(job.model)
        async with self._slot(engine, caller):
            try:
                return await engine.embed(job.texts)
            except EngineError as error:
                raise _fault_of(error) from None

    @asynccontextmanager
    async def generate(
        self, job: Job, begun: Begun | None = None, caller: Hashable = LOCAL
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream a completion of our own engine, or what follows `begun`; `caller` is whose turn in the queue it takes.

        Raises RemoteError(not_found | overloaded | oversized | refused | engine_failed).
        """
        engine = self._ready_engine(job.model)
        ticket = self._enter(engine, caller)
        try:  # not by way of `_slot`: each context manager that is entered costs a hundredth of a small answer
            if ticket.since is None:
                await self._turn(ticket)
            async with engine.generate(job, begun) as chunks:
                yield chunks
        except EngineError as error:
            raise _fault_of(error) from None
        finally:
            self._slots.leave(ticket, trio.current_time())

    async def choose(self, turns: tuple[Turn, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        """Log-probabilities of one-token choices, for a round; raises RemoteError as `generate` does."""
        engine = self._ready_engine("")
        async with self._slot(engine, ROUNDS):
            try:
                return await engine.choose(turns, choices)
            except EngineError as error:
                raise _fault_of(error) from None

    async def handle_likelihood(self, call: InboundCall) -> bytes:
        """RPC method "likelihood": how likely our model finds a text, in a turn of the peer's in the queue."""
        with self._of_peer.hold(call.peer, self._slots.retry_after()):
            request = likelihood.read_request(call.body)
            self.within_limits(request.job, Begun(request.text))
            return likelihood.write_reply(await self.likelihood(request, call.peer))

    async def likelihood(self, request: likelihood.LikelihoodRequest, caller: Hashable = LOCAL) -> tuple[likelihood.Weighed, ...]:
        """Our engine's log-probabilities of a text; raises RemoteError as `generate` does, also (unsupported)."""
        engine = self._ready_engine(request.job.model)
        if engine.model is None or engine.model.config_digest != request.config_digest:
            raise RemoteError(Code.NOT_FOUND, "this peer serves another configuration than the one that is to weigh the text")
        async with self._slot(engine, caller):
            try:
                found = await engine.likelihood(request.job.turns, request.text, request.tokens)
            except EngineError as error:
                raise _fault_of(error) from None
        return likelihood.weighed(found)

    def _ready_engine(self, model: str) -> Engine:
        engine = self._engine
        if engine is None or engine.model is None:
            raise RemoteError(Code.NOT_FOUND, "this peer serves no model")
        if model and model != engine.model.name:
            raise RemoteError(Code.NOT_FOUND, f"this peer does not serve {model}")
        if engine.state is not EngineState.READY:
            raise RemoteError(Code.OVERLOADED, f"the engine is not ready: {engine.reason}", retry_after=2.0)
        return engine

    @asynccontextmanager
    async def _slot(self, engine: Engine, caller: Hashable) -> AsyncIterator[None]:
        ticket = self._enter(engine, caller)
        try:
            if ticket.since is None:
                await self._turn(ticket)
            yield
        finally:
            self._slots.leave(ticket, trio.current_time())

    def _enter(self, engine: Engine, caller: Hashable) -> Ticket:
        now = trio.current_time()
        self._slots.resize(engine.model.slots if engine.model is not None else 1, now)  # another model's may be another number
        return self._slots.enter(caller, now)

    async def _turn(self, ticket: Ticket) -> None:
        """Wait until the ticket has its slot; raises RemoteError(overloaded) where it gets none in time."""
        with trio.move_on_after(self._patience.queue):
            await ticket.decided.wait()
        if ticket.refusal is not None:
            raise ticket.refusal
        if ticket.since is None:
            reason = f"no slot became free within {self._patience.queue:g} s"
            raise RemoteError(Code.OVERLOADED, reason, retry_after=max(self._patience.queue, self._slots.retry_after()))


def completion_of(last: Chunk) -> Completion:
    """How a completion ended, from its last chunk."""
    return Completion(last.finish_reason or "stop", last.usage or Usage(), round((last.engine_s or 0.0) * 1000))


def _told_ms(seconds: float | None) -> int:
    return 0 if seconds is None else max(1, min(MAX_TOLD_MS, round(seconds * 1000)))


def _fault_of(error: EngineError) -> RemoteError:
    """A job that never fits this engine is the asker's fault, an answer it would not have given is nobody's; all else is ours."""
    if isinstance(error, CannotContinue):
        return RemoteError(Code.REFUSED, str(error))
    if isinstance(error, EngineUnsupported):
        return RemoteError(Code.UNSUPPORTED, str(error))
    return RemoteError(Code.OVERSIZED if isinstance(error, EngineRefused) else Code.ENGINE_FAILED, str(error))
