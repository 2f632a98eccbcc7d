"""Decides where the body of an HTTP/1.1 response is: in chunks, of a given length, or until the end. Pure; knows no header.

h11 makes an object for every few bytes, and a streamed answer is made of few bytes. What is malformed is refused as h11 does.
"""

import re
from typing import Protocol

MAX_LINE = 4096
"""Bytes of a chunk's head, or of one line behind the last chunk."""

MAX_TRAILERS = 16 << 10
MAX_SIZE_DIGITS = 16
_TRAILER = re.compile(rb"[A-Za-z0-9-]+:[\t -~]*")
_HEX = frozenset(b"0123456789abcdefABCDEF")


class BodyError(Exception):
    """The bytes are no body of the kind that the head announced."""


class Body(Protocol):
    """`complete` once all of it came."""

    complete: bool

    def feed(self, received: bytes) -> bytes:
        """What `received` adds to the body; raises BodyError."""

    def end(self) -> None:
        """The connection was closed; raises BodyError where something is missing."""


class ChunkedBody:
    """Transfer-Encoding: chunked (RFC 9112 section 7.1); extensions and trailers are read over."""

    def __init__(self) -> None:
        self.complete = False
        self._rest = b""
        self._left = 0
        self._is_after_chunk = False
        self._is_last = False
        self._trailers = 0

    def feed(self, received: bytes) -> bytes:
        """What `received` adds to the body; raises BodyError."""
        raw = self._rest + received if self._rest else received
        at, end, parts = 0, len(raw), []
        while at < end and not self.complete:
            if self._left:
                part = raw[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._is_after_chunk = not self._left
                continue
            line_end = raw.find(b"\r\n", at, at + MAX_LINE + 2)
            if line_end < 0:
                if end - at > MAX_LINE:
                    raise BodyError("a line of a chunked body is too long")
                break
            self._line(raw[at:line_end])
            at = line_end + 2
        self._rest = b"" if self.complete else raw[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        """The connection was closed; raises BodyError where something is missing."""
        if not self.complete:
            raise BodyError("a chunked body broke off")

    def _line(self, line: bytes) -> None:
        if self._is_after_chunk:
            if line:
                raise BodyError("a chunk is longer than it said")
            self._is_after_chunk = False
        elif self._is_last:
            self._trailers += len(line)
            if self._trailers > MAX_TRAILERS or (line and not _TRAILER.fullmatch(line)):
                raise BodyError("what follows the last chunk is too long, or no field")
            self.complete = not line
        else:
            digits = line.partition(b";")[0].rstrip(b" \t")
            if not 0 < len(digits) <= MAX_SIZE_DIGITS or not _HEX.issuperset(digits):
                raise BodyError("a chunk without a size")
            self._left = int(digits, 16)
            self._is_last = not self._left


class SizedBody:
    """A body of `left` bytes."""

    def __init__(self, left: int) -> None:
        self._left = left
        self.complete = not left

    def feed(self, received: bytes) -> bytes:
        """What `received` adds to the body."""
        taken = received[: self._left]
        self._left -= len(taken)
        self.complete = not self._left
        return taken

    def end(self) -> None:
        """The connection was closed; raises BodyError where something is missing."""
        if not self.complete:
            raise BodyError("a body is shorter than it said")


class OpenBody:
    """All that comes until the connection is closed."""

    def __init__(self) -> None:
        self.complete = False

    def feed(self, received: bytes) -> bytes:
        """`received`."""
        return received

    def end(self) -> None:
        """The connection was closed, as it has to be."""
        self.complete = True
