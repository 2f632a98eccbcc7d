"""What no client may do to the local API: each is refused with its status, and the next request is served."""

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.api.errors import ApiError, of_remote
from daemon.api.listeners import ListenError, UnixListener, open_tcp
from daemon.api.requests import ChatRequest, read_body, read_control, read_probe
from daemon.api.server import HttpLimits
from protocol.wire.errors import Code, RemoteError

pytestmark = pytest.mark.live

OK = b'{"messages":[{"role":"user","content":"x"}]}'


def post(body: bytes, headers: bytes = b"", path: bytes = b"/v1/chat/completions", kind: bytes = b"application/json") -> bytes:
    length = b"content-length: %d\r\n" % len(body)
    head = b"POST " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: " + kind + b"\r\n"
    return head + length + headers + b"\r\n" + body


def chat(fields: bytes) -> bytes:
    return post(OK[:-1] + b"," + fields + b"}")


def form(schema: bytes) -> bytes:
    return b'"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":' + schema + b"}}"


TOOLS = b'"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","title":"Rome"}}}]'

BAD = {
    "not json": (post(b"{"), 400, b"not valid JSON"),
    "json nested 100,000 deep": (post(b'{"messages":' + b"[" * 100_000), 400, b"not valid JSON"),
    "a bomb inside an unknown field": (chat(b'"zzz":' + b"[" * 50_000 + b"]" * 50_000), 400, b""),
    "NaN": (chat(b'"temperature":NaN'), 400, b"not valid JSON"),
    "5,000 digits": (chat(b'"seed":' + b"9" * 5000), 400, b""),
    "wrong type": (chat(b'"temperature":"hot"'), 400, b"temperature"),
    "temperature over 2": (chat(b'"temperature":1e308'), 400, b"temperature"),
    "negative max_tokens": (chat(b'"max_tokens":-1'), 400, b"max_tokens"),
    "a billion tokens": (chat(b'"max_tokens":1000000000'), 400, b"max_tokens"),
    "n=9": (chat(b'"n":9'), 400, b'"param":"n"'),
    "n=2 of a round": (chat(b'"n":2,"model":"swarm/rank"'), 400, b'"param":"n"'),
    "tools in a round": (chat(b'"model":"swarm/rank",' + TOOLS), 400, b'"param":"tools"'),
    "tools": (chat(b'"tools":[{"type":"function"}]'), 400, b'"param":"tools"'),
    "log-probabilities of a plain completion": (
        post(b'{"prompt":"x","logprobs":0}', path=b"/v1/completions"), 400, b'"param":"logprobs"'
    ),
    "another tier": (chat(b'"service_tier":"priority"'), 400, b'"param":"service_tier"'),
    "logprobs as a number": (chat(b'"logprobs":5'), 400, b'"param":"logprobs"'),
    "top_logprobs alone": (chat(b'"top_logprobs":5'), 400, b'"param":"top_logprobs"'),
    "21 top_logprobs": (chat(b'"logprobs":true,"top_logprobs":21'), 400, b'"param":"top_logprobs"'),
    "a tool that is no function": (chat(b'"tools":[{"type":"retrieval"}]'), 400, b'"param":"tools"'),
    "a function's odd name": (chat(TOOLS.replace(b"weather", b"rm -rf")), 400, b'"param":"tools"'),
    "a function twice": (chat(TOOLS.replace(b"]", b"," + TOOLS.split(b"[")[1])), 400, b'"param":"tools"'),
    "40 KiB of tools": (chat(TOOLS.replace(b"Rome", b"x" * 40_000)), 413, b'"param":"tools"'),
    "a choice of no tool": (chat(TOOLS + b',"tool_choice":{"type":"function","function":{"name":"x"}}'), 400, b"tool_choice"),
    "a choice among none": (chat(b'"tool_choice":"required"'), 400, b'"param":"tool_choice"'),
    "an unknown choice": (chat(TOOLS + b',"tool_choice":"all"'), 400, b'"param":"tool_choice"'),
    "a pattern": (chat(form(b'{"type":"string","pattern":"(a+)+$"}')), 400, b'"param":"response_format"'),
    "a reference to elsewhere": (chat(form(b'{"$ref":"http://169.254.169.254/"}')), 400, b'"param":"response_format"'),
    "a schema of itself": (chat(form(b'{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}')), 400, b"itself"),
    "a schema 40 deep": (chat(form(b'{"items":' * 40 + b"{}" + b"}" * 40)), 400, b"nested deeper"),
    "a grammar": (chat(b'"response_format":{"type":"grammar","grammar":"root ::= x"}'), 400, b'"param":"response_format"'),
    "a schema's odd name": (chat(form(b"{}").replace(b'"n"', b'"a b"')), 400, b'"param":"response_format"'),
    "a tool's result of no call": (post(b'{"messages":[{"role":"tool","content":"x"}]}'), 400, b'"param":"messages"'),
    "no content": (post(b'{"messages":[{"role":"user"}]}'), 400, b'"param":"messages"'),
    "a score beyond 1": (chat(b'"peer":{"min_score":1.5}'), 400, b'"param":"peer.min_score"'),
    "peers by no such order": (chat(b'"peer":{"sort":"price"}'), 400, b'"param":"peer'),
    "peers by an unknown wish": (chat(b'"peer":{"country":"x"}'), 400, b'"param":"peer'),
    "peers that are none": (chat(b'"peer":{"only":["you"]}'), 400, b'"param":"peer.only"'),
    "a negative round trip": (chat(b'"peer":{"max_rtt_ms":-1}'), 400, b'"param":"peer'),
    "peers of a round": (chat(b'"model":"swarm/rank","peer":{"sort":"load"}'), 400, b'"param":"peer"'),
    "an unknown field": (chat(b'"chat_template":"x"'), 400, b'"param":"chat_template"'),
    "five stops": (chat(b'"stop":["a","b","c","d","e"]'), 400, b"stop"),
    "an empty stop": (chat(b'"stop":""'), 400, b"stop"),
    "no messages": (post(b'{"messages":[]}'), 400, b"messages"),
    "only blanks": (post(b'{"messages":[{"role":"user","content":"  "}]}'), 400, b"empty"),
    "an unknown role": (post(b'{"messages":[{"role":"root","content":"x"}]}'), 400, b"role"),
    "an image": (post(b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"http://x"}]}]}'), 400, b""),
    "a flag as a model": (chat(b'"model":"--trust-remote-code"'), 404, b"not a model"),
    "a path as a model": (chat(b'"model":"../../etc/passwd"'), 404, b"not a model"),
    "a prompt over 256 KiB": (post(b'{"messages":[{"role":"user","content":"' + b"x" * (257 << 10) + b'"}]}'), 413, b"bytes"),
    "a body over 1 MiB": (post(b" " * ((1 << 20) + 1)), 413, b"bytes"),
    "a body over 1 MiB that waits to be asked for": (
        post(b"", b"expect: 100-continue\r\n").replace(b"content-length: 0", b"content-length: 1048577"), 413, b"bytes"
    ),
    "a form": (post(b"a=b", kind=b"application/x-www-form-urlencoded"), 415, b"application/json"),
    "a compressed body": (post(OK, b"content-encoding: gzip\r\n"), 415, b"compressed"),
    "both lengths": (post(OK, b"transfer-encoding: chunked\r\n"), 400, b""),
    "two content types": (post(OK, b"content-type: text/plain\r\n"), 400, b"twice"),
    "101 headers": (b"GET /health HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n", 431, b"header"),
    "17 KiB of headers": (b"GET /health HTTP/1.1\r\nhost: x\r\na: " + b"b" * (17 << 10), 431, b""),
    "not http": (b"\x00\x01\x02\x03 nonsense\r\n\r\n", 400, b""),
    "an unknown path": (b"GET /nope HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 404, b"not_found"),
    "a wrong method": (b"DELETE /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", 405, b"allow: POST"),
    "an unknown field in ask": (post(b'{"prompt":"x","zzz":1}', path=b"/swarmd/v1/ask"), 400, b"zzz"),
    "ask with neither prompt nor messages": (post(b"{}", path=b"/swarmd/v1/ask"), 400, b"prompt"),
    "words of judges where none judge": (
        post(b'{"prompt":"x","strategy":"majority","rationale":true}', path=b"/swarmd/v1/ask"), 400, b"rationale"
    ),
    "words of judges of a routed question": (post(b'{"prompt":"x","rationale":true}', path=b"/swarmd/v1/ask"), 400, b"rationale"),
    "ask of a peer that is no peer": (post(b'{"prompt":"x","peer":"you"}', path=b"/swarmd/v1/ask"), 400, b"peer"),
}


