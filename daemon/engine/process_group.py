"""Decides how a child process and all its descendants are found and ended, also after our own crash. Knows nothing of engines."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

RECORD_SUFFIX = ".child.json"
MARK = "SWARMD_ENGINE_MARK"
"""Environment variable that every descendant inherits; its value is random, so no stranger's process can carry it."""

LEADERLESS_GRACE = 1.0
"""Seconds for descendants whose leader has died."""

_JANITOR = b"\0from multiprocessing.resource_tracker import main;"
_JANITOR_GRACE = 1.0
"""Seconds for Python's resource tracker, which frees the shared memory of killed processes once all of them have gone."""

_POLL = 0.02
_GONE_WITHIN = 2.0
"""Seconds after SIGKILL; what is left then is a zombie that its new parent has not reaped."""
_PROC = Path("/proc")
_HAS_PROC = _PROC.is_dir()


class ChildRecord(msgspec.Struct, frozen=True):
    """What is kept on disk about a running child, so that the next start can clear it. `start` is in clock ticks since boot."""

    pgid: int
    start: int
    mark: str
    titles: tuple[str, ...] = ()
    """Prefixes of the command lines of descendants that overwrite their own environment, as vLLM's workers do."""
    boot: str = ""
    """Which boot `start` counts from; process ids and start times begin anew with each."""


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    state: str
    pgid: int
    session: int
    start: int


def _read(pid: int | str) -> _Process | None:
    try:
        raw = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()
    return _Process(int(pid), fields[0].decode(), int(fields[2]), int(fields[3]), int(fields[19]))


def _members(pgid: int) -> Iterator[_Process]:
    """The live processes of the session that the child leads. Zombies are dead already."""
    for entry in _PROC.iterdir() if _HAS_PROC else ():
        found = _read(entry.name) if entry.name.isdigit() else None
        if found is not None and pgid in (found.pgid, found.session) and found.state not in "ZX":
            yield found


def start_time(pid: int) -> int:
    """Clock ticks since boot at which `pid` started; 0 where the system does not say."""
    found = _read(pid)
    return 0 if found is None else found.start


def record_of(pid: int, mark: str, titles: tuple[str, ...] = ()) -> ChildRecord:
    """The record of a child that has just been started."""
    return ChildRecord(pid, start_time(pid), mark, titles, boot_id())


def boot_id() -> str:
    """Names this boot of the machine; "" where the system does not."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def write_record(path: Path, record: ChildRecord) -> None:
    """Replace the record at once, readable by this user alone."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(msgspec.json.encode(record))
    fresh.replace(path)


def read_record(path: Path) -> ChildRecord | None:
    """The record, or None where there is none or it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ChildRecord)
    except (OSError, msgspec.DecodeError):
        return None


def records_beside(path: Path) -> list[Path]:
    """`path` and the other records of its folder."""
    return sorted({path, *path.parent.glob(f"*{RECORD_SUFFIX}")})


def orphans(record: ChildRecord) -> list[int]:
    """Pids of the processes that `record` proves to be ours; a recycled pid has another start time and no mark."""
    if record.boot != boot_id():
        return []
    return [member.pid for member in _members(record.pgid) if _is_ours(member, record)]


def _is_ours(member: _Process, record: ChildRecord) -> bool:
    if member.pid == record.pgid:
        return member.start == record.start
    try:
        environment = (_PROC / str(member.pid) / "environ").read_bytes().split(b"\0")
        command = (_PROC / str(member.pid) / "cmdline").read_bytes()
    except OSError:
        return False
    if f"{MARK}={record.mark}".encode() in environment:
        return True
    return member.start >= record.start and command.startswith(tuple(title.encode() for title in record.titles))


async def clear_orphans(path: Path) -> int:
    """Kill what an earlier run left behind according to the record at `path`, and forget it. Returns how many were killed."""
    record = read_record(path)
    killed = 0 if record is None else await _kill_all(record)
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - a file in a run directory, in memory as a rule
    return killed


async def end_group(record: ChildRecord, grace: float) -> None:
    """End the child of `record` with all its descendants: SIGTERM, up to `grace` seconds, SIGKILL."""
    if not _HAS_PROC:
        return await _end_group_blindly(record.pgid, grace)
    ours = orphans(record)
    # The leader tells its own descendants, as vLLM does once their requests have ended. Without it there is nothing to wait for.
    leading = record.pgid in ours
    for pid in (record.pgid,) if leading else ours:
        _signal(pid, signal.SIGTERM)
        _signal(pid, signal.SIGCONT)  # a stopped process acts on SIGTERM only once it runs
    left = True
    with trio.move_on_after(grace if leading else min(grace, LEADERLESS_GRACE)):
        while orphans(record):  # noqa: ASYNC110 - the system tells nobody when a descendant ends
            await trio.sleep(_POLL)
        left = False
    if left:
        await _kill_all(record)


async def _kill_all(record: ChildRecord) -> int:
    """Repeats, as a process may have forked between the look and the signal."""
    killed = 0
    spared_until = trio.current_time() + _JANITOR_GRACE
    with trio.move_on_after(_JANITOR_GRACE + _GONE_WITHIN):
        while left := orphans(record):
            killed = max(killed, len(left))
            for pid in left:
                if trio.current_time() > spared_until or not _is_janitor(pid):
                    _signal(pid, signal.SIGKILL)
            await trio.sleep(_POLL)
    return killed


def _is_janitor(pid: int) -> bool:
    try:
        return _JANITOR in (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


async def _end_group_blindly(pgid: int, grace: float) -> None:
    """Where there is no /proc to look into, the group id has to do; only for a child that this process has started itself."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGCONT, 0.0), (signal.SIGKILL, 0.0)):
        try:
            os.killpg(pgid, number)
        except (ProcessLookupError, PermissionError):
            return
        await trio.sleep(patience)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
