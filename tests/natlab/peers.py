"""Real daemons in the namespaces of a laboratory and their local sockets, which the file system carries across."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarmd import Client, ClientError
from tests.forkserver import Process, Request
from tests.natlab.namespaces import LabError
from tests.natlab.topology import Lab

PORT = 4001
READY_SECONDS = 60.0


@dataclass
class Peer:
    """One daemon: where it lives and its process."""

    name: str
    folder: Path
    process: Process
    ready: int
    addresses: list[str] = field(default_factory=list)

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "api.sock"

    @property
    def client(self) -> Client:
        return Client(self.socket, timeout=30)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    @property
    def peer_id(self) -> str:
        return str(self.client.status()["peer_id"])

    def cli(self, *arguments: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-P", "-m", "swarmd", *arguments, "--socket", str(self.socket)]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)

    def wait_ready(self) -> "Peer":
        raw, deadline = b"", time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if select.select([self.ready], [], [], 0.5)[0]:
                piece = os.read(self.ready, 65536)
                raw += piece
                if not piece:
                    break
        if not raw:
            raise LabError(f"{self.name} did not become ready: {self.log[-1500:]}")
        self.addresses = json.loads(raw)["addresses"]
        return self

    def wait_api(self) -> "Peer":
        """Until the local socket answers, which is long before an engine does."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(ClientError, OSError):
                self.client.version()
                return self
            time.sleep(0.05)
        raise LabError(f"{self.name} opened no local socket: {self.log[-1500:]}")

    def path_to(self, peer_id: str) -> dict[str, Any]:
        """The row of `peers` about the path to one peer; empty while there is none."""
        for row in self.client.peers():
            if row["peer_id"] == peer_id:
                return row["path"] or {}
        return {}

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def end(self) -> None:
        """Ask it to stop, and see to it that it has."""
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(8)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.ready)


def start(lab: Lab, name: str, base: Path, *extra: str, listen: str = f"/ip4/0.0.0.0/tcp/{PORT}") -> Peer:
    """Start a daemon in the namespace `name`; it may not be ready yet. The folder's path must be short (Unix sockets)."""
    folder = base / name
    (folder / "run").mkdir(parents=True, mode=0o700)
    arguments = ["start", "--data-dir", str(folder / "data"), "--api", "", "--listen", listen]
    for setting in (f"runtime_dir={folder / 'run'}", "engine.threads=1", f"log.level={lab.log_level}"):
        arguments += ["--set", setting]
    reading, writing = os.pipe()
    with (folder / "log").open("ab") as log:
        request = Request(str(folder), [*arguments, *extra], f"/run/netns/{lab.spaces.full(name)}")
        process = lab.forkserver.fork(request, log.fileno(), writing)
    os.close(writing)
    return Peer(name, folder, process, reading)


def end_all(peers: list[Peer]) -> None:
    """Stop all of them, at the same time."""
    for peer in peers:
        peer.signal(signal.SIGTERM)
    for peer in peers:
        peer.end()
