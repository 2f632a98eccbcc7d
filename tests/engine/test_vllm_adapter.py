"""The vLLM adapter against a FAKE `vllm` command (fake_vllm.py): its exact arguments, requests and clean-up. No vLLM runs here.

What the fake imitates was seen on vLLM 0.32: its routes, its shapes, -9999 for forbidden tokens, deafness to SIGTERM while it
loads, sockets that it leaves behind, and workers that outlive a killed server.
`make test-vllm` runs the same adapter against a real one.
"""

import json
import math
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import EngineError, EngineRefused, EngineState
from daemon.engine.vllm_engine import VllmSettings, checked_extra, checked_model, serve_arguments, vllm_engine
from protocol.job import Job, Role, Sampling, Turn

Running = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]
RNG = Random(1)
TURNS = (Turn(Role.USER, "hello"),)


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """The fake command, in a folder of its own."""
    program = tmp_path / "vllm"
    source = Path(__file__).with_name("fake_vllm.py").read_text().partition("\n")[2]
    program.write_text(f"#!{sys.executable}\n{source}")
    program.chmod(stat.S_IRWXU)
    return program


def seen(fake: Path) -> dict[str, Any]:
    return json.loads((fake.parent / "seen.json").read_text())


def requests(fake: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (fake.parent / "requests.jsonl").read_text().splitlines()]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.live
@pytest.mark.slow
async def test_tools_are_had_with_a_parser_for_them(fake: Path, run_folder: Path, running: Running) -> None:
    with_parser = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
    settings = VllmSettings("owner/model", executable=fake, extra_arguments=with_parser)
    async with running(vllm_engine(settings, run_folder, RNG)) as engine:
        assert engine.model is not None
        assert engine.model.features == {"tools", "response_format", "logprobs"}


