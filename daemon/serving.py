"""Serves this node's engine to peers and to the local user alike: admission by bounded slots, then tokens as they come."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from daemon.admission import PeerSlots
from daemon.calls import InboundCall
from daemon.config import LimitsConfig
from daemon.engine.interface import Chunk, Engine, EngineError, EngineRefused, EngineState
from daemon.metrics import Metrics
from protocol.inference import Completion, items, read_job, write_completion
from protocol.job import Job, Turn, Usage
from protocol.wire.errors import Code, RemoteError

QUEUE_SECONDS = 5.0
"""The longest wait for a slot; beyond it another peer serves sooner than we do."""

READER_SECONDS = 30.0
"""A peer that takes nothing of its answer for this long gives its slot back: others wait for it."""


class Serving:
    """Admission and generation on one engine. `busy` counts what runs and what waits, as offers and presence report it."""

    def __init__(self, engine: Engine | None, limits: LimitsConfig, metrics: Metrics) -> None:
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._limiter: trio.CapacityLimiter | None = None
        self._of_peer = PeerSlots(limits.peer_calls)
        self.busy = 0

    @property
    def engine(self) -> Engine | None:
        return self._engine

    @property
    def ready(self) -> bool:
        """Whether the engine answers now."""
        return self._engine is not None and self._engine.state is EngineState.READY

    def within_limits(self, job: Job) -> Job:
        """A peer's job as we serve it: its tokens cut to our limit; raises RemoteError(oversized) for too long a prompt."""
        size = sum(len(turn.content.encode()) for turn in job.turns)
        if size > self._limits.prompt_bytes:
            reason = f"the prompt has {size} bytes where this peer takes {self._limits.prompt_bytes}"
            raise RemoteError(Code.OVERSIZED, reason)
        if job.sampling.max_tokens <= self._limits.max_tokens:
            return job
        return msgspec.structs.replace(job, sampling=msgspec.structs.replace(job.sampling, max_tokens=self._limits.max_tokens))

    async def handle_infer(self, call: InboundCall) -> bytes:
        """RPC method "infer"."""
        outcome = "error"
        try:
            with self._of_peer.hold(call.peer):
                completion = await self._stream(self.within_limits(read_job(call.body)), call.send)
            outcome = "ok"
            return write_completion(completion)
        except RemoteError as error:
            outcome = str(error.code)
            raise
        except trio.Cancelled:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.served.labels(outcome).inc()

    async def _stream(self, job: Job, send: Callable[[bytes], Awaitable[None]]) -> Completion:
        last = Chunk("", "stop", Usage())
        started: float | None = trio.current_time()
        async with self.generate(job) as chunks:
            async for chunk in chunks:
                if started is not None and chunk.text:
                    self._metrics.first_token_seconds.observe(trio.current_time() - started)
                    started = None
                for item in items(chunk.text):
                    with trio.move_on_after(READER_SECONDS) as patience:
                        await send(item)
                    if patience.cancelled_caught:
                        raise RemoteError(Code.DEADLINE, f"nothing of the answer was taken for {READER_SECONDS:.0f} s")
                if chunk.finish_reason is not None:
                    last = chunk
        return Completion(last.finish_reason or "stop", last.usage or Usage())

    @asynccontextmanager
    async def generate(self, job: Job) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream a completion of our own engine; raises RemoteError(not_found | overloaded | oversized | engine_failed)."""
        engine = self._ready_engine(job.model)
        async with self._slot(engine):
            try:
                async with engine.generate(job) as chunks:
                    yield chunks
            except EngineError as error:
                raise _fault_of(error) from None

    async def choose(self, turns: tuple[Turn, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        """Log-probabilities of one-token choices; raises RemoteError as `generate` does."""
        engine = self._ready_engine("")
        async with self._slot(engine):
            try:
                return await engine.choose(turns, choices)
            except EngineError as error:
                raise _fault_of(error) from None

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
    async def _slot(self, engine: Engine) -> AsyncIterator[None]:
        slots = engine.model.slots if engine.model is not None else 1
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(slots)
        self._limiter.total_tokens = slots  # another model's, where the engine's server was given one
        if self.busy >= slots + self._limits.queue:
            raise RemoteError(Code.OVERLOADED, "every slot is busy and the queue is full", retry_after=1.0)
        self.busy += 1
        try:
            token = object()
            with trio.move_on_after(QUEUE_SECONDS) as wait:
                await self._limiter.acquire_on_behalf_of(token)
            if wait.cancelled_caught:
                raise RemoteError(Code.OVERLOADED, f"no slot became free within {QUEUE_SECONDS:.0f} s", retry_after=QUEUE_SECONDS)
            try:
                yield
            finally:
                self._limiter.release_on_behalf_of(token)
        finally:
            self.busy -= 1


def _fault_of(error: EngineError) -> RemoteError:
    """A job that never fits this engine is the asker's fault; anything else is ours."""
    return RemoteError(Code.OVERSIZED if isinstance(error, EngineRefused) else Code.ENGINE_FAILED, str(error))
