"""An engine by URL: against the embedded engine's own HTTP over TCP, and against servers that misbehave."""

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest
import trio
from msgspec.structs import replace

from daemon.engine.completions import EventReader
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import EngineError, EngineRefused, EngineState
from daemon.engine.url_engine import UrlSettings, checked_url, read_key, url_engine
from protocol.job import Job, Role, Sampling, Turn

Running = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]
RNG = Random(1)
JOB = Job((Turn(Role.USER, "hello"),), Sampling(max_tokens=6))
TURNS = JOB.turns


@asynccontextmanager
async def served(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """A TCP server on loopback, and its URL."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/v1/"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def bridged(socket: Path) -> AsyncIterator[str]:
    """A TCP address that leads to a Unix socket."""

    async def pump(source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            async for chunk in source:
                await target.send_all(chunk)
            await target.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(target)

    async def handle(near: trio.SocketStream) -> None:
        far = await trio.open_unix_socket(str(socket))
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(pump, near, far)
            await pump(far, near)
            nursery.cancel_scope.cancel()

    async with served(handle) as url:
        yield url


@pytest.mark.live
@pytest.mark.slow
async def test_the_same_answers_by_url_as_by_socket(tiny_engine: HttpEngine, running: Running, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    async with running(tiny_engine) as direct:
        command = direct._serving.command
        assert command is not None
        key_file.write_text(command.key + "\n")
        key_file.chmod(0o600)
        async with bridged(command.socket) as url, running(url_engine(UrlSettings(url, key_file=key_file), RNG)) as engine:
            assert engine.model is not None
            assert (engine.model.name, engine.model.engine, engine.model.context_tokens) == ("tests/random-llama", "url", 8192)
            async with engine.generate(JOB) as chunks:
                usage = [chunk async for chunk in chunks][-1].usage
            assert usage is not None
            assert usage.completion_tokens == 6
            assert engine.model.embeds
            texts = ("hello", "there")
            made = await engine.embed(texts)
            theirs = await direct.embed(texts)
            assert [list(one) for one in made.vectors] == [pytest.approx(list(one)) for one in theirs.vectors]
            by_url = await engine.choose(TURNS, ("<", ">"))
            assert by_url == pytest.approx(await direct.choose(TURNS, ("<", ">")), abs=0.02)


@pytest.mark.live
@pytest.mark.slow
async def test_a_server_that_does_not_answer_is_starting_and_says_why(running: Running) -> None:
    engine = url_engine(UrlSettings("http://127.0.0.1:1"), RNG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with trio.move_on_after(0.2):
            await engine.wait_ready()
        assert engine.state is EngineState.STARTING
        with pytest.raises(EngineError, match="starting"):
            await engine.choose(TURNS, ("A", "B"))
        nursery.cancel_scope.cancel()
    assert engine.state is EngineState.STOPPED


def openai(completion: Callable[[dict[str, object]], tuple[int, bytes]]) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A server that lists one model and answers completions with what `completion` makes of their body."""

    async def handle(stream: trio.SocketStream) -> None:
        raw = b""
        async with stream:
            while b"\r\n\r\n" not in raw:
                raw += await stream.receive_some(65536)
            head, _, body = raw.partition(b"\r\n\r\n")
            length = next(
                (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
            )
            while len(body) < length:
                body += await stream.receive_some(65536)
            if head.startswith(b"GET /v1/models "):
                status, reply = 200, b'{"data":[{"id":"m"}]}'
            elif head.startswith(b"POST /v1/embeddings "):
                status, reply = 404, b"{}"
            else:
                status, reply = completion(json.loads(body))
            with_head = b"HTTP/1.1 %d x\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n%s" % (status, reply)
            with suppress(trio.BrokenResourceError):
                await stream.send_all(with_head)

    return handle


def sse(*events: object) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\r\n\r\n" for event in events) + b"data: [DONE]\n\n"


def said(text: str) -> bytes:
    return sse({"choices": [{"delta": {"content": text}}]}, {"choices": [{"delta": {}, "finish_reason": "length"}]})


@pytest.mark.live
async def test_a_server_without_log_probabilities_is_judged_by_its_letter(running: Running) -> None:
    asked: list[object] = []

    def completion(body: dict[str, object]) -> tuple[int, bytes]:
        asked.append(body.get("top_logprobs"))
        return (400, b'{"error":{"message":"no logprobs"}}') if "logprobs" in body else (200, said("B"))

    async with served(openai(completion)) as url, running(url_engine(UrlSettings(url, model="m"), RNG)) as engine:
        for _ in range(2):
            a, b = await engine.choose(TURNS, ("A", "B"))
            assert b - a == pytest.approx(2.0)
            assert math.exp(a) + math.exp(b) == pytest.approx(1.0)
    assert asked == [None, 20, 5, None, None]  # the warm-up, the search for what it takes, and then only that


TOO_LONG = b"""{"error":{"message":"This model's maximum context length is 128 tokens. However, ..."}}"""
"""What vLLM says where prompt and answer together are longer than its context."""


@pytest.mark.live
async def test_an_answer_that_may_be_longer_than_the_context_is_asked_for_as_long_as_fits(running: Running) -> None:
    asked: list[object] = []

    def completion(body: dict[str, object]) -> tuple[int, bytes]:
        asked.append(body.get("max_tokens"))
        return (200, said("as long as fits")) if body.get("max_tokens", 0) in (0, 1) else (400, TOO_LONG)

    def never_fits(body: dict[str, object]) -> tuple[int, bytes]:
        asked.append(body.get("max_tokens"))
        return (200, said("1")) if body.get("max_tokens") == 1 else (400, TOO_LONG)

    job = replace(JOB, sampling=replace(JOB.sampling, max_tokens=4096))
    async with served(openai(completion)) as url, running(url_engine(UrlSettings(url), RNG)) as engine:
        async with engine.generate(job) as chunks:
            assert "".join([chunk.text async for chunk in chunks]) == "as long as fits"
        assert asked == [1, 4096, None]
    asked.clear()
    async with served(openai(never_fits)) as url, running(url_engine(UrlSettings(url), RNG)) as engine:
        with pytest.raises(EngineRefused, match="context length"):
            async with engine.generate(job):
                pass
        assert asked == [1, 4096, None]
        assert engine.busy == 0


REFUSALS = [
    (b"""{"error":{"type":"exceed_context_size_error","message":"too long","n_ctx":128}}""", "does not fit the engine's context"),
    (b"""{"error":{"message":"max_tokens is not to be had in this context"}}""", "not to be had"),
]


@pytest.mark.live
@pytest.mark.parametrize(("refusal", "message"), REFUSALS)
async def test_what_is_refused_whatever_its_length_is_asked_for_once(refusal: bytes, message: str, running: Running) -> None:
    """Without a length of ours the engine's own bound is all there is: not where nothing says that it is the nearer one."""
    asked: list[object] = []

    def completion(body: dict[str, object]) -> tuple[int, bytes]:
        asked.append(body.get("max_tokens"))
        return (200, said("x")) if asked[-1] in (1, None) else (400, refusal)

    async with served(openai(completion)) as url, running(url_engine(UrlSettings(url), RNG)) as engine:
        with pytest.raises(EngineRefused, match=message):
            async with engine.generate(JOB):
                pass
    assert asked == [1, JOB.sampling.max_tokens]


@pytest.mark.live
@pytest.mark.parametrize(
    ("status", "reply", "message"),
    [
        (200, b"data: {\n\n", "no chat completion"),
        (200, b"data: " + b"x" * (300 << 10), "too long"),
        (200, b"data: \xff\n\n", "not UTF-8"),
        (200, b"", "before it was complete"),
        (200, sse({"choices": [{"delta": {"content": "half"}}]}), "before it was complete"),
        (200, sse(*[{"choices": [{"delta": {"content": "x" * 200000}}]}] * 6), "more text"),
        (500, b'{"error":{"message":"at /srv/x"}}', r"HTTP status 500: at \(path\)$"),
        (503, b"<html>", "HTTP status 503$"),
        (429, b'"busy"', "HTTP status 429$"),
        (302, b"", "HTTP status 302"),
        (500, b"x" * (1 << 20), "too long"),
    ],
)
async def test_answers_that_are_none(running: Running, status: int, reply: bytes, message: str) -> None:
    def completion(body: dict[str, object]) -> tuple[int, bytes]:
        return (200, said("1")) if body["max_tokens"] == 1 else (status, reply)

    async with served(openai(completion)) as url, running(url_engine(UrlSettings(url), RNG)) as engine:
        with pytest.raises(EngineError, match=message):  # noqa: PT012 - it may come at once or with a chunk
            async with engine.generate(JOB) as chunks:
                async for _ in chunks:
                    pass
        assert engine.busy == 0


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_are_cut_alike_however_they_arrive(size: int) -> None:
    raw = b': ping\n\ndata: {"a":1}\n\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\n\n\ndata: [DONE]\n\ndata: unfinished'
    reader = EventReader()
    found = [event for start in range(0, len(raw), size) for event in reader.feed(raw[start : start + size])]
    assert found == ['{"a":1}', "two\nlines", "[DONE]"]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host/",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@host/",
        "http://host/?key=x",
        "http://host/#x",
        "http://host:99999/",
        "http://host:x/",
        "http://ho st/",
        "http://host/\r\nX: y",
        "http://h\u00f6st/",
        "unix:///run/x.sock",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(EngineError, match="URL"):
        checked_url(url)


def test_urls_with_and_without_the_version() -> None:
    for url in ("https://h/api/v1", "https://h/api/v1/", "https://h/api", "https://h:443/api/"):
        server = checked_url(url)
        assert (server.host, server.port, server.tls, server.prefix, server.authority) == ("h", 443, True, "/api", "h")
    assert checked_url("http://[::1]:8000/v1").authority == "[::1]:8000"


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content, mode, message in (
        (b"sk-1\n", 0o644, "0600"),
        (b"\n", 0o600, "holds no key"),
        (b"a\r\nInjected: x", 0o600, ""),
        (b"k\x00y", 0o600, "holds no key"),
        (b"\xff", 0o600, "holds no key"),
    ):
        path.write_bytes(content)
        path.chmod(mode)
        if message:
            with pytest.raises(EngineError, match=message):
                read_key(path)
        else:
            assert read_key(path) == "a"
    with pytest.raises(EngineError, match="cannot be read"):
        read_key(tmp_path / "absent")
    with pytest.raises(EngineError):
        read_key(tmp_path)


def test_a_url_engine_with_a_malformed_model_name() -> None:
    with pytest.raises(EngineError, match="named as"):
        url_engine(UrlSettings("http://h", model="../x"), RNG)