@pytest.mark.parametrize("case", BAD)
async def test_refused_and_still_serving(api: Any, case: str) -> None:
    request, status, mentions = BAD[case]
    reply = await api.raw(request)
    assert reply.startswith(b"HTTP/1.1 %d " % status), reply[:200]
    assert mentions in reply
    assert not api.backend.asked
    assert (await api.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("host: 127.0.0.1:{port}", 200),
        ("host: localhost:{port}", 200),
        ("host: LocalHost:{port}", 200),
        ("host: [::1]:{port}", 200),
        ("host: 127.0.0.2:{port}", 200),  # which api.listen may name
        ("host: 192.0.2.1:{port}", 421),
        ("host: 127.0.0.256:{port}", 421),
        ("host: evil.example", 421),
        ("host: 127.0.0.1.evil.example:{port}", 421),
        ("host: 127.0.0.1:1", 421),
        ("host: 127.0.0.1:{port}\r\norigin: https://evil.example", 403),
        ("host: 127.0.0.1:{port}\r\norigin: null", 403),
    ],
)
async def test_loopback_refuses_rebound_and_foreign_pages(api: Any, headers: str, status: int) -> None:
    request = f"GET /v1/models HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n".format(port=api.port).encode()
    assert (await api.raw(request, "tcp")).startswith(b"HTTP/1.1 %d " % status)


