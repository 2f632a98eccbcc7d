"""The vLLM adapter against a real vLLM: start, generation, choice, cancel, kill, clean end. See README.md."""

import math
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
import trio

from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import EngineState
from daemon.engine.process_group import orphans, read_record
from daemon.engine.vllm_engine import VllmSettings, vllm_engine
from protocol.job import Job, Role, Sampling, Turn

PROGRAM = os.environ.get("SWARMD_VLLM_PYTHON") or shutil.which("vllm")
MODEL = os.environ.get("SWARMD_VLLM_MODEL", "")
START_SECONDS = 1200

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.live,
    pytest.mark.slow,
    pytest.mark.timeout(2 * START_SECONDS),
    pytest.mark.skipif(PROGRAM is None, reason="no vLLM: neither SWARMD_VLLM_PYTHON nor a vllm command on PATH"),
    pytest.mark.skipif(not MODEL, reason="no model: SWARMD_VLLM_MODEL names no folder"),
]

TURNS = (Turn(Role.USER, "Which letter comes first, A or B?"),)


@pytest.fixture
async def engine(run_folder: Path) -> AsyncIterator[HttpEngine]:
    settings = VllmSettings(
        MODEL,
        model_root=Path(MODEL).parent,
        served_name="tests/vllm",
        executable=Path(PROGRAM or ""),
        slots=4,
        extra_arguments=tuple(os.environ.get("SWARMD_VLLM_ARGUMENTS", "").split()),
    )
    engine = vllm_engine(settings, run_folder, Random(1))
    record = run_folder / "engine" / "vllm.child.json"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with trio.fail_after(START_SECONDS):
            await engine.wait_ready()
        left = read_record(record)
        yield engine
        nursery.cancel_scope.cancel()
    assert left is not None
    assert orphans(left) == []
    assert list((run_folder / "engine").iterdir()) == []


async def requests_running(engine: HttpEngine) -> float:
    lines = (await engine._client.get("/metrics", 10.0)).decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:num_requests_running"))


async def test_everything_in_one_start(engine: HttpEngine) -> None:
    assert engine.model is not None
    assert engine.model.engine_version != "unknown"
    async with engine.generate(Job(TURNS, Sampling(max_tokens=8))) as chunks:
        last = [chunk async for chunk in chunks][-1]
    assert last.finish_reason in ("stop", "length")
    assert last.usage is not None
    assert 1 <= last.usage.completion_tokens <= 8
    found = await engine.choose(TURNS, ("A", "B"))
    assert math.fsum(math.exp(p) for p in found) == pytest.approx(1.0)
    async with engine.generate(Job(TURNS, Sampling(max_tokens=4096 if engine.model.context_tokens > 4200 else 64))) as chunks:
        await anext(aiter(chunks))
    with trio.fail_after(1):
        while await requests_running(engine):
            await trio.sleep(0.05)
    record = engine._serving.command
    assert record is not None
    child = read_record(record.record)
    assert child is not None
    before = orphans(child)
    os.kill(child.pgid, signal.SIGKILL)
    with trio.fail_after(START_SECONDS):
        while engine.state is EngineState.READY:
            await engine.wait_changed()
        assert not set(before) & set(orphans(child))
        await engine.wait_ready()
