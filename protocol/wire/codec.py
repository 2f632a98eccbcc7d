"""MessagePack of typed structs, and length-prefixed frames. Decides what bytes are well formed; never what they mean."""

from collections.abc import Callable, Hashable
from functools import cache
from struct import Struct
from typing import Any, TypeVar, cast

import msgspec

from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.limits import MAX_FRAME_BYTES

_encoder = msgspec.msgpack.Encoder()

T = TypeVar("T")

LENGTH_BYTES = 4
_LENGTH = Struct("!I")

_SMALL_BYTES = 4 << 10
"""Shorter pieces of an unfinished frame are joined as they come."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of every wire message: an array of fields in declared order. Fields are appended with a default, never moved.

    A subclass repeats `frozen=True`, which the type checker needs to see.
    """


@cache
def _decoder(kind: Hashable) -> "msgspec.msgpack.Decoder[Any]":
    return msgspec.msgpack.Decoder(kind)


def encode(value: object) -> bytes:
    """MessagePack bytes of a `Message` (or a plain value made of them)."""
    return _encoder.encode(value)


def decoder(kind: type[T], limit: int = MAX_FRAME_BYTES) -> Callable[[bytes | memoryview], T]:
    """`decode` with its kind and limit chosen beforehand: what decodes once per token has no time to look them up."""
    typed = _decoder(cast("Hashable", kind)).decode

    def decode_one(raw: bytes | memoryview) -> T:
        if len(raw) > limit:
            raise RemoteError(Code.OVERSIZED, f"{len(raw)} bytes where {limit} are allowed")
        try:
            value: T = typed(raw)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise malformed(f"not a {getattr(kind, '__name__', kind)}: {str(error)[:120]}") from None
        return value

    return decode_one


def decode(kind: type[T], raw: bytes | memoryview, limit: int = MAX_FRAME_BYTES) -> T:
    """Decode `raw` into exactly `kind`; raises RemoteError(oversized | malformed).

    A typed decode refuses a bomb of nested arrays at its first byte.
    """
    return decoder(kind, limit)(raw)


def encode_frame(value: object) -> bytearray:
    """`frame(encode(value))`, which a big value comes out of without a second copy of it; raises RemoteError(oversized)."""
    raw = bytearray(LENGTH_BYTES)
    _encoder.encode_into(value, raw, LENGTH_BYTES)
    size = len(raw) - LENGTH_BYTES
    if size > MAX_FRAME_BYTES:
        raise RemoteError(Code.OVERSIZED, f"a frame of {size} bytes where {MAX_FRAME_BYTES} are allowed")
    _LENGTH.pack_into(raw, 0, size)
    return raw


def frame(payload: bytes) -> bytes:
    """`payload` behind its length (4 bytes, big endian)."""
    if len(payload) > MAX_FRAME_BYTES:
        raise RemoteError(Code.OVERSIZED, f"a frame of {len(payload)} bytes where {MAX_FRAME_BYTES} are allowed")
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class FrameReader:
    """Cuts a byte stream into frames; holds at most one unfinished frame of `limit` bytes."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._parts: list[bytes | bytearray | memoryview] = []
        self._have = 0
        self._need = LENGTH_BYTES

    def feed(self, received: bytes | memoryview) -> list[memoryview]:
        """The frames completed by `received`; raises RemoteError(oversized) as soon as a length claims more than the limit."""
        self._have += len(received)
        frames: list[memoryview] = []
        if self._have < self._need:
            self._keep(received)
            return frames
        joined = b"".join((*self._parts, received)) if self._parts else received
        view, start = memoryview(joined), 0
        self._need = LENGTH_BYTES
        available = len(joined)
        while available - start >= LENGTH_BYTES:
            (size,) = _LENGTH.unpack_from(joined, start)
            if size > self._limit:
                raise RemoteError(Code.OVERSIZED, f"a frame claims {size} bytes where {self._limit} are allowed")
            end = start + LENGTH_BYTES + size
            if available < end:
                self._need = end - start
                break
            frames.append(view[start + LENGTH_BYTES : end])
            start = end
        self._have = available - start
        self._parts = [joined[start:]] if self._have else []
        return frames

    def _keep(self, received: bytes | memoryview) -> None:
        # A view of one byte takes 300: a peer that sends a frame by such pieces must not have us hold 300 times the frame.
        last = self._parts[-1] if self._parts else None
        if isinstance(last, bytearray) and len(last) < _SMALL_BYTES:
            last += received
        else:
            self._parts.append(received if len(received) >= _SMALL_BYTES else bytearray(received))

    @property
    def pending(self) -> int:
        """Bytes held of an unfinished frame."""
        return self._have
