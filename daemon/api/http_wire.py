"""HTTP/1.1 as bytes for one connection of the local API: plain requests without h11, all others with it. Owns no socket.

h11 costs 0.3 ms per request, a tenth of what an answer may cost. What is read here is a strict part of what h11 reads; at what is
unusual, malformed or too long it takes over with the same bytes, and decides.
"""

import re
from collections.abc import Iterable, Sequence

import h11
import msgspec

_REQUEST_LINE = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.1")
_FIELD = re.compile(rb"([A-Za-z0-9-]+): ?([!-~](?:[ -~]*[!-~])?)")
_UNUSUAL = frozenset((b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer"))
_ONCE = frozenset((b"host", b"content-length", b"connection"))
_LENGTH = re.compile(rb"[0-9]{1,9}")
_BAD_VALUE = re.compile(rb"[\x00\r\n]")
_NO_BODY = frozenset((204, 304))

Header = tuple[bytes, bytes]


class PlainRequest(msgspec.Struct, frozen=True):
    """What h11.Request says, of a request that was read without it; names of `headers` in lower case."""

    method: bytes
    target: bytes
    headers: Sequence[Header]
    length: int
    keep: bool
    http_version: bytes = b"1.1"


def read_plain(head: bytes) -> PlainRequest | None:
    """A request's head, less the empty line at its end; None for one that h11 has to look at."""
    first, *lines = head.split(b"\r\n")
    started = _REQUEST_LINE.fullmatch(first)
    if started is None:
        return None
    headers: list[Header] = []
    once: dict[bytes, bytes] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            return None
        name, value = field[1].lower(), field[2]
        if name in _UNUSUAL or name in once:
            return None
        if name in _ONCE:
            once[name] = value
        headers.append((name, value))
    length, connection = once.get(b"content-length", b"0"), once.get(b"connection", b"keep-alive").lower()
    if b"host" not in once or not _LENGTH.fullmatch(length) or connection not in (b"keep-alive", b"close"):
        return None
    return PlainRequest(started[1], started[2], headers, int(length), connection == b"keep-alive")


class HttpWire:
    """Bytes in, requests out, responses in, bytes out. Once h11 has taken over it stays for the whole connection."""

    def __init__(self, header_bytes: int) -> None:
        self._limit = header_bytes
        self._taken_over: h11.Connection | None = None
        self._held = b""
        self._is_closed = False
        self._request: PlainRequest | None = None
        self._left = 0
        self._all_read = False
        self._answered = False
        self._is_done = False
        self._chunked = False
        self._to_send = 0
        self._keep = False

    @property
    def _is_h11(self) -> bool:
        return self._taken_over is not None

    @property
    def _h11(self) -> h11.Connection:
        assert self._taken_over is not None  # noqa: S101 - for the type checker: asked once h11 has taken over
        return self._taken_over

    # ---- what the client says

    def receive_data(self, received: bytes) -> None:
        """Bytes from the client; b"" where it says no more."""
        if self._is_h11:
            self._h11.receive_data(received)
        else:
            self._held += received
            self._is_closed = self._is_closed or not received

    def next_event(self) -> object:
        """A PlainRequest, or an event of h11: Data, EndOfMessage, Request, NEED_DATA. Raises h11.RemoteProtocolError."""
        if self._is_h11:
            return self._h11.next_event()
        if self._request is None:
            return self._next_request()
        if self._all_read:
            return h11.PAUSED
        if not self._left:
            self._all_read = True
            return h11.EndOfMessage()
        if not self._held:
            return h11.ConnectionClosed() if self._is_closed else h11.NEED_DATA
        data, self._held = self._held[: self._left], self._held[self._left :]
        self._left -= len(data)
        return h11.Data(data=data)

    def _next_request(self) -> object:
        end = self._held.find(b"\r\n\r\n")
        if end < 0 and len(self._held) <= self._limit and not self._is_closed:
            return h11.NEED_DATA
        request = read_plain(self._held[:end]) if 0 <= end <= self._limit else None
        if request is None:
            return self._hand_over()
        self._held = self._held[end + 4 :]
        self._request, self._left, self._all_read = request, request.length, False
        return request

    def _hand_over(self) -> object:
        self._taken_over = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limit)
        if self._held:
            self._h11.receive_data(self._held)
        if self._is_closed:
            self._h11.receive_data(b"")
        self._held = b""
        return self._h11.next_event()

    # ---- what we say

    @property
    def may_refuse(self) -> bool:
        """Whether no response has begun."""
        return self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE) if self._is_h11 else not self._answered

    def send_continue(self) -> bytes:
        """100 Continue, which only h11's requests ask for."""
        return self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def send_head(self, status: int, headers: Iterable[Header]) -> bytes:
        """A response's first line and headers; raises h11.LocalProtocolError for a header that would break out of its line."""
        if self._is_h11:
            return self._h11.send(h11.Response(status_code=status, headers=list(headers))) or b""
        lines = [b"HTTP/1.1 %d \r\n" % status]
        keep = self._request is not None and self._request.keep
        self._answered, self._chunked, self._to_send = True, status not in _NO_BODY, 0
        for name, value in headers:
            if _BAD_VALUE.search(value) or _BAD_VALUE.search(name):
                raise h11.LocalProtocolError("a header that does not stay in its line")
            if name == b"content-length":
                self._chunked, self._to_send = False, int(value)
            if name == b"connection" and value == b"close":
                keep = False
            else:
                lines.append(b"%s: %s\r\n" % (name, value))
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        self._keep = keep
        lines.append(b"\r\n" if keep else b"connection: close\r\n\r\n")
        return b"".join(lines)

    def send_data(self, body: bytes) -> bytes:
        """A part of the response's body."""
        if self._is_h11:
            return self._h11.send(h11.Data(data=body)) or b""
        if self._chunked:
            return b"%x\r\n%s\r\n" % (len(body), body) if body else b""
        self._to_send -= len(body)
        if self._to_send < 0:
            raise h11.LocalProtocolError("a body longer than its head says")
        return body

    def send_end(self) -> bytes:
        """The end of the response."""
        if self._is_h11:
            return self._h11.send(h11.EndOfMessage()) or b""
        if self._to_send:
            raise h11.LocalProtocolError("a body shorter than its head says")
        self._is_done = True
        return b"0\r\n\r\n" if self._chunked else b""

    def begin_next(self) -> bool:
        """Make ready for the connection's next request; False where there is none after this one."""
        if self._is_h11:
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return False
            self._h11.start_next_cycle()
            return True
        if not (self._is_done and self._all_read and self._keep):
            return False
        self._request, self._answered, self._is_done = None, False, False
        return True
