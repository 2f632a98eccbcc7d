"""Vectors for texts from an engine's /v1/embeddings: what is asked, and what its answers mean. Pure; asks nothing itself."""

import base64
import binascii
from array import array
from collections.abc import Sequence

import msgspec

from daemon.engine.dialect import JsonObject
from daemon.engine.interface import EngineError, Vectors
from protocol.embedding import MAX_DIMENSIONS, read_vector, write_vector
from protocol.wire.errors import RemoteError

PATH = "/v1/embeddings"

BATCH_TEXTS = 16
"""Of one request to the engine: what an engine that ignores the encoding answers with stays within MAX_REPLY_BYTES."""

MAX_REPLY_BYTES = BATCH_TEXTS * MAX_DIMENSIONS * 24
"""A number in decimal takes up to 24 characters."""


class _Entry(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Reply(msgspec.Struct):
    data: list[_Entry]
    usage: _Usage = msgspec.field(default_factory=_Usage)


def embedding_request(texts: Sequence[str], model: str) -> JsonObject:
    """The body of a request; base64 is a quarter of the decimals, and servers that do not know it ignore it."""
    return {"model": model, "input": list(texts), "encoding_format": "base64"}


def read_vectors(raw: bytes, count: int) -> Vectors:
    """The reply to a request of `count` texts; raises EngineError."""
    try:
        reply = msgspec.json.decode(raw, type=_Reply)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise EngineError("the engine's vectors are malformed") from None
    if sorted(entry.index for entry in reply.data) != list(range(count)) or not 0 <= reply.usage.prompt_tokens < 2**31:
        raise EngineError("the engine gave vectors for other texts than it was asked for")
    ordered = sorted(reply.data, key=lambda entry: entry.index)
    first = _numbers(ordered[0], None)
    return Vectors((first, *(_numbers(entry, len(first)) for entry in ordered[1:])), reply.usage.prompt_tokens)


def _numbers(entry: _Entry, dimensions: int | None) -> "array[float]":
    try:
        if isinstance(entry.embedding, str):
            return read_vector(base64.b64decode(entry.embedding, validate=True), dimensions)
        return read_vector(write_vector(array("f", entry.embedding)), dimensions)
    except (binascii.Error, OverflowError, RemoteError) as error:
        raise EngineError(f"the engine's vectors are malformed: {str(error)[:80]}") from None
