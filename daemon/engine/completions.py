"""The HTTP client of every engine: probes, the model list and streamed completions. Leaving a stream closes its connection.

Bounds what a server may send. Must not start or stop engines.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import trio

from daemon.engine.dialect import CompletionEvent, Dialect, JsonObject, decode_event, plain_sentence
from daemon.engine.interface import EngineError, EngineRefused

MAX_EVENT_BYTES = 256 << 10
MAX_TEXT_BYTES = 1 << 20
"""All events of one answer hold no more text than this: 4096 tokens of the longest kind do not reach it."""
MAX_REPLY_BYTES = 1 << 20
MAX_COMPLAINT_BYTES = 8 << 10

CONNECT_TIMEOUT = 10.0
SILENCE_TIMEOUT = 300.0
"""Seconds without a byte in an answer; a long prompt on a busy vLLM is silent for minutes."""


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
    """Speaks to one server, over a Unix socket or TCP. Use as an async context manager."""

    def __init__(self, dialect: Dialect, base_url: str, socket: Path | None, key: str = "") -> None:
        self._dialect = dialect
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=httpx2.AsyncHTTPTransport(uds=None if socket is None else str(socket), trust_env=False),
            timeout=httpx2.Timeout(SILENCE_TIMEOUT, connect=CONNECT_TIMEOUT),
            follow_redirects=False,
            trust_env=False,
        )

    async def __aenter__(self) -> "CompletionClient":
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        with trio.CancelScope(shield=True):
            await self._http.aclose()

    async def check_health(self, timeout: float) -> None:
        """Raises EngineError unless the server says within `timeout` seconds that it is well."""
        await self._get(self._dialect.health_path, timeout)

    async def served_models(self, timeout: float) -> list[ServedModel]:
        """What the server lists; raises EngineError."""
        try:
            return msgspec.json.decode(await self._get("/v1/models", timeout), type=_ModelList).data
        except (msgspec.DecodeError, RecursionError):
            raise EngineError("the engine's list of models is malformed") from None

    async def version(self, timeout: float) -> str:
        """What the server says its version is, or "unknown"."""
        if self._dialect.version_path is None:
            return "unknown"
        try:
            raw = await self._get(self._dialect.version_path, timeout)
            return plain_sentence(msgspec.json.decode(raw, type=_Version).version)[:64] or "unknown"
        except (EngineError, msgspec.DecodeError, RecursionError):
            return "unknown"

    @asynccontextmanager
    async def stream(self, body: JsonObject) -> AsyncGenerator[AsyncIterator[CompletionEvent], None]:
        """The events of a streamed completion. Leaving closes the connection, which makes the engine stop."""
        async with contextlib.AsyncExitStack() as stack:
            with _as_engine_error():
                response = await stack.enter_async_context(self._http.stream("POST", "/v1/chat/completions", json=body))
                if response.status_code != httpx2.codes.OK:
                    raise _complaint(response.status_code, await _read(response, MAX_COMPLAINT_BYTES))
            events = _events(response)
            stack.push_async_callback(events.aclose)
            yield events

    async def _get(self, path: str, timeout: float) -> bytes:
        try:
            with trio.fail_after(timeout), _as_engine_error():
                async with self._http.stream("GET", path) as response:
                    if response.status_code != httpx2.codes.OK:
                        raise EngineError(f"the engine answered {path} with HTTP status {response.status_code}")
                    return await _read(response, MAX_REPLY_BYTES)
        except trio.TooSlowError:
            raise EngineError(f"the engine did not answer {path} within {timeout:g} s") from None


async def _events(response: httpx2.Response) -> AsyncGenerator[CompletionEvent, None]:
    size = 0
    with _as_engine_error():
        async for event in httpx2.EventSource(response, max_event_size=MAX_EVENT_BYTES):
            if event.data == "[DONE]":
                return
            if event.data:
                decoded = decode_event(event.data)
                size += sum(len(choice.delta.content or "") for choice in decoded.choices)
                if size > MAX_TEXT_BYTES:
                    raise EngineError("the engine sent more text than was asked for")
                yield decoded


async def _read(response: httpx2.Response, limit: int) -> bytes:
    raw = b""
    async for chunk in response.aiter_bytes():
        raw += chunk
        if len(raw) > limit:
            raise EngineError("the engine's reply is too long")
    return raw


@contextlib.contextmanager
def _as_engine_error() -> Iterator[None]:
    try:
        yield
    except httpx2.ConnectError:
        raise EngineError("nothing listens where the engine should") from None
    except httpx2.TimeoutException:
        raise EngineError("the engine fell silent") from None
    except (httpx2.HTTPError, httpx2.StreamError, httpx2.SSEError) as error:
        raise EngineError(f"the connection to the engine broke ({type(error).__name__})") from None


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
