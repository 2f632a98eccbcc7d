"""What crosses the wire when one peer completes a job for another: the job in, text out, and how it ended. Moves no bytes."""

from typing import Annotated

import msgspec

from protocol.job import FinishReason, Job, Role, Turn, Usage, check_job
from protocol.wire.codec import Message, decode, encode
from protocol.wire.limits import MAX_FRAME_BYTES, MAX_PROMPT_BYTES, MAX_TOKENS

METHOD = "infer"
"""Server-streamed: the body is a Job, each item is a piece of the answer (protocol.delta), the final body is a Completion."""

CONTINUE_METHOD = "infer.continue"
"""As `infer`, but the body is a Continuation and the items are the rest of its answer. A method of its own, so that a peer which
does not know it refuses; one that overlooked a field would begin anew, and the user would read the text twice."""


class Begun(Message, frozen=True):
    """The part of an answer that a peer gave before it failed: its text, and how many tokens that was at least."""

    text: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_PROMPT_BYTES)]
    tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] = 0


class Continuation(Message, frozen=True):
    """An answer to be completed. The job is the original one: its `max_tokens` is that of the whole answer."""

    job: Job
    begun: Begun


class Completion(Message, frozen=True):
    """The final body: why the text ended and what it used."""

    finish_reason: FinishReason
    usage: Usage
    engine_ms: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    """Milliseconds from the engine's slot to its last word, as the serving peer says; 0 where it does not."""


def read_job(body: bytes) -> Job:
    """The job of a request; raises RemoteError(malformed | oversized)."""
    return check_job(decode(Job, body, MAX_FRAME_BYTES))


def read_continuation(body: bytes) -> Continuation:
    """The body of "infer.continue", the begun text counted as prompt; raises RemoteError(malformed | oversized)."""
    continuation = decode(Continuation, body, MAX_FRAME_BYTES)
    check_job(as_read(continuation.job, continuation.begun))
    return continuation


def as_read(job: Job, begun: Begun | None) -> Job:
    """The job with all that an engine has to read for it: what was begun as the last turn."""
    if begun is None:
        return job
    return msgspec.structs.replace(job, turns=(*job.turns, Turn(Role.ASSISTANT, begun.text)))


def write_completion(completion: Completion) -> bytes:
    """The final body's bytes."""
    return encode(completion)


def read_completion(body: bytes) -> Completion:
    """The final body; raises RemoteError(malformed)."""
    return decode(Completion, body, 256)