async def test_control_is_on_the_socket_alone(api: Any) -> None:
    stop = b"POST /swarmd/v1/stop HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nconnection: close\r\n\r\n" % api.port
    assert (await api.raw(stop, "tcp")).startswith(b"HTTP/1.1 403 ")
    assert not api.backend.stopped
    assert (await api.raw(stop)).startswith(b"HTTP/1.1 200 ")
    assert api.backend.stopped


async def test_what_a_path_names_is_decoded_and_stays_on_the_socket(api: Any) -> None:
    ask = b"GET /swarmd/v1/%s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nconnection: close\r\n\r\n"
    assert b'"key":"a b/\xc3\xa9"' in await api.raw(ask % (b"lookup/a%20b/%C3%A9", api.port))
    assert b'"peer":"a/b%"' in await api.raw(ask % (b"reputation/a%2Fb%25", api.port))
    hidden = (ask % (b"reputation/a", api.port)).replace(b"/swarmd", b"/%73warmd")
    assert (await api.raw(hidden, "tcp")).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: Basic s3cret\r\n", 401),
        ("authorization: Bearer s3cret\r\n", 200),
    ],
)
async def test_a_key_is_required_where_one_is_set(start_api: Any, header: str, status: int) -> None:
    api = await start_api(key="s3cret")
    request = f"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1:{api.port}\r\n{header}connection: close\r\n\r\n".encode()
    assert (await api.raw(request, "tcp")).startswith(b"HTTP/1.1 %d " % status)


