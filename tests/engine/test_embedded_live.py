"""The embedded engine as it is shipped: a real llama.cpp in a real child, killed, stopped, abandoned and restarted."""

import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from daemon.engine.catalog import models_folder
from daemon.engine.completions import CompletionClient
from daemon.engine.dialect import LLAMA_CPP
from daemon.engine.embedded import EmbeddedSettings, embedded_engine
from daemon.engine.factory import EngineSpec, build_engine
from daemon.engine.http_engine import HttpEngine
from daemon.engine.http_exchange import Server
from daemon.engine.interface import EngineError, EngineRefused, EngineState
from daemon.engine.process_group import read_record
from protocol.job import Job, Role, Sampling, Turn

pytestmark = [pytest.mark.live, pytest.mark.slow]

Running = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]
RNG = Random(1)
ROOT = Path(__file__).parents[2]
LONG = Job((Turn(Role.USER, "hello"),), Sampling(max_tokens=4096))


def job(text: str = "hello", tokens: int = 5) -> Job:
    return Job((Turn(Role.USER, text),), Sampling(max_tokens=tokens))


async def finish(engine: HttpEngine, wanted: Job) -> tuple[str, str | None, int]:
    text, reason, used = "", None, 0
    async with engine.generate(wanted) as chunks:
        async for chunk in chunks:
            text += chunk.text
            if chunk.usage is not None:
                reason, used = chunk.finish_reason, chunk.usage.completion_tokens
    return text, reason, used


