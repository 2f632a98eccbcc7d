"""What crosses the wire when one peer turns texts into vectors for another: texts in, one vector an item, and the usage."""

import math
import sys
from array import array
from typing import Annotated

import msgspec

from protocol.wire.codec import Message, decode
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import MODEL_PATTERN
from protocol.wire.limits import MAX_CHUNK_BYTES, MAX_FRAME_BYTES, MAX_PROMPT_BYTES

METHOD = "embed"
"""Server-streamed: the body is an EmbedJob, item number n is the vector of text number n, the final body is Embedded."""

MAX_TEXTS = 256
FLOAT_BYTES = 4
MAX_DIMENSIONS = MAX_CHUNK_BYTES // FLOAT_BYTES

Text = Annotated[str, msgspec.Meta(min_length=1)]


class EmbedJob(Message, frozen=True):
    """Texts for one model, which is named: vectors of two models cannot be compared."""

    texts: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=MAX_TEXTS)]
    model: Annotated[str, msgspec.Meta(pattern=MODEL_PATTERN)]


class Embedded(Message, frozen=True):
    """The final body: tokens of all texts together."""

    prompt_tokens: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0


def check_embed_job(job: EmbedJob) -> EmbedJob:
    """`job` itself; raises RemoteError(oversized) over MAX_PROMPT_BYTES of UTF-8."""
    if (size := text_bytes(job)) > MAX_PROMPT_BYTES:
        raise RemoteError(Code.OVERSIZED, f"the texts have {size} bytes where {MAX_PROMPT_BYTES} are allowed")
    return job


def read_embed_job(body: bytes) -> EmbedJob:
    """The body of "embed"; raises RemoteError(malformed | oversized)."""
    return check_embed_job(decode(EmbedJob, body, MAX_FRAME_BYTES))


def read_embedded(body: bytes) -> Embedded:
    """The final body; raises RemoteError(malformed)."""
    return decode(Embedded, body, 64)


def text_bytes(job: EmbedJob) -> int:
    """All that the model is to read, in bytes of UTF-8."""
    return sum(len(text.encode()) for text in job.texts)


def write_vector(numbers: "array[float]") -> bytes:
    """A vector of 32-bit floats, little endian, as an item carries it."""
    if sys.byteorder == "little":
        return numbers.tobytes()
    swapped = array("f", numbers)
    swapped.byteswap()
    return swapped.tobytes()


def read_vector(raw: bytes, dimensions: int | None = None) -> "array[float]":
    """A vector of `dimensions` (None: any number, at least one) finite numbers; raises RemoteError(malformed)."""
    if not raw or len(raw) % FLOAT_BYTES or len(raw) > MAX_CHUNK_BYTES:
        raise malformed("a vector of no whole number of 32-bit floats")
    numbers = array("f", raw)
    if sys.byteorder != "little":
        numbers.byteswap()
    if dimensions is not None and len(numbers) != dimensions:
        raise malformed("two vectors of one answer differ in their dimensions")
    if not all(map(math.isfinite, numbers)):
        raise malformed("a vector holds what is no number")
    return numbers
