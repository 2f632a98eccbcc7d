"""Ending children with their descendants, and nobody else's processes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import trio
from msgspec import structs

from daemon.engine.child import TAIL_LINE_CHARS, TAIL_LINES, ChildCommand
from daemon.engine.interface import EngineError, EngineState
from daemon.engine.lifecycle import LifecycleConfig, Stage
from daemon.engine.process_group import clear_orphans, orphans, read_record, record_of, write_record
from daemon.engine.supervisor import Supervisor

pytestmark = [pytest.mark.live]

RNG = Random(1)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A stranger's process that leads a session, as a recycled process id would find it."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


async def test_a_recycled_process_id_is_left_alone(bystander: subprocess.Popen[bytes], tmp_path: Path) -> None:
    path = tmp_path / "child.json"
    ours = record_of(bystander.pid, "0" * 32)
    for stranger in (structs.replace(ours, start=ours.start - 1), structs.replace(ours, boot="an earlier one")):
        write_record(path, stranger)
        assert read_record(path) == stranger
        assert await clear_orphans(path) == 0
        assert bystander.poll() is None
        assert not path.exists()
    assert orphans(ours) == [bystander.pid]
    write_record(path, ours)
    assert await clear_orphans(path) == 1
    assert bystander.wait(timeout=5) == -9


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pgid":"x"}', b"\xff" * 100])
async def test_a_damaged_record_kills_nobody(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "child.json"
    path.write_bytes(content)
    assert await clear_orphans(path) == 0
    assert not path.exists()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


async def supervised(script: str, folder: Path, until: Callable[[Supervisor, list[str]], bool], grace: float = 0.2) -> list[str]:
    """Run `script` as a child until the condition holds; the reasons of all changes of state on the way."""
    reasons: list[str] = []

    async def never(stage: Stage) -> None:
        raise EngineError("not well")

    def changed(state: EngineState, reason: str) -> None:
        reasons.append(reason)

    command = ChildCommand(
        (sys.executable, "-c", script), {}, folder / "x.sock", folder / "x.child.json", grace=grace, name="the child"
    )
    supervisor = Supervisor(command, never, changed, LifecycleConfig(), RNG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        with trio.fail_after(10):
            while not until(supervisor, reasons):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    return reasons


@pytest.mark.slow
async def test_a_flood_of_output_is_read_and_forgotten(tmp_path: Path) -> None:
    script = "import sys; print('x' * 10**6); [print('line', n) for n in range(20000)]; print('the \\x1b[31mend'); sys.exit(3)"
    kept: list[str] = []

    def crashed(supervisor: Supervisor, reasons: list[str]) -> bool:
        kept[:] = supervisor.tail
        return bool(reasons)

    reasons = await supervised(script, tmp_path, crashed)
    assert reasons[0] == "the child ended with status 3: the [31mend"
    assert len(kept) == TAIL_LINES
    assert max(map(len, kept)) <= TAIL_LINE_CHARS


@pytest.mark.slow
async def test_a_child_and_a_grandchild_that_ignore_sigterm_are_killed(tmp_path: Path) -> None:
    script = f"""
import os, pathlib, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
pathlib.Path({str(tmp_path)!r}, f"pid{{os.getpid()}}").touch()
while True: signal.pause()
"""
    await supervised(script, tmp_path, lambda _s, _r: len(list(tmp_path.glob("pid*"))) == 2)
    pids = [int(path.name.removeprefix("pid")) for path in tmp_path.glob("pid*")]
    assert all(gone(pid) for pid in pids)
    assert not (tmp_path / "x.child.json").exists()


async def test_the_engine_of_another_kind_that_was_left_is_cleared(bystander: subprocess.Popen[bytes], tmp_path: Path) -> None:
    write_record(tmp_path / "other.child.json", record_of(bystander.pid, "0" * 32))
    await supervised("import signal; signal.pause()", tmp_path, lambda supervisor, _r: supervisor.pid is not None)
    assert bystander.wait(timeout=5) == -9


@pytest.mark.slow
async def test_what_is_left_at_the_socket_path_is_removed(tmp_path: Path) -> None:
    (tmp_path / "x.sock").write_text("stale")
    await supervised(
        f"import pathlib, time; pathlib.Path({str(tmp_path)!r}, 'x.sock').exists() or exit(7); time.sleep(60)",
        tmp_path,
        lambda _s, reasons: any("status 7" in reason for reason in reasons),
    )
