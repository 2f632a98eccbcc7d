"""The vLLM adapter against a real vLLM: start, generation, choice, cancel, kill, clean end. See README.md."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio

from daemon.engine import dialect as wire
from daemon.engine.choices import FirstToken, unlisted
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import EngineRefused, EngineState
from daemon.engine.process_group import ChildRecord, orphans, read_record
from daemon.engine.vllm_engine import VllmSettings, vllm_engine
from protocol.extras import Extras
from protocol.job import Job, Role, Sampling, Turn
from protocol.likelihood import weighed
from protocol.output_check import TOLERANCE_MICRO, deviations, text_of
from protocol.wire.limits import MAX_TOKENS

PROGRAM = os.environ.get("SWARMD_VLLM_PYTHON") or shutil.which("vllm")
START_SECONDS = 1200

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.timeout(3 * START_SECONDS),
    pytest.mark.skipif(PROGRAM is None, reason="no vLLM: neither SWARMD_VLLM_PYTHON nor a vllm command on PATH"),
]

ASKED = (Turn(Role.USER, "Which letter comes first, A or B?"),)
LONG = (Turn(Role.USER, "Count from 1 to 10000, each number on a line of its own."),)


def new_engine(model: Path, run_folder: Path) -> HttpEngine:
    settings = VllmSettings(
        str(model),
        model_root=model.parent,
        served_name="tests/vllm",
        executable=Path(PROGRAM or ""),
        slots=4,
        extra_arguments=tuple(os.environ.get("SWARMD_VLLM_ARGUMENTS", "").split()),
    )
    return vllm_engine(settings, run_folder, Random(1))


def record_in(run_folder: Path) -> ChildRecord | None:
    return read_record(run_folder / "engine" / "vllm.child.json")


def server_of(leash: int) -> int:
    """The API server, the only child of the leash."""
    (server,) = Path(f"/proc/{leash}/task/{leash}/children").read_text().split()
    return int(server)


def shared_memory(pids: Sequence[int]) -> set[Path]:
    """The named shared memory of these processes."""
    return {Path(name) for pid in pids for name in re.findall(r"/dev/shm/psm_\w+", Path(f"/proc/{pid}/maps").read_text())}


async def until(condition: Callable[[], bool], seconds: float) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.05)


@asynccontextmanager
async def running(engine: HttpEngine) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def counted(engine: HttpEngine, name: str) -> float:
    lines = (await engine._client.get("/metrics", 10.0)).decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}{{"))


async def test_generation_choice_cancel_restart_and_clean_end(model: Path, run_folder: Path) -> None:
    engine = new_engine(model, run_folder)
    async with running(engine):
        with trio.fail_after(START_SECONDS):
            await engine.wait_ready()
        assert engine.model is not None
        assert engine.model.engine_version != "unknown"
        await check_choice(engine)
        await check_generation(engine)
        await check_length(engine)
        await check_likelihood(engine)
        await check_cancel(engine)
        await check_restart(engine, run_folder)
        await check_generation(engine)
        await check_length(engine)
        left = record_in(run_folder)
        assert left is not None
        memory = shared_memory(orphans(left))
    assert orphans(left) == []
    assert list((run_folder / "engine").iterdir()) == []
    assert not any(path.exists() for path in memory)


async def check_choice(engine: HttpEngine) -> None:
    with trio.fail_after(5):  # the first one too: the warm-up had vLLM compile what it compiles at first use
        found = await engine.choose(ASKED, ("A", "B"))
    assert math.fsum(map(math.exp, found)) == pytest.approx(1.0)
    assert await engine.choose(ASKED, ("B", "A")) == pytest.approx(found[::-1], abs=1e-3)
    request = wire.choice_request(ASKED, ("A", "B"), "tests/vllm", wire.VLLM, wire.TOP_LOGPROBS[0])
    async with engine._client.stream(request) as events:
        said = FirstToken.of([event async for batch in events for event in batch])
    assert said.text in ("A", "B")
    assert unlisted(said, ("A", "B")) == []
    assert math.exp(said.logprobs["A"]) + math.exp(said.logprobs["B"]) == pytest.approx(1.0, abs=1e-3)


async def check_generation(engine: HttpEngine) -> None:
    async with engine.generate(Job(ASKED, Sampling(max_tokens=8))) as chunks:
        *pieces, last = [chunk async for chunk in chunks]
    assert "".join(piece.text for piece in pieces)
    assert last.finish_reason in ("stop", "length")
    assert last.usage is not None
    assert last.usage.prompt_tokens > 0
    assert 1 <= last.usage.completion_tokens <= 8
    with pytest.raises(EngineRefused, match="HTTP status 400"):
        async with engine.generate(Job((Turn(Role.USER, "word " * 40_000),), Sampling(max_tokens=4096))):
            pass


async def check_length(engine: HttpEngine) -> None:
    """More than its context has room for, which it refuses: what there is room for is asked for instead."""
    assert engine.model is not None
    if engine.model.context_tokens > MAX_TOKENS:
        return
    async with engine.generate(Job(ASKED, Sampling(max_tokens=MAX_TOKENS))) as chunks:
        *_, last = [chunk async for chunk in chunks]
    assert last.usage is not None
    assert last.usage.prompt_tokens + last.usage.completion_tokens <= engine.model.context_tokens


async def check_likelihood(engine: HttpEngine) -> None:
    """Of an answer of its own it says what it said while it gave it: a prefill and a decode differ a little."""
    tokens = []
    async with engine.generate(Job(ASKED, Sampling(max_tokens=8), extras=Extras(top_logprobs=20))) as chunks:
        async for chunk in chunks:
            tokens += chunk.logprobs
    text, claimed = text_of(weighed(tokens))
    found = deviations(claimed, weighed(await engine.likelihood(ASKED, text, len(claimed))), greedy=True)
    assert found
    assert max(found) < TOLERANCE_MICRO


async def check_cancel(engine: HttpEngine) -> None:
    assert engine.model is not None
    asked = min(4096, engine.model.context_tokens // 2)
    before = await counted(engine, "generation_tokens_total")
    async with engine.generate(Job(LONG, Sampling(max_tokens=asked))) as chunks:
        await anext(aiter(chunks))
        assert await counted(engine, "num_requests_running") == 1
    with trio.fail_after(1):
        while await counted(engine, "num_requests_running"):
            await trio.sleep(0.05)
    made = await counted(engine, "generation_tokens_total") - before
    assert 1 <= made < asked
    await trio.sleep(0.5)
    assert await counted(engine, "generation_tokens_total") - before == made


async def check_restart(engine: HttpEngine, run_folder: Path) -> None:
    """After the death of the API server, which its EngineCore survives."""
    child = record_in(run_folder)
    assert child is not None
    before = orphans(child)
    server, memory = server_of(child.pgid), shared_memory(before)
    assert len(before) >= 3
    os.kill(server, signal.SIGKILL)
    with trio.fail_after(10):
        while engine.state is EngineState.READY:
            await engine.wait_changed()
    await until(lambda: not orphans(child), 10)
    assert not any(path.exists() for path in memory)
    with trio.fail_after(START_SECONDS):
        await engine.wait_ready()
    after = record_in(run_folder)
    assert after is not None
    assert after.pgid != child.pgid


def has_engine_core(run_folder: Path) -> bool:
    record = record_in(run_folder)
    titles = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in orphans(record)] if record is not None else []
    return any(title.startswith(b"VLLM::EngineCore") for title in titles)


async def test_stopping_while_it_loads(model: Path, run_folder: Path) -> None:
    engine = new_engine(model, run_folder)
    async with running(engine):
        await until(lambda: has_engine_core(run_folder), START_SECONDS)
        assert engine.state is EngineState.STARTING
        left = record_in(run_folder)
        began = trio.current_time()
    assert trio.current_time() - began < 10
    assert left is not None
    assert orphans(left) == []
    assert list((run_folder / "engine").iterdir()) == []


DAEMON = """
import importlib.util, sys
from pathlib import Path
import trio
spec = importlib.util.spec_from_file_location("real", sys.argv[1])
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)

async def main():
    engine = real.new_engine(Path(sys.argv[2]), Path(sys.argv[3]))
    async with real.running(engine):
        await engine.wait_ready()
        print("ready", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


async def test_nothing_outlives_a_killed_daemon(model: Path, run_folder: Path, pytestconfig: pytest.Config) -> None:
    command = [sys.executable, "-c", DAEMON, __file__, str(model), str(run_folder)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, cwd=pytestconfig.rootpath)
    assert process.stdout is not None
    said = b""
    try:
        with trio.fail_after(START_SECONDS):
            async for chunk in process.stdout:
                said += bytes(chunk)
                if b"\nready\n" in said:
                    break
        child = record_in(run_folder)
        assert child is not None
        before = orphans(child)
        memory = shared_memory(before)
        assert len(before) >= 3
    finally:
        process.kill()
        await process.wait()
        await process.stdout.aclose()
    await until(lambda: not orphans(child), 15)
    assert not any(path.exists() for path in memory)
