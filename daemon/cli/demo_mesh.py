"""The demo's mesh: real daemons as child processes in one folder, each with its own key, engine and model. Prints nothing."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daemon.cli.common import CommandFailed
from swarmd import Client, ClientError

READY_SECONDS = 60.0
STOP_SECONDS = 15.0


@dataclass(slots=True)
class Node:
    """One daemon of the demo."""

    name: str
    model: str
    folder: Path
    child: "subprocess.Popen[bytes]"
    ready: int
    address: str = ""
    api_url: str = ""
    killed: bool = False

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "api.sock"

    @property
    def log(self) -> Path:
        return self.folder / "swarmd.log"

    def client(self, timeout: float = 30.0) -> Client:
        return Client(self.socket, timeout=timeout)


class Mesh:
    """Starts, watches and stops the nodes, each with `settings`. Leaving the context stops every process and removes the folder,
    unless `keep`."""

    def __init__(self, models: Sequence[str], keep: bool, settings: Mapping[str, object] | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swarmd-demo-"))
        self.nodes: list[Node] = []
        self.keep = keep
        self._models = models
        self._settings = dict(settings or {})

    def __enter__(self) -> "Mesh":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if not (self.keep and kind is None):
            self.stop()

    def start_bootstrap(self) -> Node:
        """Start the first node and wait for its address."""
        node = self._spawn(0, ())
        self.wait_ready(node, time.monotonic() + READY_SECONDS)
        return node

    def start_others(self, progress: Callable[[], None]) -> None:
        """Start all other nodes at once, joined through the first, and wait until each is ready."""
        for index in range(1, len(self._models)):
            self._spawn(index, (self.nodes[0].address,))
        deadline = time.monotonic() + READY_SECONDS
        progress()
        for node in self.nodes[1:]:
            self.wait_ready(node, deadline)
            progress()

    def _spawn(self, index: int, join: Sequence[str]) -> Node:
        folder = self.folder / f"node{index}"
        (folder / "run").mkdir(parents=True, mode=0o700)
        reading, writing = os.pipe()
        settings = {"runtime_dir": folder / "run", "engine.threads": 1, "log.format": "json", **self._settings}
        # -P: a folder called swarmd in the working directory must not be taken for us.
        command = [
            sys.executable,
            "-P",
            "-m",
            "swarmd",
            "start",
            "--data-dir",
            str(folder / "data"),
            "--model",
            self._models[index],
        ]
        command += ["--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--ready-fd", str(writing)]
        command += [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        command += [part for address in join for part in ("--join", address)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SWARMD_")}
        with (folder / "swarmd.log").open("wb") as log:
            child = subprocess.Popen(  # noqa: S603 - our own program with our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,
                env=environ,
                cwd=folder,
            )
        os.close(writing)
        node = Node(f"node{index}", self._models[index], folder, child, reading)
        self.nodes.append(node)
        return node

    def wait_ready(self, node: Node, deadline: float) -> None:
        """Wait for the node's own word that it is ready; raises CommandFailed with the end of its log."""
        raw = b""
        while time.monotonic() < deadline:
            readable, _, _ = select.select([node.ready], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(node.ready, 65536) if readable else b""
            raw += piece
            if not piece:
                break
        os.close(node.ready)
        try:
            said = json.loads(raw)
            node.address, node.api_url = said["addresses"][0] if said["addresses"] else "", said["api_url"]
        except (ValueError, LookupError):
            tail = node.log.read_text("utf-8", "replace").splitlines()[-5:]
            raise CommandFailed(f"{node.name} did not become ready: " + (" | ".join(tail) or "it said nothing")) from None

    def living(self) -> list[Node]:
        """Nodes whose process still runs."""
        return [node for node in self.nodes if not node.killed and node.child.poll() is None]

    def kill(self, node: Node) -> None:
        """SIGKILL the daemon, as a power cut would; its engine dies with it."""
        node.killed = True
        node.child.kill()
        node.child.wait()

    def peers_known(self, node: Node) -> int:
        """How many other peers with a model this node could ask now; 0 while it does not answer."""
        try:
            return sum(
                1 for peer in node.client(5.0).peers() if peer.get("model") and peer.get("state") in ("alive", "connected")
            )
        except ClientError:
            return 0

    def peak_bytes(self) -> int:
        """The sum of the peak resident sizes (VmHWM) of all daemons and engines: an upper bound: shared pages count twice."""
        total = 0
        for node in self.living():
            for pid in _session(node.child.pid):
                total += _peak(pid)
        return total

    def stop(self) -> None:
        """Ask every node to stop, kill what does not, and remove the folder."""
        for node in self.living():
            node.child.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for node in self.nodes:
            try:
                node.child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                node.child.kill()
                node.child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _session(leader: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [leader]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def _peak(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
