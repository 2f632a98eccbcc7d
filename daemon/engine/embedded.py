"""The embedded engine: llama.cpp in a child of our own, on a private Unix socket, serving one GGUF file on the CPU or GPU."""

import os
import secrets
import signal
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import Random

import msgspec

import daemon
from daemon.engine.child import ChildCommand
from daemon.engine.completions import CompletionClient, ServedModel
from daemon.engine.dialect import LLAMA_CPP
from daemon.engine.embedded_child import NO_ENGINE, NOT_A_MODEL
from daemon.engine.gguf import GgufHead, read_head
from daemon.engine.http_engine import HttpEngine, Serving
from daemon.engine.http_exchange import Server
from daemon.engine.idle_connections import MOST as MOST_IDLE
from daemon.engine.interface import EngineError, ModelDescription
from daemon.engine.lifecycle import LifecycleConfig
from daemon.engine.private_folder import private_socket, record_path
from daemon.engine.weights import WeightsHash
from protocol.extras import Feature
from protocol.wire.ids import is_model_name, sha256

_NAME = "llama.cpp"
_USAGE_ERROR = 2
_HOPELESS = frozenset({None, NOT_A_MODEL, NO_ENGINE, _USAGE_ERROR, -signal.SIGILL})
"""SIGILL: the wheel is built for AVX2, and no restart gives a processor that."""

_SMALL_WEIGHTS_BYTES = 64 << 20
_MAX_CONTEXT = 1 << 20
DEFAULT_CONTEXT = 4096
"""Tokens of one slot where the model allows more; the cache of a slot is paid for in memory whether used or not."""

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """What the box's owner may choose. A `name` of "" is taken from the file, a `context_tokens` of 0 from the model,
    and `threads` of 0 from its size."""

    model: Path
    name: str = ""
    judge_prompt: str = "instructed"
    threads: int = 0
    slots: int = 4
    context_tokens: int = 0


def embedded_engine(settings: EmbeddedSettings, run_folder: Path, rng: Random) -> HttpEngine:
    """Raises EngineError, before anything is started, for a file that is not a model or for settings that cannot work."""
    head = read_head(settings.model)
    name = settings.name or head.name
    if not is_model_name(name):
        raise EngineError("a model is named as name or owner/name, of letters, digits and . _ -")
    if not (0 <= settings.threads <= 1024 and 1 <= settings.slots <= 64 and 0 <= settings.context_tokens <= _MAX_CONTEXT):
        raise EngineError("the engine's threads, slots or context are out of range")
    socket = private_socket(run_folder, "embedded")
    key = secrets.token_urlsafe(32)
    weights = WeightsHash(settings.model)

    async def describe(client: CompletionClient, served: ServedModel) -> ModelDescription:
        described = await _describe(served, settings, head, weights)
        return replace(described, features=await _features(client))

    return HttpEngine(
        Serving(
            server=Server(socket=socket, key=key, ends_streams=True),
            describe=describe,
            dialect=LLAMA_CPP,
            model_name=name,
            slots=settings.slots,
            command=_command(settings, name, head, socket, key),
            # A child that hangs is found out in less than 5 s: 0.5 s and two probes of 2 s.
            lifecycle=LifecycleConfig(ready_interval=0.5, hopeless_codes=_HOPELESS),
        ),
        rng,
    )


def _command(settings: EmbeddedSettings, name: str, head: GgufHead, socket: Path, key: str) -> ChildCommand:
    context = settings.context_tokens or min(head.context_tokens or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    arguments = (
        f"--model={settings.model.absolute()}",
        f"--name={name}",
        f"--socket={socket}",
        f"--threads={settings.threads or _threads(settings.model.stat().st_size)}",
        f"--slots={settings.slots}",
        f"--context={context}",
        # One thread per request, as each stays in one until its answer ends, two for probes, and one at each idle connection.
        f"--http-threads={settings.slots + 2 + MOST_IDLE}",
    )
    # The folder that holds our packages, be it the source tree or a wheel's own, is told rather than inherited.
    packages = Path(daemon.__file__).parent.parent
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return ChildCommand(
        argv=(sys.executable, "-P", "-m", "daemon.engine.embedded_child", *arguments),
        # Spinning threads starve each other on a shared machine: two on two busy cores judged in 480 ms, and passive ones in 4.
        environment={**environment, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(packages)},
        socket=socket,
        record=record_path(socket),
        key=key,
        name=_NAME,
    )


def _threads(weights_bytes: int) -> int:
    """One for a model whose layers are done sooner than a second thread has woken."""
    return 1 if weights_bytes < _SMALL_WEIGHTS_BYTES else min(8, os.cpu_count() or 1)


class _TemplateCaps(msgspec.Struct):
    supports_tools: bool = False
    supports_tool_calls: bool = False


class _Props(msgspec.Struct):
    chat_template_caps: _TemplateCaps = msgspec.field(default_factory=_TemplateCaps)


async def _features(client: CompletionClient) -> frozenset[Feature]:
    """Tools are there where the model's chat template shows them: with another one llama.cpp ignores them without a word."""
    try:
        caps = msgspec.json.decode(await client.get("/props", timeout=5.0), type=_Props).chat_template_caps
    except (msgspec.DecodeError, RecursionError):
        raise EngineError("the engine's properties are malformed") from None
    has_tools = caps.supports_tools and caps.supports_tool_calls
    return LLAMA_CPP.features if has_tools else LLAMA_CPP.features - {"tools"}


async def _describe(served: ServedModel, settings: EmbeddedSettings, head: GgufHead, weights: WeightsHash) -> ModelDescription:
    engine_version = _xllamacpp_version()
    reported = (served.meta or {}).get("n_ctx")
    parts = (await weights.hex(), "gguf", head.quantization, _NAME, engine_version)
    return ModelDescription(
        name=served.id,
        config_digest=sha256(*(part.encode() for part in parts)).hex(),
        context_tokens=reported if isinstance(reported, int) and reported > 0 else settings.context_tokens or head.context_tokens,
        engine=_NAME,
        engine_version=engine_version,
        judge_prompt=settings.judge_prompt,
        slots=settings.slots,
    )


def _xllamacpp_version() -> str:
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return "unknown"