def process_state(pid: int) -> str:
    """The letter of proc(5); "X" where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def gone(pid: int) -> bool:
    return process_state(pid) in "ZX"


async def until(condition: Callable[[], bool], seconds: float) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def slots(engine: HttpEngine) -> list[dict[str, Any]]:
    """What llama.cpp itself says about its slots."""
    return json.loads(await engine._client.get("/slots", 5.0))


async def test_ready_serves_and_leaves_nothing(tiny_engine: HttpEngine, running: Running, run_folder: Path) -> None:
    assert tiny_engine.state is EngineState.STARTING
    assert tiny_engine.model is None
    with pytest.raises(EngineError, match="starting"):
        await finish(tiny_engine, job())
    async with running(tiny_engine) as engine:
        pid = engine.pid
        assert pid is not None
        model = engine.model
        assert model is not None
        assert (model.name, model.context_tokens, model.engine, model.slots) == ("tests/random-llama", 8192, "llama.cpp", 2)
        assert len(bytes.fromhex(model.config_digest)) == 32
        folder = run_folder / "engine"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "embedded.sock").stat().st_mode) & 0o077 == 0
        first = await finish(engine, job(tokens=30))
        assert first[1:] == ("length", 30)
        assert first[0]
        assert await finish(engine, job(tokens=30)) == first
    assert gone(pid)
    assert list(folder.iterdir()) == []
    assert engine.state is EngineState.STOPPED
    with pytest.raises(EngineError, match="stopped"):
        await finish(engine, job())


async def test_the_key_is_needed_and_in_no_command_line(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine:
        command = engine._serving.command
        assert command is not None
        visible = Path(f"/proc/{engine.pid}/cmdline").read_bytes() + Path(f"/proc/{engine.pid}/environ").read_bytes()
        assert command.key.encode() not in visible
        stranger = CompletionClient(LLAMA_CPP, Server(socket=command.socket, key="another"))
        with pytest.raises(EngineError, match="401"):
            await stranger.served_models(5.0)


async def test_choices_sum_to_one_and_agree_with_asking_one_by_one(tiny_engine: HttpEngine, running: Running) -> None:
    turns = (Turn(Role.USER, "which?"),)
    async with running(tiny_engine) as engine:
        letters = [chr(ord("A") + place) for place in range(26)]
        every = await engine.choose(turns, letters)
        assert math.fsum(math.exp(p) for p in every) == pytest.approx(1.0)
        # 26 letters do not all fit into the 20 listed tokens: those left out were asked for alone.
        pair = await engine.choose(turns, ("C", "Z"))
        assert pair[0] - pair[1] == pytest.approx(every[2] - every[25], abs=1e-3)
        for wrong in ((), ("A",), ("A", "A"), ("A", " "), ("A", "B ")):
            with pytest.raises(EngineError, match="two or more different"):
                await engine.choose(turns, wrong)


async def test_leaving_generate_stops_the_engine(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine:
        async with engine.generate(LONG) as chunks:
            async for _ in chunks:
                break
            assert engine.busy == 1
        await idle(engine, 1.0)
        decoded = [slot["next_token"][0]["n_decoded"] for slot in await slots(engine) if "next_token" in slot]
        assert max(decoded) < LONG.sampling.max_tokens
        assert engine.busy == 0


async def test_cancelling_during_the_prompt_stops_the_engine(
    tmp_path: Path, write_model: Any, run_folder: Path, running: Running
) -> None:
    """llama.cpp notices a client that has left only when it writes, so that it must be made to write while it reads a prompt."""
    path = write_model(tmp_path / "slow.gguf", layers=12, context=32768)
    engine = embedded_engine(EmbeddedSettings(path, slots=1, context_tokens=32768), run_folder, RNG)
    async with running(engine):
        with trio.move_on_after(0.3) as scope:
            await finish(engine, job("x" * 30000))
        assert scope.cancelled_caught
        assert engine.busy == 0
        await idle(engine, 1.0)


async def test_the_next_request_finds_a_connection_ready(tiny_engine: HttpEngine, run_folder: Path, running: Running) -> None:
    async with running(tiny_engine) as engine:
        first = await finish(engine, job())
        (socket,) = run_folder.rglob("*.sock")
        away = socket.rename(socket.with_name("away"))
        try:
            assert await finish(engine, job()) == first
        finally:
            away.rename(socket)


async def idle(engine: HttpEngine, seconds: float) -> None:
    with trio.fail_after(seconds):
        while any(slot["is_processing"] for slot in await slots(engine)):
            await trio.sleep(0.01)


async def test_a_prompt_beyond_the_context_is_refused_and_harms_nothing(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine:
        with pytest.raises(EngineRefused, match="context of 8192 tokens"):
            await finish(engine, job("x" * 9000))
        assert (await finish(engine, job()))[1] == "length"


async def test_slots_bound_what_the_engine_works_on(tiny_engine: HttpEngine, running: Running) -> None:
    most, begun, both_run = 0, 0, trio.Event()

    async def ask(engine: HttpEngine) -> None:
        nonlocal most, begun
        async with engine.generate(job(tokens=50)) as chunks:
            begun += 1
            if begun == 2:
                both_run.set()
            await both_run.wait()  # an answer that is there already is read without a turn for the other tasks
            async for _ in chunks:
                most = max(most, engine.busy)

    async with running(tiny_engine) as engine, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(ask, engine)
    assert most == 2


async def test_a_task_may_hold_two_slots(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, engine.generate(LONG) as chunks:
        await anext(aiter(chunks))
        assert (await finish(engine, job()))[1] == "length"


async def test_a_killed_child_is_replaced(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine:
        first = engine.pid
        assert first is not None
        with pytest.raises(EngineError):  # noqa: PT012 - the kill belongs inside the stream
            async with engine.generate(LONG) as chunks:
                await anext(aiter(chunks))
                os.kill(first, signal.SIGKILL)
                async for _ in chunks:
                    pass
        await until(lambda: engine.state is not EngineState.READY, 5)
        assert engine.state is EngineState.RESTARTING
        assert "SIGKILL" in engine.reason
        with trio.fail_after(20):
            await engine.wait_ready()
        assert engine.pid != first
        assert (await finish(engine, job()))[1] == "length"


async def test_a_hanging_child_is_noticed_and_replaced(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine:
        first = engine.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        await until(lambda: engine.state is EngineState.RESTARTING, 7)
        assert "did not answer" in engine.reason
        with trio.fail_after(20):
            await engine.wait_ready()
        assert gone(first)
        assert (await finish(engine, job()))[1] == "length"


@pytest.fixture
async def doomed(tiny_model: Path, run_folder: Path) -> AsyncIterator[tuple[subprocess.Popen[bytes], int]]:
    """A daemon in a process of its own, to be killed, and the pid of its engine."""
    script = f"""
import trio
from pathlib import Path
from random import Random
from daemon.engine.embedded import EmbeddedSettings, embedded_engine

