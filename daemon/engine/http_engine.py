"""An engine behind an OpenAI-compatible server: its state, slots, generation and choices. Knows not whose server it is."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random

import structlog
import trio
from msgspec import structs

from daemon.engine import dialect as wire
from daemon.engine import likelihood as forced
from daemon.engine.child import ChildCommand
from daemon.engine.choices import FirstToken, normalised, unlisted
from daemon.engine.completions import CompletionClient, ServedModel
from daemon.engine.continuing import CannotContinue, Remainder, resumed_request, resumptions
from daemon.engine.dialect import CompletionEvent, Dialect, JsonObject, Transcriber
from daemon.engine.embeddings import BATCH_TEXTS
from daemon.engine.http_exchange import Server
from daemon.engine.interface import (
    Chunk,
    EngineError,
    EngineRefused,
    EngineState,
    EngineUnsupported,
    ModelDescription,
    Vectors,
)
from daemon.engine.lifecycle import LifecycleConfig, Stage
from daemon.engine.pace import Pace
from daemon.engine.supervisor import Supervisor
from protocol.delta import TokenLogprob
from protocol.extras import Extras, wanted
from protocol.inference import Begun
from protocol.job import Job, Role, Turn

_log = structlog.get_logger(__name__)
_WARM_UP = (Turn(Role.USER, "1"),)


@dataclass(frozen=True, slots=True)
class Serving:
    """What one kind of engine needs beyond HTTP. Times in seconds."""

    server: Server
    describe: Callable[[CompletionClient, ServedModel], Awaitable[ModelDescription]]
    """Called after each warm-up; raises EngineError."""
    dialect: Dialect
    model_name: str
    """As listed by the server; "" takes the first one listed."""
    slots: int
    command: ChildCommand | None
    lifecycle: LifecycleConfig
    health_timeout: float = 2.0
    warm_up_timeout: float = 120.0
    embed_timeout: float = 120.0
    """Of one request for vectors: BATCH_TEXTS texts."""


class HttpEngine:
    """The one implementation of `Engine`."""

    def __init__(self, serving: Serving, rng: Random) -> None:
        self._serving = serving
        self._rng = rng
        self._state = EngineState.STARTING
        self._reason = "the engine is starting"
        self._changed = trio.Event()
        self._pace = Pace()
        self._client = CompletionClient(serving.dialect, serving.server, self._pace)
        self._listed: ServedModel | None = None
        self._model: ModelDescription | None = None
        self._slots = trio.CapacityLimiter(serving.slots)
        self._supervisor: Supervisor | None = None
        self._top = 0
        self._said_clamped = False
        self._forcings = list(serving.dialect.forcings)

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def model(self) -> ModelDescription | None:
        return self._model

    @property
    def busy(self) -> int:
        """Requests that the engine is working on now, 0..slots."""
        return int(self._slots.borrowed_tokens)

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is none."""
        return None if self._supervisor is None else self._supervisor.pid

    @property
    def last_output(self) -> list[str]:
        """The last lines that the child wrote, for the owner's report; may hold paths."""
        return [] if self._supervisor is None else list(self._supervisor.tail)

    @asynccontextmanager
    async def generate(self, job: Job, begun: Begun | None = None) -> AsyncGenerator[AsyncIterator[Chunk], None]:
        """Stream the completion of `job`, or what follows `begun`; the last chunk carries the finish reason and the usage.

        Raises EngineError.
        """
        client, served = self._serving_now()
        wire.check_features(job, self._model.features if self._model is not None else frozenset())
        body = wire.completion_request(job, served.id, self._serving.dialect)
        if begun is None:
            try:
                async with _borrowed(self._slots):
                    started = trio.current_time()
                    async with client.stream(body) as events, aclosing(_chunks(events, job.extras, started)) as chunks:
                        yield chunks
            except EngineRefused as error:
                raise _unsupported(error, job.extras) or error from None
            return
        if job.extras is not None and (job.extras.tools or job.extras.top_logprobs >= 0):
            raise CannotContinue("an answer with tools or log-probabilities is not continued")
        async with _borrowed(self._slots), aclosing(self._rest(client, body, job, begun)) as chunks:
            yield chunks

    async def _rest(self, client: CompletionClient, request: JsonObject, job: Job, begun: Begun) -> AsyncGenerator[Chunk, None]:
        """What follows `begun`, the next way being tried where the engine refuses one before anything new was said."""
        ways = resumptions(job, begun, self._serving.dialect)
        for way in ways:
            remainder, is_new = Remainder(way, begun), False
            body = resumed_request(request, way, begun, self._serving.dialect)
            try:
                async with client.stream(body) as events, aclosing(_chunks(events, None)) as chunks:
                    async for chunk in chunks:
                        rest = remainder.of(chunk)
                        if rest.text or rest.finish_reason is not None:
                            is_new = True
                            yield rest
                return
            except EngineRefused:
                if is_new or way is ways[-1]:
                    raise

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One vector a text; raises EngineError, EngineUnsupported where the engine gives none."""
        client, served = self._serving_now()
        if self._model is None or not self._model.embeds:
            raise EngineUnsupported("this model's engine gives no embeddings")
        parts = []
        async with _borrowed(self._slots):
            for start in range(0, len(texts), BATCH_TEXTS):
                batch = texts[start : start + BATCH_TEXTS]
                parts.append(await client.embed(batch, served.id, self._serving.embed_timeout))
        vectors = tuple(vector for part in parts for vector in part.vectors)
        if len({len(vector) for vector in vectors}) > 1:
            raise EngineError("the engine gave vectors of several dimensions")
        return Vectors(vectors, sum(part.prompt_tokens for part in parts))

    async def choose(self, turns: Sequence[Turn], choices: Sequence[str]) -> tuple[float, ...]:
        """Natural-log probability of each one-token choice, normalised over the choices; raises EngineError."""
        if len(choices) < 2 or len(set(choices)) < len(choices) or not all(choice.strip() == choice != "" for choice in choices):
            raise EngineError("a choice needs two or more different words")
        client, served = self._serving_now()
        async with _borrowed(self._slots):
            said = await self._first_token(client, served, turns, choices)
            known = dict(said.logprobs)
            if known and self._serving.dialect.constrains_raw:
                for choice in unlisted(said, choices):
                    alone = await self._first_token(client, served, turns, (choice,))
                    known |= {choice: alone.logprobs[choice]} if choice in alone.logprobs else {}
        if not known and not self._said_clamped:
            self._said_clamped = True
            _log.warning("the engine gives no log-probabilities: judgements count its letter alone", model=served.id)
        return normalised(FirstToken(said.text, known), choices)

    async def likelihood(self, turns: Sequence[Turn], text: str, tokens: int) -> tuple[TokenLogprob, ...]:
        """The first `tokens` tokens of `text` as the next turn, with 20 rivals each; raises EngineError, EngineUnsupported."""
        client, served = self._serving_now()
        async with _borrowed(self._slots):
            while self._forcings:
                try:
                    return await self._forced(client, served, turns, text, tokens)
                except EngineUnsupported:
                    del self._forcings[0]
                except EngineRefused as error:
                    if self._serving.dialect.gives_logprobs or "context" in str(error):
                        raise
                    del self._forcings[0]  # a server that nobody knows refuses the field
            raise EngineUnsupported("'logprobs' of a given text are not to be had from this engine")

    async def _forced(
        self, client: CompletionClient, served: ServedModel, turns: Sequence[Turn], text: str, tokens: int
    ) -> tuple[TokenLogprob, ...]:
        dialect = self._serving.dialect
        if self._forcings[0] == "prompt":
            raw = await client.post(forced.prompt_request(turns, text, served.id, dialect), forced.MAX_PROMPT_REPLY_BYTES)
            return forced.read_prompt(raw, text, tokens)
        body = forced.grammar_request(turns, text, tokens, served.id, dialect)
        async with client.stream(body) as events, aclosing(_chunks(events, forced.LISTENING)) as chunks:
            return forced.said([chunk async for chunk in chunks], text)

    async def run(self) -> None:
        """Start, supervise and restart the engine until cancelled; leaves no process and no socket file behind."""
        supervisor = Supervisor(self._serving.command, self._probe, self._change, self._serving.lifecycle, self._rng)
        self._supervisor = supervisor
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pace.run)
                await supervisor.run()
                nursery.cancel_scope.cancel()
        finally:
            self._client.close()
            self._change(EngineState.STOPPED, "the engine was stopped")

    async def wait_ready(self) -> None:
        """Return once READY; raises EngineError once FAILED or STOPPED."""
        while self._state is not EngineState.READY:
            if self._state in (EngineState.FAILED, EngineState.STOPPED):
                raise EngineError(self._reason)
            await self._changed.wait()

    async def wait_changed(self) -> None:
        """Return at the next change of state or reason."""
        await self._changed.wait()

    def _change(self, state: EngineState, reason: str) -> None:
        self._state, self._reason = state, reason
        self._changed.set()
        self._changed = trio.Event()
        _log.info("engine", state=str(state), reason=reason)

    def _serving_now(self) -> tuple[CompletionClient, ServedModel]:
        if self._listed is None or self._state is not EngineState.READY:
            raise EngineError(f"the engine is {self._state}")
        return self._client, self._listed

    async def _first_token(
        self, client: CompletionClient, served: ServedModel, turns: Sequence[Turn], choices: Sequence[str]
    ) -> FirstToken:
        while True:
            top = wire.TOP_LOGPROBS[self._top]
            body = wire.choice_request(turns, choices, served.id, self._serving.dialect, top)
            try:
                async with client.stream(body) as events:
                    return FirstToken.of([event async for batch in events for event in batch])
            except EngineRefused:
                if not top or self._serving.dialect.gives_logprobs:
                    raise
                self._top += 1

    async def _probe(self, stage: Stage) -> None:
        client = self._client
        match stage:
            case Stage.HEALTH:
                await client.check_health(self._serving.health_timeout)
            case Stage.MODELS:
                self._listed = self._pick(await client.served_models(self._serving.health_timeout))
            case Stage.WARM_UP:
                await self._warm_up(client)

    def _pick(self, listed: Sequence[ServedModel]) -> ServedModel:
        wanted = self._serving.model_name
        for model in listed:
            if wanted in ("", model.id):
                return model
        raise EngineError(f"the server does not list the model {wanted}" if wanted else "the server lists no model")

    async def _warm_up(self, client: CompletionClient) -> None:
        assert self._listed is not None  # noqa: S101 - the MODELS stage passed
        # With log-probabilities where they are had: vLLM compiles their kernel at the first request that asks (9 to 20 s seen).
        top = wire.TOP_LOGPROBS[0] if self._serving.dialect.gives_logprobs else 0
        body = wire.choice_request(_WARM_UP, ("1", "2"), self._listed.id, self._serving.dialect, top)
        try:
            with trio.fail_after(self._serving.warm_up_timeout):
                async with client.stream(body) as events:
                    async for _ in events:
                        pass
                described = await self._serving.describe(client, self._listed)
                self._model = replace(described, embeds=await self._embeds(client, self._listed))
        except trio.TooSlowError:
            raise EngineError(f"the first completion took more than {self._serving.warm_up_timeout:g} s") from None

    async def _embeds(self, client: CompletionClient, served: ServedModel) -> bool:
        known = self._serving.dialect.embeds
        if known is not None:
            return known
        try:
            await client.embed(_WARM_UP[0].content, served.id, self._serving.health_timeout)
        except EngineError:
            return False
        return True


@asynccontextmanager
async def _borrowed(limiter: trio.CapacityLimiter) -> AsyncGenerator[None, None]:
    """One of the engine's slots; waits for a free one. Not tied to the task, which may hold a second one."""
    holder = object()
    try:
        limiter.acquire_on_behalf_of_nowait(holder)
    except trio.WouldBlock:
        await limiter.acquire_on_behalf_of(holder)
    try:
        yield
    finally:
        limiter.release_on_behalf_of(holder)


def _unsupported(error: EngineRefused, extras: Extras | None) -> EngineUnsupported | None:
    """What a server refuses of a job with extras, it refuses for them, unless it says that the prompt is too long."""
    asked = list(wanted(extras)) if extras is not None else []
    if not asked or "context" in str(error):
        return None
    return EngineUnsupported(f"'{asked[0]}' was not accepted: {error}")


async def _chunks(
    events: AsyncIterator[list[CompletionEvent]], extras: Extras | None, started: float | None = None
) -> AsyncGenerator[Chunk, None]:
    transcriber = Transcriber(extras)
    async for batch in events:
        for chunk in transcriber.chunks_of(batch):
            yield chunk
    yield structs.replace(transcriber.last(), engine_s=None if started is None else trio.current_time() - started)
