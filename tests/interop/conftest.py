"""Peers of other libp2p implementations, each a process that JSON lines drive, and ours, which serves the same protocols."""

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import Stream, TransportError
from daemon.transport.options import TransportOptions
from protocol.wire.ids import PeerId

HERE = Path(__file__).parent
LATTICA_PYTHON = Path(os.environ.get("SWARMD_LATTICA_PYTHON", HERE.parents[1] / ".venv-interop/bin/python"))
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
_seeds = itertools.count(1)


class Foreign:
    """A peer in another process. `await peer.ask("ping", peer=...)` answers what it answers, or raises RuntimeError."""

    def __init__(self, process: trio.Process, hello: dict[str, Any]) -> None:
        self.peer = PeerId(hello["peer"])
        self.address: str = hello["address"]
        self._process = process
        self._numbers = itertools.count(1)
        self._asking = trio.Lock()
        self._waiting: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}

    async def ask(self, question: str, **given: Any) -> Any:
        assert self._process.stdin is not None
        number = next(self._numbers)
        self._waiting[number], answered = trio.open_memory_channel[dict[str, Any]](1)
        with trio.fail_after(20):
            async with self._asking:
                await self._process.stdin.send_all(json.dumps({"id": number, "ask": question, **given}).encode() + b"\n")
            reply = await answered.receive()
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["answer"]

    async def hear(self, lines: AsyncIterator[dict[str, Any]]) -> None:
        """Hand each answer to who asked; answers come in any order."""
        async for reply in lines:
            self._waiting.pop(reply["id"]).send_nowait(reply)


@asynccontextmanager
async def foreign(command: list[str]) -> AsyncIterator[Foreign]:
    """The peer that `command` runs, until the block ends."""

    async def lines() -> AsyncIterator[dict[str, Any]]:
        assert process.stdout is not None
        rest = b""
        async for received in process.stdout:
            *whole, rest = (rest + received).split(b"\n")
            for line in whole:
                if line.startswith(b"{"):
                    yield json.loads(line)

    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=HERE)
    heard = lines()
    try:
        with trio.fail_after(20):
            peer = Foreign(process, await anext(heard))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.hear, heard)
            yield peer
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    await pipe.aclose()


@pytest.fixture
async def js() -> AsyncIterator[Foreign]:
    """A js-libp2p peer."""
    node = shutil.which("node")
    if node is None or not (HERE / "node_modules/libp2p").is_dir():
        pytest.skip("needs node 20 or later and the packages that `make interop` installs")
    async with foreign([node, "peer.mjs"]) as peer:
        yield peer


@pytest.fixture
def lattica(tmp_path: Path) -> Callable[..., Any]:
    """`async with lattica(address, ...) as peer`: a rust-libp2p peer, by way of the lattica wheel, that dials these addresses."""
    if not LATTICA_PYTHON.exists():
        pytest.skip("needs the lattica wheel, in the environment that `make interop` makes")
    return lambda *addresses: foreign([str(LATTICA_PYTHON), "lattica_peer.py", str(tmp_path), *addresses])


class Ours(Libp2pTransport):
    """A transport that serves /interop/*, and notes how the streams to it ended."""

    def __init__(self, options: TransportOptions, **records: Any) -> None:
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"%d" % next(_seeds)).digest())
        super().__init__(key, options, **records)
        self.release = trio.Event()
        self.broken: list[str] = []
        for name in ("echo", "hash", "hold", "reset"):
            self.handle(f"/interop/{name}/1", self._noting(name, getattr(self, f"_{name}")))

    def _noting(self, name: str, serve: Callable[[Stream], Any]) -> Callable[[Stream], Any]:
        async def noting(stream: Stream) -> None:
            try:
                await serve(stream)
            except TransportError:
                self.broken.append(name)
                raise

        return noting

    async def _echo(self, stream: Stream) -> None:
        while received := await stream.receive_some():
            await stream.send_all(received)

    async def _hash(self, stream: Stream) -> None:
        await stream.send_all(await hash_of(stream))

    async def _hold(self, stream: Stream) -> None:
        await self.release.wait()
        await self._hash(stream)

    async def _reset(self, stream: Stream) -> None:
        await stream.receive_some()
        await stream.reset()


async def hash_of(stream: Stream) -> bytes:
    """The SHA-256 of all that the peer sends until it finishes."""
    hashed = hashlib.sha256()
    while received := await stream.receive_some():
        hashed.update(received)
    return hashed.digest()


@pytest.fixture
def ours() -> Callable[..., Any]:
    """`async with ours(option=...) as transport`: one of ours, listening on loopback."""

    @asynccontextmanager
    async def run(records: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Ours]:
        transport = Ours(TransportOptions(**{"listen": LOOPBACK, **options}), **(records or {}))
        with trio.fail_after(60):
            async with transport.running():
                yield transport

    return run


@pytest.fixture
def until() -> Callable[..., Any]:
    """`await until(condition)`: the first true answer of a function, async or not, within ten seconds."""

    async def wait(condition: Callable[[], Any]) -> Any:
        with trio.fail_after(10):
            while True:
                answer = condition()
                answer = await answer if hasattr(answer, "__await__") else answer
                if answer:
                    return answer
                await trio.sleep(0.02)

    return wait


@pytest.fixture(params=["we dial", "js dials"])
def meet(request: pytest.FixtureRequest, ours: Any, js: Foreign, until: Any) -> Callable[..., Any]:
    """`async with meet(option=...) as transport`: one of ours and the js peer, connected; once each way."""

    @asynccontextmanager
    async def connected(**given: Any) -> AsyncIterator[Ours]:
        async with ours(**given) as transport:
            if request.param == "we dial":
                await transport.connect(js.peer, [js.address])
            else:
                await js.ask("dial", address=transport.addresses()[0])
            # Who dials is done a moment before who accepts.
            path = await until(lambda: transport.paths().get(js.peer))
            await until(lambda: js.ask("connected", peer=transport.peer_id))
            assert path.inbound is (request.param == "js dials")
            yield transport

    return connected


@pytest.fixture
def report() -> Callable[[str], None]:
    """Say a measured number; `pytest -s` shows it."""
    return lambda line: print(f"\n  {line}", file=sys.stderr)
