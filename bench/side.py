"""One side of a benchmark as the benchmark sees it: two processes, started, ordered about, watched and ended.

Decides what a run's CPU time is (both processes with their children, from /proc); never what the figures mean.
"""

import json
import os
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.loads import Load

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 40.0
GRACE_SECONDS = 20.0
"""What a load may take beyond its time: an order is over once all in flight has come back."""

TICKS = os.sysconf("SC_CLK_TCK")


class SideError(Exception):
    """A side could not do it; the message carries the end of what its processes said."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One order's outcome: units per second, and CPU microseconds per unit of the caller's and the server's processes."""

    rate: float
    caller_cpu: float
    server_cpu: float
    cut: int = 0
    """Streams that ended before their last item without an error."""


class _Process:
    """One of a side's processes: lines of JSON in and out, everything else kept for the error message."""

    def __init__(self, python: str, module: str, address: str = "") -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self._module = module
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        arguments = [python, "-m", module] + ([address] if address else [])
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            arguments, stdin=pipe, stdout=pipe, stderr=self._said, cwd=ROOT, env=environment, text=True, start_new_session=True
        )
        self.pid = self._process.pid

    def tell(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideError(self._complaint("ended")) from None

    def hear(self, limit: float) -> dict[str, Any]:
        """The next line; raises SideError where none comes within `limit` seconds."""
        assert self._process.stdout is not None
        timer = threading.Timer(limit, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        if not line:
            raise SideError(self._complaint(f"said nothing (limit {limit:.0f} s)"))
        heard: dict[str, Any] = json.loads(line)
        return heard

    def cpu_seconds(self) -> float:
        """Of the process and all that it started."""
        total = 0
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if int(fields[3]) == self.pid:  # its session
                    total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._said.close()

    def _complaint(self, what: str) -> str:
        self._said.seek(0)
        last = self._said.read()[-2000:].decode("utf-8", "replace").strip()
        return f"{self._module} {what}: {last or 'it left no message'}"


class Side:
    """A server and its caller, as a context manager. `module` is one of `bench.peers`, run by `python`."""

    def __init__(self, name: str, module: str, python: str) -> None:
        self.name = name
        self._module = module
        self._python = python
        self._processes: list[_Process] = []
        self.failures: list[str] = []
        """Why it had to be started anew."""

    def __enter__(self) -> Self:
        try:
            server = self._start()
            address = server.hear(START_SECONDS)["address"]
            self._start(address).hear(START_SECONDS)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in reversed(self._processes):
            process.end()
        self._processes.clear()

    def _start(self, address: str = "") -> _Process:
        process = _Process(self._python, self._module, address)
        self._processes.append(process)
        return process

    def run_again(self, load: Load, seconds: float) -> Sample:
        """Run one load, on fresh processes where it failed (twice at most): a rival's fault must not cost the whole run."""
        for _ in range(2):
            try:
                return self.run(load, seconds)
            except SideError as error:
                self.failures.append(f"{load.title}: {str(error).splitlines()[-1][:160]}")
                self.__exit__(None, None, None)
                self.__enter__()
        return self.run(load, seconds)

    def run(self, load: Load, seconds: float) -> Sample:
        """Run one load; raises SideError."""
        before = [process.cpu_seconds() for process in self._processes]
        caller = self._processes[1]
        caller.tell({"load": load.name, "seconds": seconds})
        outcome = caller.hear(seconds + GRACE_SECONDS)
        server_cpu, caller_cpu = (
            (process.cpu_seconds() - earlier) / outcome["units"] * 1e6
            for process, earlier in zip(self._processes, before, strict=True)
        )
        return Sample(outcome["units"] / outcome["seconds"], caller_cpu, server_cpu, outcome["cut"])