async def main():
    engine = embedded_engine(EmbeddedSettings(Path({str(tiny_model)!r}), slots=1), Path({str(run_folder)!r}), Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await engine.wait_ready()
        print(engine.pid, flush=True)

trio.run(main)
"""
    daemon = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert daemon.stdout is not None
    found = await trio.to_thread.run_sync(lambda: next(line for line in daemon.stdout if line.strip().isdigit()))  # type: ignore[union-attr]
    pid = int(found)
    yield daemon, pid
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    if not gone(pid):
        os.kill(pid, signal.SIGKILL)


async def test_the_engine_dies_with_a_killed_daemon(doomed: tuple[subprocess.Popen[bytes], int], run_folder: Path) -> None:
    daemon, pid = doomed
    daemon.kill()
    await until(lambda: gone(pid), 5)
    assert not (run_folder / "engine" / "embedded.sock").exists()


async def test_the_next_start_clears_an_orphan(
    doomed: tuple[subprocess.Popen[bytes], int], run_folder: Path, tiny_engine: HttpEngine, running: Running
) -> None:
    """A stopped engine cannot notice that its daemon has died: the record on disk finds it."""
    daemon, pid = doomed
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: process_state(pid) == "T", 5)
    daemon.kill()
    daemon.wait()
    record = read_record(run_folder / "engine" / "embedded.child.json")
    assert record is not None
    assert record.pgid == pid
    assert (run_folder / "engine" / "embedded.sock").exists()
    assert not gone(pid)
    async with running(tiny_engine) as engine:
        assert gone(pid)
        assert (await finish(engine, job()))[1] == "length"


@pytest.mark.parametrize("content", [b"", b"no model", b"GGUF" + bytes(2000)])
def test_a_file_that_is_no_model_is_refused_before_anything_starts(tmp_path: Path, run_folder: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"bad\.gguf"):
        embedded_engine(EmbeddedSettings(path), run_folder, RNG)


async def test_a_well_formed_file_that_llama_cannot_load_ends_in_failed(
    tmp_path: Path, tiny_model: Path, run_folder: Path
) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_model.read_bytes().replace(b"llama", b"lambda"[:5]))
    engine = embedded_engine(EmbeddedSettings(path), run_folder, RNG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with trio.fail_after(20), pytest.raises(EngineError, match="cannot load this model"):
            await engine.wait_ready()
        assert engine.state is EngineState.FAILED
        assert engine.pid is None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "change", [{"threads": -1}, {"slots": 0}, {"slots": 65}, {"context_tokens": -1}, {"name": "--model=/etc/passwd"}]
)
def test_settings_out_of_range(tiny_model: Path, run_folder: Path, change: dict[str, Any]) -> None:
    with pytest.raises(EngineError):
        embedded_engine(EmbeddedSettings(tiny_model, **change), run_folder, RNG)


def test_a_run_directory_too_deep_for_a_socket(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="107 bytes"):
        embedded_engine(EmbeddedSettings(tiny_model), tmp_path / ("x" * 100), RNG)


def test_a_run_directory_that_is_a_link_is_refused(tiny_model: Path, run_folder: Path) -> None:
    (run_folder / "elsewhere").mkdir()
    (run_folder / "engine").symlink_to(run_folder / "elsewhere")
    with pytest.raises(EngineError, match="link"):
        embedded_engine(EmbeddedSettings(tiny_model), run_folder, RNG)


@pytest.mark.skipif(not (models_folder() / "catalog.json").exists(), reason="the models have not been trained in this tree")
async def test_the_shipped_default_answers_and_judges(run_folder: Path, running: Running) -> None:
    engine = build_engine(EngineSpec(), run_folder, RNG)
    assert engine is not None
    question = Turn(Role.USER, "rev abcde")
    async with running(engine):
        assert engine.model is not None
        assert (engine.model.name, engine.model.judge_prompt, engine.model.context_tokens) == ("tiny-all", "compact", 128)
        answer, reason, _ = await finish(engine, Job((question,), Sampling(max_tokens=12)))
        assert (answer, reason) == ("edcba", "stop")
        pairs = (
            ("add 12 34", "46", "47"), ("add 47 38", "85", "75"), ("mod 83 7", "6", "2"),
            ("conv 12 ft", "144", "134"), ("sort gkcbaf", "abcfgk", "abcgfk"), ("rev abcde", "edcba", "abcde"),
        )  # fmt: skip
        judged_right = 0
        for asked, right, wrong in pairs:
            seen = 0.0
            for first, second, sign in ((right, wrong, 1), (wrong, right, -1)):
                letters = Turn(Role.USER, f"A:{first}\nB:{second}")
                a, b = await engine.choose((Turn(Role.USER, asked), Turn(Role.ASSISTANT, right), letters), ("A", "B"))
                assert math.exp(a) + math.exp(b) == pytest.approx(1)
                seen += sign * (a - b)
            judged_right += seen > 0
        assert judged_right >= 4  # its card says 0.64 to 0.85 on pairs that were hard enough for somebody to err
