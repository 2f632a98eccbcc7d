"""A running local API in front of a small in-memory backend (a fake: the node behind the API is not what is tested here)."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import trio

from daemon.api.app import build_app, template_of
from daemon.api.backend import AskRequest, Attempt, BegunEvent, Emit, MemberProgress, ProgressEvent, ResultEvent, TokenEvent
from daemon.api.listeners import UnixListener, open_tcp
from daemon.api.server import HttpLimits, HttpServer, Listener
from daemon.metrics import Metrics
from protocol.job import Usage
from protocol.wire.errors import Code, RemoteError

PEER = "12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"


@dataclass
class FakeBackend:
    """Answers from memory; `running` counts asks in progress, `cancelled` those that were left before their end."""

    asked: list[AskRequest] = field(default_factory=list)
    running: int = 0
    cancelled: int = 0
    stopped: bool = False
    error: RemoteError | None = None
    endless: bool = False
    reasons: tuple[str, ...] = ()

    async def status(self) -> dict[str, Any]:
        return {"state": "ready", "peer_id": PEER}

    async def peers(self) -> dict[str, Any]:
        return {"peers": []}

    async def models(self) -> dict[str, Any]:
        return {"models": [{"name": "tiny-all", "peers": [PEER]}]}

    async def rounds(self) -> dict[str, Any]:
        return {"rounds": []}

    async def round(self, round_id: str) -> dict[str, Any]:
        raise RemoteError(Code.NOT_FOUND, f"no round {round_id}")

    async def verify(self, round_id: str) -> dict[str, Any]:
        return {"round_id": round_id, "ok": True}

    async def asks(self) -> dict[str, Any]:
        return {"asks": []}

    async def ask_note(self, ask_id: str) -> dict[str, Any]:
        return {"ask_id": ask_id}

    async def why(self, named: str) -> dict[str, Any]:
        return {"what": "ask", "ask_id": named}

    async def config(self) -> dict[str, Any]:
        return {}

    async def netcheck(self) -> dict[str, Any]:
        return {"advice": "nothing to do"}

    async def lookup(self, what: str) -> dict[str, Any]:
        return {"key": what, "verdict": "absent", "steps": []}

    async def ping(self, peer_id: str) -> dict[str, Any]:
        return {"peer_id": peer_id, "rtt_ms": 1.0, "path": None}

    async def reputation(self, peer_id: str | None) -> dict[str, Any]:
        return {"claims": 0, "peer": peer_id}

    async def stop(self) -> None:
        self.stopped = True

    def readiness(self) -> tuple[bool, tuple[str, ...]]:
        return not self.reasons, self.reasons

    async def ask(self, request: AskRequest, emit: Emit) -> None:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        self.running += 1
        try:
            await self._answer(request, emit)
        except BaseException:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: AskRequest, emit: Emit) -> None:
        if request.strategy != "route":
            await emit(ProgressEvent("seal", (MemberProgress(PEER, "tiny-all", "sealed"),), 1, 0, 0, 7))
        else:
            await emit(BegunEvent(PEER, "direct", 2))
        for word in ("for", "ty ", "two"):
            if request.strategy == "route":
                await emit(TokenEvent(word))
        while self.endless:
            await emit(TokenEvent("."))
            await trio.sleep(0.02)
        done = {"round_id": "ab", "winner": 0} if request.strategy != "route" else None
        usage = Usage(3, 2)
        attempts = (Attempt(PEER, "ok"),)
        await emit(ResultEvent("forty two", PEER, "tiny-all", request.strategy, "stop", usage, attempts, "direct", 0.1, done))


@dataclass
class Api:
    """A running API: its backend, socket path and loopback port."""

    backend: FakeBackend
    socket: Path
    port: int
    server: HttpServer
    statuses: list[int]
    routes: list[str]

    async def raw(self, request: bytes, over: str = "unix") -> bytes:
        """Send bytes as they are and read until the server closes or goes quiet for a second."""
        stream: trio.SocketStream
        if over == "unix":
            stream = await trio.open_unix_socket(str(self.socket))
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        received = b""
        async with stream:
            with trio.move_on_after(1):
                try:
                    await stream.send_all(request)
                    async for piece in stream:
                        received += piece
                except trio.BrokenResourceError:
                    pass
        return received


@pytest.fixture
def start_api(tmp_path: Path, nursery: trio.Nursery) -> Callable[..., Any]:
    async def start(key: str | None = None, limits: HttpLimits | None = None) -> Api:
        backend = FakeBackend()
        statuses, routes = list[int](), list[str]()

        def count_one(scope: Any, status: int) -> None:
            statuses.append(status)
            routes.append(template_of(scope))

        app = build_app(backend, Metrics().registry, key, lambda: 1000.0, (f"id{number}" for number in count(1)).__next__)
        server = HttpServer(app, limits or HttpLimits(), count_one)
        folder = Path(f"/tmp/swarmd-test-{os.getpid()}-{tmp_path.name[-20:]}")
        folder.mkdir(mode=0o700, exist_ok=True)
        door = UnixListener(folder / "api.sock")
        unix = await door.open()
        tcp, port = await open_tcp("127.0.0.1", 0, False)

        async def on_unix(stream: trio.SocketStream) -> None:
            await server.serve(stream, Listener("unix"))

        async def on_tcp(stream: trio.SocketStream) -> None:
            await server.serve(stream, Listener("tcp", port))

        nursery.start_soon(server.run)
        nursery.start_soon(trio.serve_listeners, on_unix, [unix])
        nursery.start_soon(trio.serve_listeners, on_tcp, [tcp])
        return Api(backend, door.path, port, server, statuses, routes)

    return start


@pytest.fixture
async def api(start_api: Callable[..., Any]) -> Api:
    started: Api = await start_api()
    return started
