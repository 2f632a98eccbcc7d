"""Runs one child process from its start until nothing of it is left. Decides nothing about when, and knows nothing of engines."""

import contextlib
import re
import secrets
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from daemon.engine.dialect import plain_sentence
from daemon.engine.process_group import MARK, ChildRecord, end_group, record_of, write_record

TAIL_LINES = 200
TAIL_LINE_CHARS = 500
NO_ROOM = 126
"""Stands for the exit status where the system had no memory, process or file left for a child."""

_HUNG_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL for a child that does not answer: its requests are lost already, or not yet taken."""
_LAST_WORDS = 0.2
"""Seconds to read what a dead child had written."""


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """How the child is started. `key` is written to its standard input as one line; the pipe then stays open, so that its end
    tells the child that this process has died."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]
    socket: Path
    record: Path
    key: str = ""
    grace: float = 2.0
    """Seconds between SIGTERM and SIGKILL when stopping."""
    titles: tuple[str, ...] = ()
    name: str = "the engine"
    telling: re.Pattern[str] | None = None
    """Finds the cause of its death in a line of its output, as group 1; without one, or a match, the last line has to do."""
    scratch: Path | None = None
    """A folder for what the child leaves lying about: made afresh before each start, removed after each end."""


@dataclass(slots=True)
class _Tail:
    """Fills `lines` with the last lines of a child's output; holds at most one unfinished line."""

    lines: deque[str]
    telling: re.Pattern[str] | None = None
    _cause: str = ""
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> None:
        *whole, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[:TAIL_LINE_CHARS]
        for line in [line[:TAIL_LINE_CHARS].decode(errors="replace") for line in whole if line.strip()]:
            self.lines.append(line)
            if self.telling is not None and (found := self.telling.search(line)):
                self._cause = found[1]

    def last(self) -> str:
        self.feed(b"\n")
        return self._cause or (self.lines[-1] if self.lines else "")


@dataclass(slots=True)
class Child:
    """One run of `command`. Setting `killed` ends it early."""

    command: ChildCommand
    lines: deque[str]
    """Receives the last lines that the child writes."""
    killed: trio.Event
    pid: int | None = None
    served: bool = False
    """Set once it has been ready. vLLM does not act on SIGTERM while it loads, and has nothing to finish then."""

    async def run(self, spawned: Callable[[], Awaitable[None]]) -> tuple[int | None, str]:
        """The exit status (negative for a signal, None where a person must mend the start) and a sentence about the end."""
        command, mark = self.command, secrets.token_hex(16)
        command.socket.unlink(missing_ok=True)
        try:
            _clear(command.scratch)
            if command.scratch is not None:
                command.scratch.mkdir(mode=0o700)
            process = await _open(command, mark)
        except OSError as error:
            mendable = isinstance(error, FileNotFoundError | PermissionError)
            return None if mendable else NO_ROOM, f"{command.name} could not be started: {error.strerror}"
        record = record_of(process.pid, mark, command.titles)
        tail = _Tail(self.lines, command.telling)
        try:
            self.pid = process.pid
            write_record(command.record, record)
            await self._until_exit(process, record, tail, spawned)
        finally:
            with trio.CancelScope(shield=True):
                await end_group(record, command.grace if self.served else min(command.grace, _HUNG_GRACE))
                await process.wait()
                await _close_pipes(process)
            self.pid = None
            command.socket.unlink(missing_ok=True)
            command.record.unlink(missing_ok=True)
            _clear(command.scratch)
        return process.returncode, _obituary(command.name, process.returncode, tail)

    async def _until_exit(
        self, process: trio.Process, record: ChildRecord, tail: _Tail, spawned: Callable[[], Awaitable[None]]
    ) -> None:
        async with trio.open_nursery() as nursery:
            read_all = trio.Event()
            nursery.start_soon(_read_tail, process, tail, read_all)
            nursery.start_soon(_hand_over_key, process, self.command.key)
            nursery.start_soon(_end_when, self.killed, record)
            await spawned()
            await process.wait()
            with trio.move_on_after(_LAST_WORDS):
                await read_all.wait()
            nursery.cancel_scope.cancel()


def _clear(scratch: Path | None) -> None:
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


async def _open(command: ChildCommand, mark: str) -> trio.Process:
    return await trio.lowlevel.open_process(
        list(command.argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**command.environment, MARK: mark},
        cwd=command.socket.parent,
        start_new_session=True,
    )


async def _read_tail(process: trio.Process, tail: _Tail, read_all: trio.Event) -> None:
    assert process.stdout is not None  # noqa: S101 - asked for in _open
    try:
        async for chunk in process.stdout:
            tail.feed(bytes(chunk))
    except trio.BrokenResourceError:
        pass
    read_all.set()


async def _hand_over_key(process: trio.Process, key: str) -> None:
    assert process.stdin is not None  # noqa: S101 - asked for in _open
    with contextlib.suppress(trio.BrokenResourceError):  # the child died first; its exit says why
        await process.stdin.send_all(f"{key}\n".encode())


async def _end_when(killed: trio.Event, record: ChildRecord) -> None:
    await killed.wait()
    await end_group(record, _HUNG_GRACE)


async def _close_pipes(process: trio.Process) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            await pipe.aclose()


def _obituary(name: str, code: int | None, tail: _Tail) -> str:
    how = f"with status {code}"
    if code is not None and code < 0:
        how = f"by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"by signal {-code}"
    last = plain_sentence(tail.last())
    return f"{name} ended {how}" + (f": {last}" if last else "")
