"""What is asked of every engine over HTTP: probes, the model list and streamed completions. Bounds what a server may send.

Must not start or stop engines.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any

import msgspec
import trio

from daemon.engine.dialect import CompletionEvent, Delta, Dialect, JsonObject, decode_event, plain_sentence
from daemon.engine.embeddings import MAX_REPLY_BYTES as MAX_EMBEDDINGS_BYTES
from daemon.engine.embeddings import PATH as EMBEDDINGS_PATH
from daemon.engine.embeddings import embedding_request, read_vectors
from daemon.engine.http_exchange import Reply, Server, exchange
from daemon.engine.idle_connections import IdleConnections
from daemon.engine.interface import EngineError, EngineRefused, Vectors
from daemon.engine.pace import Pace, PacedStream
from protocol.wire.limits import MAX_ANSWER_CHARS

MAX_EVENT_BYTES = 256 << 10
MAX_REPLY_BYTES = 1 << 20
_MUCH_BYTES = 32 << 10
"""Half of what one read takes."""

MAX_COMPLAINT_BYTES = 64 << 10

_OK = 200

_ABOUT_LENGTH = re.compile("context (?:length|window|size|limit)", re.IGNORECASE)
"""As vLLM, SGLang and gateways say of prompt and answer together; not as we say that a prompt alone is too long."""


class ServedModel(msgspec.Struct):
    """One entry of /v1/models. vLLM gives max_model_len and root, llama.cpp gives meta."""

    id: str
    root: str | None = None
    max_model_len: int | None = None
    meta: dict[str, Any] | None = None


class _ModelList(msgspec.Struct):
    data: list[ServedModel] = []


class _Version(msgspec.Struct):
    version: str = ""


class _Complaint(msgspec.Struct):
    message: str = ""
    type: str = ""
    n_ctx: int | None = None


class _ComplaintBody(msgspec.Struct):
    error: _Complaint | str | None = None
    message: str = ""


class CompletionClient:
    """Speaks to one server."""

    def __init__(self, dialect: Dialect, server: Server, pace: Pace | None = None) -> None:
        self._dialect = dialect
        self._server = server
        self._pace = pace or Pace()
        self._idle = IdleConnections()

    def close(self) -> None:
        """Close the connections that are kept for the next request."""
        self._idle.close()

    async def check_health(self, timeout: float) -> None:
        """Raises EngineError unless the server says within `timeout` seconds that it is well."""
        await self.get(self._dialect.health_path, timeout)

    async def served_models(self, timeout: float) -> list[ServedModel]:
        """What the server lists; raises EngineError."""
        try:
            return msgspec.json.decode(await self.get("/v1/models", timeout), type=_ModelList).data
        except (msgspec.DecodeError, RecursionError):
            raise EngineError("the engine's list of models is malformed") from None

    async def version(self, timeout: float) -> str:
        """What the server says its version is, or "unknown"."""
        if self._dialect.version_path is None:
            return "unknown"
        try:
            raw = await self.get(self._dialect.version_path, timeout)
            return plain_sentence(msgspec.json.decode(raw, type=_Version).version)[:64] or "unknown"
        except (EngineError, msgspec.DecodeError, RecursionError):
            return "unknown"

    @asynccontextmanager
    async def stream(self, body: JsonObject) -> AsyncGenerator[AsyncIterator[list[CompletionEvent]], None]:
        """The events of a streamed completion, as many at once as came at once. Leaving closes the connection, which makes the
        engine stop.
        """
        complaint = EngineError("the engine was asked for nothing")
        with self._pace.asked() as is_calm:
            # Where many streams run, the end of each is heard by its connection being closed (see pace).
            idle = self._idle if is_calm else None
            for asked in _lengths(body):
                raw = msgspec.json.encode(asked)
                async with exchange(self._server, "POST", "/v1/chat/completions", raw, idle) as reply:
                    if reply.status == _OK:
                        async with aclosing(_events(reply, self._pace)) as events:
                            yield events
                        return
                    complaint = _complaint(reply.status, await reply.body(MAX_COMPLAINT_BYTES))
                if not _is_about_length(complaint):
                    break
        raise complaint

    async def post(self, body: JsonObject, limit: int) -> bytes:
        """The reply, of at most `limit` bytes, to a completion that is not streamed; raises EngineError."""
        raw = msgspec.json.encode(body)
        async with exchange(self._server, "POST", "/v1/chat/completions", raw) as reply:
            if reply.status != _OK:
                raise _complaint(reply.status, await reply.body(MAX_COMPLAINT_BYTES))
            return await reply.body(limit)

    async def embed(self, texts: Sequence[str], model: str, timeout: float) -> Vectors:
        """Vectors for at most BATCH_TEXTS texts; raises EngineError."""
        raw = msgspec.json.encode(embedding_request(texts, model))
        try:
            with trio.fail_after(timeout):
                async with exchange(self._server, "POST", EMBEDDINGS_PATH, raw) as reply:
                    if reply.status != _OK:
                        raise _complaint(reply.status, await reply.body(MAX_COMPLAINT_BYTES))
                    return read_vectors(await reply.body(MAX_EMBEDDINGS_BYTES), len(texts))
        except trio.TooSlowError:
            raise EngineError(f"the engine gave no vectors within {timeout:g} s") from None

    async def get(self, path: str, timeout: float) -> bytes:
        """The body of a GET answered with 200 within `timeout` seconds; raises EngineError."""
        try:
            with trio.fail_after(timeout):
                async with exchange(self._server, "GET", path) as reply:
                    if reply.status != _OK:
                        raise EngineError(f"the engine answered {path} with HTTP status {reply.status}")
                    return await reply.body(MAX_REPLY_BYTES)
        except trio.TooSlowError:
            raise EngineError(f"the engine did not answer {path} within {timeout:g} s") from None


class EventReader:
    """Cuts a body into the payloads of server-sent events (HTML standard, section 9.2.6); holds at most one unfinished event."""

    def __init__(self) -> None:
        self._rest = b""
        self._payload: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[str]:
        """The payloads that `chunk` completes; raises EngineError for one that is too long or not UTF-8."""
        raw = self._rest + chunk
        # Engines send one line per event, ended by two line feeds: those need not be looked at line by line.
        is_plain = not self._payload and b"\r" not in raw
        found = self._plain(raw) if is_plain else self._lines(raw)
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise EngineError("the engine sent an event that is too long")
        try:
            return [payload.decode() for payload in found]
        except UnicodeDecodeError:
            raise EngineError("the engine sent text that is not UTF-8") from None

    def _plain(self, raw: bytes) -> list[bytes]:
        found: list[bytes] = []
        *events, self._rest = raw.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:
                found.append(event[6:])
            else:
                rest, self._rest = self._rest, b""
                found += self._lines(event + b"\n\n")
                self._rest = rest
        return found

    def _lines(self, raw: bytes) -> list[bytes]:
        *lines, self._rest = raw.split(b"\n")
        return [payload for payload in map(self._line, lines) if payload]

    def _line(self, line: bytes) -> bytes:
        line = line.removesuffix(b"\r")
        if not line:
            payload = b"\n".join(self._payload)
            self._payload, self._size = [], 0
            return payload
        field, _, value = line.partition(b":")
        if field == b"data":
            self._payload.append(value.removeprefix(b" "))
            self._size += len(value)
        return b""


async def _events(reply: Reply, pace: Pace) -> AsyncGenerator[list[CompletionEvent], None]:
    answer = _Answer()
    with ExitStack() as stack:
        paced: PacedStream | None = None
        while chunk := await reply.chunk():
            if events := answer.feed(chunk):
                yield events
            if answer.is_over:
                return
            if len(chunk) >= _MUCH_BYTES:  # more has come already: a beat would only slow it down, but others have their turn
                await trio.lowlevel.checkpoint()
            elif paced is not None:
                await paced.wait()
            elif answer.has_begun and reply.descriptor is not None:
                paced = stack.enter_context(pace.stream(reply.descriptor))


class _Answer:
    """Reads the events of one completion. `has_begun` once there was text, `is_over` once all was said."""

    def __init__(self) -> None:
        self.has_begun = False
        self.is_over = False
        self._events = EventReader()
        self._size = 0

    def feed(self, chunk: bytes) -> list[CompletionEvent]:
        """The events that `chunk` completes; raises EngineError for what is none, and for more text than any answer has."""
        events: list[CompletionEvent] = []
        for payload in self._events.feed(chunk):
            if payload == "[DONE]":
                self.is_over = True
                break
            event = decode_event(payload)
            events.append(event)
            self._size += sum(_length(choice.delta) for choice in event.choices)
        self.has_begun = self._size > 0
        if self._size > MAX_ANSWER_CHARS:
            raise EngineError("the engine sent more text than was asked for")
        return events


def _length(delta: Delta) -> int:
    return len(delta.content or "") + sum(len(call.function.arguments or "") for call in delta.tool_calls or ())


def _lengths(body: JsonObject) -> Iterator[JsonObject]:
    """The request, and then without a bound of its own: the context's rest is one, and shorter where that did not fit."""
    yield body
    if body.get("max_tokens", 1) > 1:
        yield {name: value for name, value in body.items() if name != "max_tokens"}


def _is_about_length(complaint: EngineError) -> bool:
    """Whether prompt and answer together are too long, for which vLLM refuses a request that llama.cpp would cut short."""
    return isinstance(complaint, EngineRefused) and _ABOUT_LENGTH.search(str(complaint)) is not None


def _complaint(status: int, raw: bytes) -> EngineError:
    try:
        body = msgspec.json.decode(raw, type=_ComplaintBody)
    except (msgspec.DecodeError, RecursionError):
        body = _ComplaintBody()
    found = body.error if isinstance(body.error, _Complaint) else _Complaint(message=body.error or body.message)
    if found.type == "exceed_context_size_error" and found.n_ctx is not None:
        return EngineRefused(f"the prompt does not fit the engine's context of {found.n_ctx} tokens")
    detail = f": {plain_sentence(found.message)}" if found.message else ""
    kind = EngineRefused if status in (400, 413, 422) else EngineError
    return kind(f"the engine refused with HTTP status {status}{detail}")
