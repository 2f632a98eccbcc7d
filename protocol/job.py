"""What a user asks, as peers pass it to each other: bounded, typed, and with no field an engine could be harmed by."""

from enum import StrEnum
from typing import Annotated, Literal

import msgspec

from protocol.extras import Extras, check_extras
from protocol.wire.codec import Message
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import MODEL_PATTERN
from protocol.wire.limits import MAX_PROMPT_BYTES, MAX_TOKENS

MAX_TURNS = 256
MAX_STOPS = 4

StopText = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Role(StrEnum):
    """Who speaks in a turn (OpenAI chat roles that every engine knows)."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


class Turn(Message, frozen=True):
    """One turn of a conversation."""

    role: Role
    content: str


ROUTE_TOKENS = MAX_TOKENS
"""Of an answer by one peer whose length nobody named: it ends where the model ends it, or its context."""

ROUND_TOKENS = 256
"""Of each answer in a round whose length nobody named: all members pay for it, and judges read two."""


class Sampling(Message, frozen=True):
    """How an engine samples. Milli-units keep the wire free of floats: temperature_milli 700 is 0.7."""

    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] = ROUND_TOKENS
    temperature_milli: Annotated[int, msgspec.Meta(ge=0, le=2000)] = 0
    top_p_milli: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    stop: Annotated[tuple[StopText, ...], msgspec.Meta(max_length=MAX_STOPS)] = ()


class Job(Message, frozen=True):
    """What a user asks. `model` is a model's name, or "" for any; `extras` are for engines that have them, None asks for none."""

    turns: Annotated[tuple[Turn, ...], msgspec.Meta(min_length=1, max_length=MAX_TURNS)]
    sampling: Sampling = Sampling()
    model: Annotated[str, msgspec.Meta(pattern=rf"^\Z|{MODEL_PATTERN}")] = ""
    extras: Extras | None = None


FinishReason = Literal["stop", "length", "cancelled", "tool_calls"]


class Usage(Message, frozen=True):
    """Tokens of one completion."""

    prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    completion_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0


def check_job(job: Job) -> Job:
    """`job` itself; raises RemoteError(oversized) over MAX_PROMPT_BYTES of UTF-8, and (malformed) for extras out of bounds."""
    size = prompt_bytes(job)
    if size > MAX_PROMPT_BYTES:
        raise RemoteError(Code.OVERSIZED, f"the prompt has {size} bytes where {MAX_PROMPT_BYTES} are allowed")
    if job.extras is not None:
        check_extras(job.extras, len(job.turns))
    return job


def prompt_bytes(job: Job) -> int:
    """All that the model is to read: the turns, the tools and the calls made before, in bytes of UTF-8."""
    size = sum(len(turn.content.encode()) for turn in job.turns)
    if job.extras is not None:
        size += len(job.extras.tools) + sum(len(note.tool_calls) for note in job.extras.notes)
    return size