async def test_slow_headers_and_slow_bodies_give_their_place_back(start_api: Any) -> None:
    api = await start_api(limits=HttpLimits(clients=2, header_seconds=0.2, idle_seconds=0.2))
    slow = [await trio.open_unix_socket(str(api.socket)) for _ in range(2)]
    await slow[0].send_all(b"GET /health HTT")
    await slow[1].send_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nx")
    with trio.fail_after(3):
        assert await slow[0].receive_some() == b""
        assert b"408" in await slow[1].receive_some()
        while not (await api.raw(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).startswith(b"HTTP/1.1 200"):
            await trio.sleep(0.01)
    for stream in slow:
        await stream.aclose()


HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
LAST_HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def test_where_all_places_are_taken_the_longest_idle_makes_room(start_api: Any) -> None:
    api = await start_api(limits=HttpLimits(clients=2))
    kept = [await trio.open_unix_socket(str(api.socket)) for _ in range(2)]
    for stream in kept:
        await stream.send_all(HEALTH)
        assert b"alive" in await stream.receive_some()
    assert (await api.raw(LAST_HEALTH)).startswith(b"HTTP/1.1 200")
    with trio.fail_after(1):
        assert await kept[0].receive_some() == b""
        await kept[1].send_all(HEALTH)
        assert b"alive" in await kept[1].receive_some()
    for stream in kept:
        await stream.aclose()


async def test_where_all_places_are_at_work_one_more_is_told_so(start_api: Any) -> None:
    api = await start_api(limits=HttpLimits(clients=2))
    api.backend.endless = True
    working = [await trio.open_unix_socket(str(api.socket)) for _ in range(2)]
    for stream in working:
        await stream.send_all(chat(b'"stream":true'))
        assert b" 200 " in await stream.receive_some()
    reply = await api.raw(HEALTH)
    assert reply.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in reply
    assert b'"code":"overloaded"' in reply
    await working[0].aclose()
    with trio.fail_after(3):
        while not (await api.raw(LAST_HEALTH)).startswith(b"HTTP/1.1 200"):
            await trio.sleep(0.01)
    await working[1].aclose()


async def test_pipelined_requests_are_served_in_order(api: Any) -> None:
    last = b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    reply = await api.raw(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 2 + last)
    assert reply.count(b"HTTP/1.1 200") == 3
    assert reply.index(b"alive") < reply.index(b"reasons")


async def test_ready_says_why_not(api: Any) -> None:
    api.backend.reasons = ("no bootstrap answers",)
    reply = await api.raw(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 503")
    assert b"no bootstrap answers" in reply


async def test_draining_closes_idle_connections(api: Any) -> None:
    idle = await trio.open_unix_socket(str(api.socket))
    await idle.send_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
    assert b"alive" in await idle.receive_some()
    api.server.drain()
    with trio.fail_after(1):
        assert await idle.receive_some() == b""
    await idle.aclose()


@pytest.fixture
def folder() -> Any:
    path = Path(f"/tmp/swarmd-door-{os.getpid()}")
    path.mkdir(mode=0o700)
    yield path
    for entry in path.iterdir():
        entry.unlink()
    path.rmdir()


async def test_the_socket_is_private_and_removed_only_while_ours(folder: Path) -> None:
    door = UnixListener(folder / "api.sock")
    listener = await door.open()
    assert stat.S_IMODE(os.lstat(door.path).st_mode) & 0o077 == 0
    with pytest.raises(ListenError, match="another daemon answers"):
        await UnixListener(door.path).open()
    await listener.aclose()
    second = UnixListener(door.path)
    fresh = await second.open()  # the first one's file is stale now, and is replaced
    door.remove()
    assert door.path.exists()
    second.remove()
    assert not door.path.exists()
    await fresh.aclose()


@pytest.mark.parametrize("kind", ["file", "link", "long", "open", "missing"])
async def test_a_socket_path_in_the_wrong_hands_is_refused(folder: Path, kind: str) -> None:
    path = folder / "api.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "link":
        path.symlink_to(folder / "elsewhere")
    elif kind == "long":
        path = folder / ("x" * 120)
    elif kind == "open":
        folder.chmod(0o755)
    else:
        path = folder / "nowhere" / "api.sock"
    with pytest.raises(ListenError) as caught:
        await UnixListener(path).open()
    assert str(caught.value).count("\n") == 0
    if kind == "file":
        assert path.read_text() == "precious"


async def test_a_busy_port_and_an_open_address_are_refused_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=rf"port {port} .*api\.listen"):
            await open_tcp("127.0.0.1", port, False)
    with pytest.raises(ListenError, match=r"api\.key_file"):
        await open_tcp("0.0.0.0", 0, False)
    with pytest.raises(ListenError, match="not an IP address"):
        await open_tcp("example.org", 0, False)


@pytest.mark.parametrize(
    ("body", "sentence", "field"),
    [
        (b"{}", "'messages' is missing", "messages"),
        (b'{"messages":[{}]}', "'messages[0].role' is missing", "messages"),
        (b'{"messages":[{"role":"boss"}]}', "'messages[0].role': invalid enum value 'boss'", "messages"),
        (b'{"messages":[{"role":"user"}],"max_tokens":99999}', "'max_tokens': expected int <= 4096", "max_tokens"),
        (b'{"messages":[{"role":"user"}],"peer":{"onl":[]}}', "'peer.onl' is not a field here", "peer.onl"),
        (b"[]", "the body: expected object, got array", None),
    ],
)
def test_what_is_wrong_in_a_body_is_a_sentence_that_names_the_field(body: bytes, sentence: str, field: str | None) -> None:
    with pytest.raises(ApiError) as raised:
        read_body(ChatRequest, body)
    assert (raised.value.message, raised.value.param) == (sentence, field)


def test_what_is_no_peer_id_is_quoted() -> None:
    for read, body in ((read_control, b'{"prompt":"x","peer":"B2D"}'), (lambda raw, _: read_probe(raw), b'{"peer":"B2D"}')):
        with pytest.raises(ApiError, match="'B2D' is not a peer id") as raised:
            read(body, 0)
        assert raised.value.param == "peer"


async def test_a_wrong_path_and_a_wrong_method_are_sentences(api: Any) -> None:
    reply = await api.raw(post(OK, path=b"/chat/completions"))
    assert b"there is nothing at /chat/completions; OpenAI's begin with /v1/" in reply
    assert b"/v1/models takes no POST" in await api.raw(post(OK, path=b"/v1/models"))


async def test_requests_are_counted_by_the_paths_of_their_routes(api: Any) -> None:
    for path in (b"/v1/models", b"/swarmd/v1/models", b"/swarmd/v1/rounds/abcdef", b"/nowhere"):
        await api.raw(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    for path in (b"/v1/chat/completions", b"/v1/embeddings", b"/v1/responses"):
        await api.raw(post(b"{}", path=path))
    assert api.routes[:4] == ["/v1/models", "/swarmd/v1/models", "/swarmd/v1/rounds/{round_id:path}", "none"]
    assert api.routes[4:] == ["/v1/chat/completions", "/v1/embeddings", "/v1/responses"]


@pytest.mark.parametrize(
    ("asked", "code", "param"), [("nosuch", "model_not_found", "model"), ("any model", "not_found", None)]
)
def test_a_model_that_nobody_serves_is_told_as_openai_tells_it(asked: str, code: str, param: str | None) -> None:
    refusal = of_remote(RemoteError(Code.NOT_FOUND, f"no reachable peer serves {asked}; swarmd models lists what there is"))
    assert (refusal.status, refusal.code, refusal.param) == (404, code, param)
