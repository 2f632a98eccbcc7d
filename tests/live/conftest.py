"""Real daemons in real processes, with the shipped models in the embedded engine; and the `swarmd` command beside them."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from swarmd import Client
from tests.forkserver import ForkServer, Process, Request

READY_SECONDS = 40.0
COMMAND = [sys.executable, "-P", "-m", "swarmd"]

Child: TypeAlias = "subprocess.Popen[bytes] | Process"


@dataclass
class Ran:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Daemon:
    """One daemon process. `cli` runs a command against it, `client` is the client library on its socket."""

    folder: Path
    child: Child
    ready: int
    address: str = ""
    api_url: str = ""
    stopped: bool = field(default=False)

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "api.sock"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    @property
    def client(self) -> Client:
        return Client(self.socket, timeout=30)

    @property
    def peer_id(self) -> str:
        return self.address.rpartition("/p2p/")[2]

    def cli(self, *arguments: str, stdin: str | None = None) -> Ran:
        return run_cli(*arguments, "--socket", str(self.socket), stdin=stdin)

    def wait_ready(self) -> "Daemon":
        raw, deadline = b"", time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if not select.select([self.ready], [], [], 0.5)[0]:
                continue
            piece = os.read(self.ready, 65536)
            raw += piece
            if not piece:
                break
        assert raw, f"not ready: {self.log[-2000:]}"
        said = json.loads(raw)
        self.address, self.api_url = said["addresses"][0] if said["addresses"] else "", said["api_url"]
        return self

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        code = self.child.wait(25)
        self.stopped = True
        return code


def run_cli(*arguments: str, stdin: str | None = None, timeout: float = 60) -> Ran:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SWARMD_")}
    done = subprocess.run(
        [*COMMAND, *arguments], input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
        capture_output=True, text=True, timeout=timeout, env=environ, check=False,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def execute(request: Request, log: int, ready: int) -> "subprocess.Popen[bytes]":
    """A daemon as its user starts it, in an interpreter of its own."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SWARMD_")}
    command = [*COMMAND, *request.arguments, "--ready-fd", str(ready)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(ready,), env=environ, cwd=request.folder
    )  # fmt: skip


class Starter:
    """Starts daemons under one short folder by `launch(request, log, ready)`; as a context, it leaves none behind."""

    def __init__(self, base: Path, launch: Callable[[Request, int, int], Child] = execute) -> None:
        self._base = base
        self._launch = launch
        self._daemons: list[Daemon] = []

    def __enter__(self) -> "Starter":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def arguments(self, name: str) -> list[str]:
        folder = self._base / name
        (folder / "run").mkdir(parents=True, mode=0o700, exist_ok=True)
        return ["--data-dir", str(folder / "data"), "--set", f"runtime_dir={folder / 'run'}", "--set", "engine.threads=1"]

    def start(self, name: str, *extra: str, listen: str = "/ip4/127.0.0.1/tcp/0") -> Daemon:
        """A daemon that may not be ready yet."""
        reading, writing = os.pipe()
        folder = self._base / name
        arguments = ["start", *self.arguments(name), "--api", "127.0.0.1:0", *(["--listen", listen] if listen else []), *extra]
        with (folder / "log").open("ab") as log:
            child = self._launch(Request(str(folder), arguments), log.fileno(), writing)
        os.close(writing)
        daemon = Daemon(folder, child, reading)
        self._daemons.append(daemon)
        return daemon

    def __call__(self, name: str, *extra: str) -> Daemon:
        return self.start(name, *extra).wait_ready()

    def end(self) -> None:
        for daemon in self._daemons:
            if daemon.child.poll() is None:
                daemon.child.terminate()
        for daemon in self._daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.child.wait(20)
            if daemon.child.poll() is None:
                daemon.child.kill()
                daemon.child.wait()
            with contextlib.suppress(OSError):
                os.close(daemon.ready)


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture
def starter(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Iterator[Starter]:
    with Starter(tmp_path_factory.mktemp("d"), forks.fork) as started:
        yield started


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory, forks: ForkServer) -> Iterator[list[Daemon]]:
    """Three daemons that know each other, for tests that change nothing but rounds and claims."""
    with Starter(tmp_path_factory.mktemp("m"), forks.fork) as starter:
        first = starter("a", "--model", "tiny-all")
        served = {"b": "tiny-sort-bool", "c": "tiny-add-mod"}
        others = [starter.start(name, "--model", model, "--join", first.address) for name, model in served.items()]
        daemons = [first, *(other.wait_ready() for other in others)]
        until(lambda: all(len(alive(daemon)) == 2 for daemon in daemons))
        yield daemons


def alive(daemon: Daemon) -> list[str]:
    """Peers with a model that this daemon could ask."""
    return [peer["peer_id"] for peer in daemon.client.peers() if peer["model"] and peer["state"] == "alive"]


def until(holds: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll a condition; fails the test when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while True:
        if given := holds():
            return given
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
