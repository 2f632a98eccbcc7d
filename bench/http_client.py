"""The least HTTP/1.1 client that can time an answer, the same for every server that is compared. Knows two kinds of reply."""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

READ_BYTES = 64 << 10
_TEXT = re.compile(rb'"content":\s*"[^"]')
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class WrongReplyError(Exception):
    """A reply was not what it must be: the figure would be worthless."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """One streamed completion: seconds to its first text and to its end, and the tokens that the server counted."""

    first_s: float
    total_s: float
    tokens: int


def request(method: str, path: str, body: bytes = b"", key: str = "", keep: bool = False) -> bytes:
    """The bytes of one request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", f"Connection: {'keep-alive' if keep else 'close'}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def reply_ended(received: bytes) -> bool:
    """Whether a reply of a stated length is complete; raises WrongReplyError for all but status 200."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return False
    length = _LENGTH.search(head)
    if length is None or not head.startswith(b"HTTP/1.1 200"):
        raise WrongReplyError(f"the reply was {received[:300]!r}")
    return len(body) >= int(length[1])


Address = Path | tuple[str, int]
"""A Unix socket, or a host and port."""


async def _open(address: Address) -> trio.abc.Stream:
    if isinstance(address, Path):
        return await trio.open_unix_socket(str(address))
    return await trio.open_tcp_stream(*address)


async def stream_completion(address: Address, wanted: bytes) -> Streamed:
    """Send one request on a connection of its own and read the event stream to its end; raises WrongReplyError."""
    start = time.perf_counter()
    first = 0.0
    tail = b""
    async with await _open(address) as stream:
        await stream.send_all(wanted)
        while received := await stream.receive_some(READ_BYTES):
            tail += received
            if not first and _TEXT.search(tail):
                first = time.perf_counter() - start
            if first:
                tail = tail[-2048:]
            if b"data: [DONE]" in tail:
                break
    total = time.perf_counter() - start
    counted = _TOKENS.findall(tail)
    if not first or not counted:
        raise WrongReplyError(f"no completion came: {tail[-300:]!r}")
    return Streamed(first, total, int(counted[-1]))


class Kept:
    """One connection that is used again and again, one request at a time."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    @classmethod
    async def connect(cls, address: Address) -> "Kept":
        return cls(await _open(address))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stream.aclose()

    async def ask(self, wanted: bytes) -> bytes:
        """Send one request made with `keep` and read the whole reply; raises WrongReplyError for all but status 200."""
        await self._stream.send_all(wanted)
        received = b""
        while not reply_ended(received):
            received += await self._more()
        return received.partition(b"\r\n\r\n")[2]

    async def _more(self) -> bytes:
        received = await self._stream.receive_some(READ_BYTES)
        if not received:
            raise WrongReplyError("the connection was closed in the middle of a reply")
        return received
