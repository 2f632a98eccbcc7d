"""Requests read without h11: whatever is taken h11 takes too, and says the same of it; all else is left to h11."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.api.http_wire import HttpWire, read_plain

PLAIN = b"POST /v1/x?y=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Type: application/json"
LINES = st.sampled_from(
    [
        b"Host: a", b"host: b:80", b"Content-Length: 3", b"content-length: 03", b"Content-Length: +3", b"Content-Length: 3,3",
        b"Transfer-Encoding: chunked", b"Connection: close", b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: h2c",
        b"Expect: 100-continue", b"X-A:b", b"X-A: b c", b"X-A:  b", b"X-A: b ", b"X-A:", b"X A: b", b" folded", b"X-A: \x80",
        b"X-A: \x00", b"X-A : b", b":", b"", b"Accept: */*",
    ]
)  # fmt: skip
FIRST = st.sampled_from(
    [
        b"GET / HTTP/1.1", b"POST /a HTTP/1.1", b"GET / HTTP/1.0", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /\x80 HTTP/1.1",
        b"get / HTTP/1.1", b"GET a HTTP/1.1", b"DELETE / HTTP/1.1", b"GET / HTTP/2.0", b"GET /a b HTTP/1.1",
    ]
)  # fmt: skip


def by_h11(head: bytes) -> h11.Request:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head + b"\r\n\r\n")
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    return event


@given(st.builds(lambda first, lines: b"\r\n".join([first, *lines]), FIRST, st.lists(LINES, max_size=5)))
def test_what_is_taken_h11_takes_as_the_same(head: bytes) -> None:
    found = read_plain(head)
    if found is not None:
        asked = by_h11(head)
        assert (found.method, found.target, list(found.headers)) == (asked.method, asked.target, list(asked.headers))
        assert found.http_version == asked.http_version


def test_what_clients_send_is_plain() -> None:
    assert read_plain(PLAIN) is not None
    curl = b"GET /health HTTP/1.1\r\nHost: localhost\r\nUser-Agent: curl/8\r\nAccept: */*"
    assert read_plain(curl) is not None


@pytest.mark.parametrize("size", [1, 3, 17, 4096])
def test_a_request_is_the_same_however_it_is_cut(size: int) -> None:
    wire = HttpWire(1024)
    raw = 2 * (PLAIN + b"\r\n\r\nhello")
    body, requests = b"", 0
    for start in range(0, len(raw), size):
        wire.receive_data(raw[start : start + size])
        while (event := wire.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                reply = wire.send_head(200, [(b"content-length", b"2")]) + wire.send_data(b"ok") + wire.send_end()
                assert reply == b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\nok"
                requests += 1
                assert wire.begin_next()
    assert (body, requests) == (b"hellohello", 2)


def test_a_head_without_an_end_is_refused_by_h11() -> None:
    wire = HttpWire(1024)
    wire.receive_data(b"GET / HTTP/1.1\r\nX: " + b"a" * 2000)
    with pytest.raises(h11.RemoteProtocolError):
        wire.next_event()


def asked(head: bytes = PLAIN) -> HttpWire:
    wire = HttpWire(1024)
    wire.receive_data(head + b"\r\n\r\nhello")
    while not isinstance(wire.next_event(), h11.EndOfMessage):
        pass
    return wire


def test_a_response_of_unknown_length_is_chunked_and_h11_reads_it() -> None:
    wire = asked()
    raw = wire.send_head(200, [(b"x-a", b"b")]) + b"".join(map(wire.send_data, (b"one", b"", b"two"))) + wire.send_end()
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    events = [client.next_event() for _ in range(4)]
    assert b"".join(bytes(event.data) for event in events if isinstance(event, h11.Data)) == b"onetwo"
    assert isinstance(events[3], h11.EndOfMessage)


def test_a_client_that_asks_for_it_is_told_of_the_close() -> None:
    wire = asked(PLAIN + b"\r\nConnection: close")
    assert b"\r\nconnection: close\r\n" in wire.send_head(200, [(b"content-length", b"0")])
    wire.send_end()
    assert not wire.begin_next()


def test_our_own_mistakes_do_not_leave_as_another_message() -> None:
    with pytest.raises(h11.LocalProtocolError):
        asked().send_head(200, [(b"x-a", b"b\r\nset-cookie: c")])
    wire = asked()
    wire.send_head(200, [(b"content-length", b"2")])
    with pytest.raises(h11.LocalProtocolError):
        wire.send_data(b"three")
    wire = asked()
    wire.send_head(200, [(b"content-length", b"2")])
    with pytest.raises(h11.LocalProtocolError):
        wire.send_end()
