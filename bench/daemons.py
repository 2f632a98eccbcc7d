"""Real daemons and engines for a benchmark, each a process under one short temporary folder. Measures nothing."""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60.0
ENGINE_KEY = "bench"


class StartError(Exception):
    """A process did not become ready; the message carries the end of what it said."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A ready daemon: its full address for peers, its local socket."""

    pid: int
    address: str
    socket: Path


class Processes:
    """Context manager over all processes of one benchmark: what it started it ends, and its folder goes with it."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="swb")
        self._children: list[subprocess.Popen[bytes]] = []
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("SWARMD_")}
        self._environment["PYTHONPATH"] = str(ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in self._children:
            child.terminate()
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(15)
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        self._folder.cleanup()

    def daemon(self, name: str, *arguments: str, prefix: Sequence[str] = (), listen: str = "/ip4/127.0.0.1/tcp/0") -> Daemon:
        """Start one daemon, by the command `prefix` where there is one, and wait until it is ready; raises StartError."""
        folder = Path(self._folder.name) / name
        (folder / "run").mkdir(parents=True, mode=0o700)
        reading, writing = os.pipe()
        command = [*prefix, sys.executable, "-m", "swarmd", "start", "--data-dir", str(folder / "data"), "--api", ""]
        command += ["--set", f"runtime_dir={folder / 'run'}", "--listen", listen, "--ready-fd", str(writing)]
        child = self._start(name, [*command, *arguments], pass_fds=(writing,))
        os.close(writing)
        try:
            said = _line(reading)
        finally:
            os.close(reading)
        if not said:
            raise StartError(f"daemon {name} is not ready: {self._log(name)}")
        return Daemon(child.pid, json.loads(said)["addresses"][0], folder / "run" / "api.sock")

    def engine(self, model: Path, slots: int, context: int) -> tuple[int, Path]:
        """Start the embedded engine alone, as the daemon starts it, with `ENGINE_KEY`; gives its process and its socket."""
        socket = Path(self._folder.name) / "engine.sock"
        command = [sys.executable, "-P", "-m", "daemon.engine.embedded_child", "--model", str(model), "--name", "bench"]
        command += ["--socket", str(socket), "--threads", "1", "--slots", str(slots), "--context", str(context)]
        child = self._start("engine", [*command, "--http-threads", str(slots + 2)], stdin=subprocess.PIPE)
        assert child.stdin is not None
        child.stdin.write(ENGINE_KEY.encode() + b"\n")
        child.stdin.flush()
        deadline = time.monotonic() + READY_SECONDS
        while not socket.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"the engine is not ready: {self._log('engine')}")
            time.sleep(0.05)
        return child.pid, socket

    def program(self, module: str, *arguments: str) -> str:
        """Start a module that prints one line, its address, and serves until it is ended; gives that line."""
        child = self._start(module, [sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE)
        assert child.stdout is not None
        said = _line(child.stdout.fileno())
        if not said:
            raise StartError(f"{module} is not ready: {self._log(module)}")
        return said.decode().strip()

    def _start(self, name: str, command: list[str], **how: object) -> "subprocess.Popen[bytes]":
        with (Path(self._folder.name) / f"{name}.log").open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, **how}
            child = subprocess.Popen(command, cwd=ROOT, env=self._environment, **streams)  # type: ignore[call-overload]
        self._children.append(child)
        return child  # type: ignore[no-any-return]

    def _log(self, name: str) -> str:
        return (Path(self._folder.name) / f"{name}.log").read_text("utf-8", "replace")[-1500:].strip() or "it left no message"


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all its threads, in user and kernel (proc(5), stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def only_child(pid: int) -> int:
    """The process that a daemon has started: its engine."""
    (child,) = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")).split()
    return int(child)


def _line(descriptor: int) -> bytes:
    """What a process says first; b"" where it ended or said nothing in time."""
    if not select.select([descriptor], [], [], READY_SECONDS)[0]:
        return b""
    return os.read(descriptor, 65536)