@pytest.mark.live
@pytest.mark.slow
async def test_command_line_requests_and_clean_end(
    fake: Path, run_folder: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr("daemon.engine.child._HUNG_GRACE", 0.05)  # shorter than it drains: one that has served is given longer
    settings = VllmSettings(
        "owner/model", executable=fake, slots=3, context_tokens=2048, revision="v1.0", extra_arguments=("--dtype=bfloat16",)
    )
    engine = vllm_engine(settings, run_folder, RNG)
    async with running(engine):
        assert engine.model is not None
        assert (engine.model.name, engine.model.context_tokens) == ("owner/model", 2048)
        assert (engine.model.engine, engine.model.engine_version, engine.model.slots) == ("vllm", "0.32.0", 3)
        assert engine.model.features == {"response_format", "logprobs"}
        async with engine.generate(Job(TURNS, Sampling(max_tokens=4, temperature_milli=500))) as chunks:
            got = [chunk async for chunk in chunks]
        assert "".join(chunk.text for chunk in got) == "abcd"
        assert got[-1].usage is not None
        assert got[-1].usage.completion_tokens == 4
        a, b = await engine.choose(TURNS, ("A", "B"))
        assert (math.exp(a), math.exp(b)) == (pytest.approx(0.25, abs=1e-3), pytest.approx(0.75, abs=1e-3))
        with pytest.raises(EngineRefused, match=r"cannot be greater than max_model_len=2048, see \(path\)"):
            async with engine.generate(Job(TURNS, Sampling(max_tokens=4096))):
                pass
        processes = seen(fake)
    assert processes["argv"] == [
        "serve",
        "owner/model",
        f"--uds={run_folder}/engine/vllm.sock",
        "--served-model-name=owner/model",
        "--shutdown-timeout=20",
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
        "--generation-config=vllm",
        "--max-num-seqs=3",
        "--revision=v1.0",
        "--max-model-len=2048",
        "--dtype=bfloat16",
    ]
    environment = processes["environment"]
    assert environment["VLLM_API_KEY"] not in " ".join(processes["argv"])
    assert len(environment["VLLM_API_KEY"]) >= 32
    assert {environment[name] for name in ("HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS", "DO_NOT_TRACK")} == {"1"}
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "HF_TOKEN" not in environment
    warm_up, completion, choice = requests(fake)[:3]
    # The warm-up asks for all that vLLM makes ready at first use: a grammar, and the kernel of log-probabilities.
    assert (warm_up["max_tokens"], warm_up["top_logprobs"], warm_up["structured_outputs"]) == (1, 20, {"choice": ["1", "2"]})
    assert environment["VLLM_RPC_BASE_PATH"] == f"{run_folder}/engine/vllm.tmp"
    assert completion == {
        "model": "owner/model",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 4,
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 0,
    }
    assert choice["structured_outputs"] == {"choice": ["A", "B"]}
    assert (choice["logprobs"], choice["top_logprobs"], choice["max_tokens"]) == (True, 20, 1)
    # It was asked to drain, not killed, and nothing is left of it.
    assert (fake.parent / "drained").exists()
    assert gone(processes["pid"])
    assert gone(processes["worker"])
    assert list((run_folder / "engine").iterdir()) == []


@pytest.mark.live
@pytest.mark.slow
async def test_leaving_a_stream_closes_the_connection(fake: Path, run_folder: Path, running: Running) -> None:
    engine = vllm_engine(VllmSettings("owner/model", executable=fake), run_folder, RNG)
    async with running(engine):
        async with engine.generate(Job(TURNS, Sampling(max_tokens=2000))) as chunks:
            await anext(aiter(chunks))
        with trio.fail_after(1):
            while not (fake.parent / "left.json").exists():
                await trio.sleep(0.01)
    assert json.loads((fake.parent / "left.json").read_text()) < 1000


@pytest.mark.live
@pytest.mark.slow
async def test_workers_that_outlive_a_killed_server_are_ended_before_the_next_start(
    fake: Path, run_folder: Path, running: Running
) -> None:
    engine = vllm_engine(VllmSettings("owner/model", executable=fake), run_folder, RNG)
    async with running(engine):
        first = seen(fake)
        os.kill(first["pid"], signal.SIGKILL)
        with trio.fail_after(10):
            while engine.state is EngineState.READY:
                await engine.wait_changed()
            await engine.wait_ready()
        second = seen(fake)
        assert second["pid"] != first["pid"]
        assert gone(first["worker"])
        assert "loading weights" in engine.last_output


@pytest.mark.live
@pytest.mark.slow
async def test_stopping_does_not_wait_for_one_that_is_still_loading(fake: Path, run_folder: Path) -> None:
    (fake.parent / "loading").write_text("600")
    engine = vllm_engine(VllmSettings("owner/model", executable=fake), run_folder, RNG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with trio.fail_after(10):
            while not (run_folder / "engine" / "vllm.sock").exists():
                await trio.sleep(0.01)
        assert engine.state is EngineState.STARTING
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < 10
    assert gone(seen(fake)["pid"])
    assert list((run_folder / "engine").iterdir()) == []


LEFT_BEHIND = """
import multiprocessing.resource_tracker, signal, subprocess, sys, time
from multiprocessing.shared_memory import SharedMemory
shared = SharedMemory(create=True, size=4096)
deaf = "import signal; signal.signal(15, signal.SIG_IGN); print(end='!', flush=True); signal.pause()"
worker = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
worker.stdout.read(1)
signal.signal(15, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.SIG_DFL)
print(worker.pid, shared.name, flush=True)
time.sleep(600)
"""


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deaf", "obedient"])
def test_the_leash_ends_everything_once_the_daemon_has_died(kind: str) -> None:
    short = "import sys; from daemon.engine import leash; leash.GRACE = 0.2; sys.exit(leash.main(sys.argv[1:]))"
    program = [sys.executable, "-c", short, sys.executable, "-c", LEFT_BEHIND, kind]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        worker, name = process.stdout.readline().split()
        assert not gone(int(worker))
        assert Path("/dev/shm", name).exists()
        process.stdin.close()  # as the kernel does when the daemon dies
        process.wait(timeout=10)
    assert gone(int(worker))
    assert not Path("/dev/shm", name).exists()


@pytest.mark.live
async def test_the_cause_of_a_failed_start_is_told(fake: Path, run_folder: Path) -> None:
    (fake.parent / "broken").touch()
    engine = vllm_engine(VllmSettings("owner/model", executable=fake), run_folder, RNG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with trio.fail_after(10):
            await engine.wait_changed()
        assert engine.state is EngineState.RESTARTING
        assert engine.reason == "vLLM ended with status 1: RuntimeError: Cannot find any model weights with (path)"
        nursery.cancel_scope.cancel()


@pytest.mark.live
async def test_a_program_that_cannot_run_ends_in_failed(run_folder: Path, tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/nonexistent/interpreter\n")
    program.chmod(stat.S_IRWXU)
    engine = vllm_engine(VllmSettings("owner/model", executable=program), run_folder, RNG)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with trio.fail_after(10), pytest.raises(EngineError, match="cannot run vllm"):
            await engine.wait_ready()
        nursery.cancel_scope.cancel()


def test_vllm_that_is_not_there(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"pip install 'vllm>=0\.32'"):
        vllm_engine(VllmSettings("owner/model"), run_folder, RNG)
    for program in (tmp_path / "absent", tmp_path, Path("relative")):
        with pytest.raises(EngineError, match="not an executable file"):
            vllm_engine(VllmSettings("owner/model", executable=program), run_folder, RNG)


SMUGGLED = [
    "--trust-remote-code",
    "-m",
    "../x",
    "a/b/c",
    "/etc/passwd",
    "~/model",
    "owner/-x",
    "owner/..",
    "owner/a..b",
    "",
    " x",
    "x\n--trust-remote-code",
    "x --trust-remote-code",
    "\u043e/model",
    "x" * 97,
    ".hidden",
    "a:b",
    "a@b",
    "\x00",
]


@pytest.mark.parametrize("name", SMUGGLED)
def test_model_names_that_smuggle(name: str, run_folder: Path) -> None:
    with pytest.raises(EngineError):
        checked_model(name, None)
    for settings in (VllmSettings(name), VllmSettings("owner/model", served_name=name or "-")):
        with pytest.raises(EngineError):
            vllm_engine(settings, run_folder, RNG)


def test_model_paths_stay_under_their_root(tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "good").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    assert checked_model(str(root / "good"), root) == str(root / "good")
    for path in (root, root / "link", root / ".." / "outside", tmp_path / "outside", root / "absent", Path("/etc")):
        with pytest.raises(EngineError):
            checked_model(str(path), root)


@pytest.mark.parametrize(
    "argument",
    [
        "--trust-remote-code",
        "--host=0.0.0.0",
        "--port=80",
        "--api-key=x",
        "--uds=/tmp/x",
        "--model=evil",
        "--chat-template=/etc/passwd",
        "--max-logprobs=-1",
        "--enable-sleep-mode",
        "--dtype",
        "bfloat16",
        "-O3",
        "--middleware=evil.module",
        "--hf-overrides={}",
        "--dtype=a\nb",
        "--DTYPE=x",
        "",
    ],
)
def test_extra_arguments_are_those_on_the_list(argument: str) -> None:
    if argument == "--dtype":
        # A flag without a value is vLLM's to refuse; its value in the next item is ours.
        with pytest.raises(EngineError):
            checked_extra(("--dtype", "bfloat16"))
        return
    with pytest.raises(EngineError, match="not among the arguments"):
        checked_extra((argument,))


@pytest.mark.parametrize("revision", ["--x", "a b", "../x", "a/b", "x" * 97])
def test_revisions_that_are_none(revision: str) -> None:
    with pytest.raises(EngineError, match="revision"):
        serve_arguments(VllmSettings("owner/model", revision=revision), "owner/model", Path("/run/x.sock"))
