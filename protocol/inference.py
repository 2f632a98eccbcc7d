"""What crosses the wire when one peer completes a job for another: the job in, text out, and how it ended. Moves no bytes."""

from collections.abc import Iterator

from protocol.job import FinishReason, Job, Usage, check_job
from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import malformed
from protocol.wire.limits import MAX_FRAME_BYTES

METHOD = "infer"
"""Server-streamed: the body is a Job, each item is UTF-8 text, the final body is a Completion."""

MAX_ITEM_CHARS = 16 << 10
"""Characters of one item: at 4 bytes each still one 64 KiB chunk."""


class Completion(Message, frozen=True):
    """The final body: why the text ended and what it used."""

    finish_reason: FinishReason
    usage: Usage


def read_job(body: bytes) -> Job:
    """The job of a request; raises RemoteError(malformed | oversized)."""
    return check_job(decode(Job, body, MAX_FRAME_BYTES))


def items(text: str) -> Iterator[bytes]:
    """`text` as the bodies of items."""
    for start in range(0, len(text), MAX_ITEM_CHARS):
        yield text[start : start + MAX_ITEM_CHARS].encode()


def read_item(body: bytes) -> str:
    """The text of an item; raises RemoteError(malformed)."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise malformed("a piece of an answer is not UTF-8") from None


def write_completion(completion: Completion) -> bytes:
    """The final body's bytes."""
    return encode(completion)


def read_completion(body: bytes) -> Completion:
    """The final body; raises RemoteError(malformed)."""
    return decode(Completion, body, 256)
