"""Serves this node's engine to peers and to the local user alike: admission by bounded slots, then tokens as they come."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from daemon.calls import InboundCall
from daemon.engine.interface import Chunk, Engine, EngineError, EngineState
from daemon.metrics import Metrics
from protocol.inference import Completion, items, read_job, write_completion
from protocol.job import Job, Turn, Usage
from protocol.wire.errors import Code, RemoteError

QUEUE_SECONDS = 5.0
"""The longest wait for a slot; beyond it another peer serves sooner than we do."""


class Serving:
    """Admission and generation on one engine. `busy` counts what runs and what waits, as offers and presence report it."""

    def __init__(self, engine: Engine | None, queue: int, metrics: Metrics) -> None:
        """`queue` is how many requests may wait for a slot; more are told at once to go elsewhere."""
        self._engine = engine
        self._queue = queue
        self._metrics = metrics
        self._limiter: trio.CapacityLimiter | None = None
        self.busy = 0

    @property
    def engine(self) -> Engine | None:
        return self._engine

    async def handle_infer(self, call: InboundCall) -> bytes:
        """RPC method "infer"."""
        outcome = "error"
        try:
            job = read_job(call.body)
            completion = await self._stream(job, call.send)
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
                    await send(item)
                if chunk.finish_reason is not None:
                    last = chunk
        return Completion(last.finish_reason or "stop", last.usage or Usage())

    @asynccontextmanager
    async def generate(self, job: Job) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Stream a completion of our own engine; raises RemoteError(not_found | overloaded | engine_failed)."""
        engine = self._ready_engine(job.model)
        async with self._slot(engine):
            try:
                async with engine.generate(job) as chunks:
                    yield chunks
            except EngineError as error:
                raise RemoteError(Code.ENGINE_FAILED, str(error)) from None

    async def choose(self, turns: tuple[Turn, ...], choices: tuple[str, ...]) -> tuple[float, ...]:
        """Log-probabilities of one-token choices; raises RemoteError(not_found | overloaded | engine_failed)."""
        engine = self._ready_engine("")
        async with self._slot(engine):
            try:
                return await engine.choose(turns, choices)
            except EngineError as error:
                raise RemoteError(Code.ENGINE_FAILED, str(error)) from None

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
        if self.busy >= slots + self._queue:
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
