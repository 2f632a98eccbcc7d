"""Bodies of responses: the same bytes that h11 finds, however they are cut, and nothing where h11 refuses."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.http_body import MAX_LINE, Body, BodyError, ChunkedBody, OpenBody, SizedBody
from daemon.engine.http_exchange import read_plain_head

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def whole(body: Body, raw: bytes, size: int) -> bytes:
    return b"".join(body.feed(raw[start : start + size]) for start in range(0, len(raw), size))


def by_h11(raw: bytes) -> bytes | None:
    """None where it is refused or not complete."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(HEAD + raw)
    found = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                found += event.data
            elif isinstance(event, h11.EndOfMessage):
                return found
            elif not isinstance(event, h11.Response):
                return None
    except h11.RemoteProtocolError:
        return None


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.integers(1, 60))
def test_chunks_are_joined_however_they_are_cut(chunks: list[bytes], size: int) -> None:
    raw = b"".join(b"%x;name=value\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nx-trailer: 1\r\n\r\n"
    body = ChunkedBody()
    assert whole(body, raw, size) == b"".join(chunks) == by_h11(raw)
    assert body.complete
    body.end()


WHOLE = (b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\nx: y\r\n")
BITS = (b"\r\n", b"a", b"3", b" ", b"\n", b"-1\r\n", b"0x2\r\n", b"G\r\n", b"3 \r\n")
PARTS = st.sampled_from(WHOLE + BITS)


@given(st.lists(PARTS, max_size=6).map(b"".join), st.integers(1, 20))
def test_what_is_taken_as_whole_h11_takes_too(raw: bytes, size: int) -> None:
    body = ChunkedBody()
    try:
        found = whole(body, raw, size)
    except BodyError:
        assert by_h11(raw) is None
        return
    if body.complete:
        assert by_h11(raw) == found
    else:
        with pytest.raises(BodyError):
            body.end()


@pytest.mark.parametrize(
    "raw",
    [b"zz\r\n", b"\r\n", b"1" * 17 + b"\r\n", b"1" * (MAX_LINE + 1), b"1\r\nab\r\n", b"0\r\n" + b"x: y\r\n" * 5000],
)
def test_malformed_chunks_are_refused(raw: bytes) -> None:
    with pytest.raises(BodyError):
        ChunkedBody().feed(raw)


def test_a_body_of_a_given_length_ends_there() -> None:
    body = SizedBody(4)
    assert (body.feed(b"ab"), body.complete) == (b"ab", False)
    with pytest.raises(BodyError):
        body.end()
    assert (body.feed(b"cdef"), body.complete) == (b"cd", True)
    opened = OpenBody()
    assert (opened.feed(b"ab"), opened.complete) == (b"ab", False)
    opened.end()
    assert opened.complete


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\ntransfer-encoding: chunked", ChunkedBody),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 3", SizedBody),
        (b"HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: \r\nTransfer-Encoding: chunked", ChunkedBody),
        (b"HTTP/1.1 200 OK\r\nContent-Length: ", None),
        (b"HTTP/1.1 200\r\nConnection: close", OpenBody),
        (b"HTTP/1.1 204 No Content", SizedBody),
        (b"HTTP/1.1 100 Continue", None),
        (b"HTTP/1.0 200 OK", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -3", None),
        (b"HTTP/1.1 200 OK\r\nX : 1", None),
        (b"HTTP/1.1 200 OK\r\n folded", None),
    ],
)
def test_only_plain_heads_are_read_without_h11(head: bytes, kind: type[Body] | None) -> None:
    found = read_plain_head(head)
    assert found is None if kind is None else found is not None and isinstance(found[1], kind)
