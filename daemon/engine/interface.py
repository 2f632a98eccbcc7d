"""What the daemon asks of any engine, and what an engine says of itself. Decides nothing about peers."""

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from protocol.delta import CallDelta, TokenLogprob
from protocol.extras import Feature
from protocol.inference import Begun
from protocol.job import FinishReason, Job, Turn, Usage


class EngineState(StrEnum):
    """STARTING until a warm-up completion returned; READY; RESTARTING after a crash; FAILED needs a person."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What is served. `config_digest` is the hex SHA-256 over weights hash, dtype, quantization, engine and version."""

    name: str
    config_digest: str
    context_tokens: int
    engine: str
    engine_version: str
    judge_prompt: str
    """"compact" (the shipped tiny models) or "instructed" (a general chat model)."""
    slots: int
    """Requests the engine serves at once; more are queued or refused by the daemon."""
    features: frozenset[Feature] = frozenset()
    """What a job's extras may ask of it."""
    embeds: bool = False
    """Whether it gives vectors for texts."""


class Chunk(msgspec.Struct, frozen=True):
    """A piece of a completion: text, parts of calls, log-probabilities, or (in the last one) why it ended and what it used."""

    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    tool_calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    engine_s: float | None = None
    """In the last chunk: seconds that the engine took for all of it, where that is known."""
    tokens: int = 1
    """That `text` stands for, at least; says nothing where there is no text."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector a text, in their order, and the tokens of all texts."""

    vectors: "tuple[array[float], ...]"
    prompt_tokens: int


class EngineError(Exception):
    """The engine could not do it. The message is one clear sentence without paths of this box."""


class EngineRefused(EngineError):
    """This job will never fit this engine, such as a prompt beyond its context: the asker's fault."""


class EngineUnsupported(EngineRefused):
    """This engine has not what the job's extras ask for. The message names the request's parameter in quotes."""


class Engine(Protocol):
    """One model. `generate` is a context manager so that leaving it, also by cancellation, stops the engine's work within 1 s."""

    @property
    def state(self) -> EngineState: ...

    @property
    def reason(self) -> str:
        """Why the state is not READY, in one sentence; "" when it is."""

    @property
    def model(self) -> ModelDescription | None:
        """None until first ready."""

    def generate(self, job: Job, begun: Begun | None = None) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
        """Stream the completion of `job`, or what follows `begun`, which the same config gave; raises EngineError."""

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One vector a text, all by one model; raises EngineError, EngineUnsupported where the engine gives none."""

    async def choose(self, turns: Sequence[Turn], choices: Sequence[str]) -> tuple[float, ...]:
        """Natural-log probability of each one-token choice as the next turn, normalised over the choices; raises EngineError."""

    async def likelihood(self, turns: Sequence[Turn], text: str, tokens: int) -> tuple[TokenLogprob, ...]:
        """The first `tokens` tokens of `text` as the next turn, as the engine cuts it, with up to 20 rivals each.

        Raises EngineError, and EngineUnsupported where the engine cannot be made to say a given text.
        """

    async def run(self) -> None:
        """Start, supervise and restart the engine until cancelled; leaves no process and no socket file behind."""

    async def wait_ready(self) -> None:
        """Return once READY; raises EngineError once FAILED or STOPPED."""
