"""vLLM as a supervised child on a private Unix socket. Decides its whole command line: nothing of it ever comes from a peer.

vLLM lives in its own virtual environment or is found on PATH; it is never imported here. Flags and traps: vLLM 0.32.
"""

import os
import re
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from daemon.engine import leash
from daemon.engine.child import ChildCommand
from daemon.engine.completions import CompletionClient, ServedModel
from daemon.engine.dialect import VLLM
from daemon.engine.http_engine import HttpEngine, Serving
from daemon.engine.http_exchange import Server
from daemon.engine.interface import EngineError, ModelDescription
from daemon.engine.lifecycle import LifecycleConfig
from daemon.engine.private_folder import MAX_SOCKET_PATH_BYTES, private_socket, record_path
from protocol.wire.ids import is_model_name, sha256

DRAIN_SECONDS = 20
"""How long vLLM may finish running requests when it is stopped; 0, its default, cuts them off."""

_USAGE_ERROR = 2
_INTERNAL_NAME_BYTES = 48
"""A slash and a UUID, with room for a suffix."""
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")

_CAUSE = re.compile(r"^\((?:EngineCore|Worker)\b.*? ERROR .*?\] ((?!.*root cause)[\w.]*(?:Error|Exception)\b.*)")
"""The API server dies of "See root cause above", some hundred lines below what its EngineCore or Worker died of."""

_ALLOWED = frozenset(
    {
        "--block-size", "--cpu-offload-gb", "--data-parallel-size", "--dtype", "--enable-auto-tool-choice",
        "--enable-chunked-prefill", "--enable-expert-parallel", "--enable-prefix-caching", "--enforce-eager",
        "--gpu-memory-utilization", "--kv-cache-dtype", "--kv-cache-memory-bytes", "--limit-mm-per-prompt", "--load-format",
        "--max-model-len", "--max-num-batched-tokens", "--max-num-seqs", "--no-enable-chunked-prefill",
        "--no-enable-prefix-caching", "--pipeline-parallel-size", "--quantization", "--reasoning-parser", "--seed",
        "--speculative-config", "--swap-space", "--tensor-parallel-size", "--tokenizer-mode", "--tool-call-parser",
    }
)  # fmt: skip
"""What the box's owner may add: nothing about where it listens, what it logs or running code from a model's repository."""

_FOR_TOOLS = frozenset({"--enable-auto-tool-choice", "--tool-call-parser"})

_PASSED_ON = re.compile(
    r"PATH|HOME|LANG|LC_ALL|TMPDIR|LD_LIBRARY_PATH|HF_HOME|HF_HUB_CACHE|CUDA_.*|NVIDIA_.*|ROCR_.*|HIP_.*|OMP_NUM_THREADS|"
    r"VLLM_CPU_KVCACHE_SPACE|VLLM_CPU_OMP_THREADS_BIND|VLLM_CACHE_ROOT|XDG_CACHE_HOME"
)
_FIXED_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_SERVER_DEV_MODE": "0",
}


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What the box's owner may choose. `model` is `owner/name` in the local hub cache, or a folder under `model_root`."""

    model: str
    model_root: Path | None = None
    """Folder under which a `model` that is an absolute path must lie, links resolved; None allows no path."""
    served_name: str = ""
    revision: str = ""
    judge_prompt: str = "instructed"
    slots: int = 16
    context_tokens: int = 0
    extra_arguments: tuple[str, ...] = ()
    executable: Path | None = None
    """The `vllm` command, or a Python that has vLLM; None looks on PATH."""
    allow_download: bool = False


def vllm_engine(settings: VllmSettings, run_folder: Path, rng: Random) -> HttpEngine:
    """Raises EngineError, before anything is started, where vLLM is not installed or the settings are not allowed."""
    name = settings.served_name or (settings.model if is_model_name(settings.model) else Path(settings.model).name)
    if not is_model_name(name):
        raise EngineError("a model is named as name or owner/name, of letters, digits and . _ -")
    if not 1 <= settings.slots <= 1024:
        raise EngineError("the engine's slots are out of range")
    socket = private_socket(run_folder, "vllm")
    key, scratch = secrets.token_urlsafe(32), socket.with_suffix(".tmp")
    model, arguments = checked_model(settings.model, settings.model_root), serve_arguments(settings, name, socket)
    command = ChildCommand(
        argv=(sys.executable, "-P", leash.__file__, *_program(settings.executable, model), *arguments),
        environment=_environment(settings, key) | _internal_sockets(scratch),
        socket=socket,
        scratch=scratch,
        record=record_path(socket),
        grace=DRAIN_SECONDS + 5.0,
        titles=("VLLM::",),
        telling=_CAUSE,
        name="vLLM",
    )

    async def describe(client: CompletionClient, served: ServedModel) -> ModelDescription:
        return await _describe(client, served, settings)

    return HttpEngine(
        Serving(
            server=Server(socket=socket, key=key),
            describe=describe,
            dialect=VLLM,
            model_name=name,
            slots=settings.slots,
            command=command,
            lifecycle=LifecycleConfig(
                starting_interval=0.5,
                ready_interval=1.0,
                failures_allowed=2,
                # Minutes are normal: 5 were seen on a loaded two-core box, and a big model on a slow disk takes longer.
                start_timeout=1800.0,
                backoff_base=2.0,
                hopeless_codes=frozenset({None, _USAGE_ERROR, leash.CANNOT_RUN}),
            ),
            health_timeout=10.0,
            warm_up_timeout=300.0,
        ),
        rng,
    )


def serve_arguments(settings: VllmSettings, name: str, socket: Path) -> tuple[str, ...]:
    """Everything after the program and the model: what is fixed, then what the owner added; raises EngineError."""
    chosen = [f"--revision={settings.revision}"] if settings.revision else []
    chosen += [f"--max-model-len={settings.context_tokens}"] if settings.context_tokens else []
    if settings.revision and _REVISION.fullmatch(settings.revision) is None:
        raise EngineError("a model's revision is a commit, tag or branch of letters, digits and . _ -")
    return (
        f"--uds={socket}",
        f"--served-model-name={name}",
        f"--shutdown-timeout={DRAIN_SECONDS}",
        "--disable-fastapi-docs",
        "--disable-uvicorn-access-log",
        # Else a model's repository chooses sampling defaults, and equal jobs differ from engine to engine.
        "--generation-config=vllm",
        f"--max-num-seqs={settings.slots}",
        *chosen,
        *checked_extra(settings.extra_arguments),
    )


def checked_model(model: str, root: Path | None) -> str:
    """`model` if it is a name, or the real path of a folder under `root`; raises EngineError, so that it is never a flag."""
    if is_model_name(model):
        return model
    if root is None or not model.startswith("/"):
        raise EngineError("a model is named as owner/name, or is an absolute path under the configured model folder")
    real, real_root = Path(model).resolve(), root.resolve()
    if not real.is_relative_to(real_root) or real == real_root:
        raise EngineError("the model lies outside the configured model folder")
    if not real.is_dir():
        raise EngineError("there is no such model folder")
    return str(real)


def checked_extra(arguments: Sequence[str]) -> tuple[str, ...]:
    """The owner's arguments, each as `--flag` or `--flag=value`; raises EngineError for any flag that is not allowed.

    A value in an item of its own is refused: whether it is a value would depend on the flag before it.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag not in _ALLOWED or not argument.isprintable():
            raise EngineError(f"{flag[:40]!r} is not among the arguments that vLLM may be given; write values as --flag=value")
    return tuple(arguments)


def _program(executable: Path | None, model: str) -> tuple[str, ...]:
    """The program up to and with the model, which was checked."""
    if executable is None:
        found = shutil.which("vllm")
        if found is None:
            raise EngineError(
                "vLLM is not installed: make an environment for it (python -m venv ~/vllm; ~/vllm/bin/pip install 'vllm>=0.32') "
                "and name its bin/vllm as engine.vllm_executable"
            )
        return (found, "serve", model)
    if not (executable.is_absolute() and executable.is_file() and os.access(executable, os.X_OK)):
        raise EngineError(f"the configured vLLM program {executable.name} is not an executable file")
    if executable.name.startswith("python"):
        # The `vllm` script does not start in every build: that of vllm-cpu 0.32 looks for another distribution's metadata.
        return (str(executable), "-P", "-m", "vllm.entrypoints.openai.api_server", f"--model={model}")
    return (str(executable), "serve", model)


def _environment(settings: VllmSettings, key: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    fixed = {k: v for k, v in _FIXED_ENVIRONMENT.items() if not (settings.allow_download and k.endswith("_OFFLINE"))}
    return own | fixed | {"VLLM_API_KEY": key}


def _internal_sockets(scratch: Path) -> dict[str, str]:
    """Where vLLM's processes meet: its sockets lie about after every end, so they go where we remove them, if the path fits."""
    fits = len(os.fsencode(scratch)) + _INTERNAL_NAME_BYTES <= MAX_SOCKET_PATH_BYTES
    return {"VLLM_RPC_BASE_PATH": str(scratch)} if fits else {}


async def _describe(client: CompletionClient, served: ServedModel, settings: VllmSettings) -> ModelDescription:
    version = await client.version(timeout=10.0)
    flags = {flag: value for flag, _, value in (argument.partition("=") for argument in settings.extra_arguments)}
    weights = f"{served.id}\n{served.root or ''}\n{settings.revision}"
    parts = (weights, flags.get("--dtype", "auto"), flags.get("--quantization", "none"), "vllm", version)
    return ModelDescription(
        name=served.id,
        config_digest=sha256(*(part.encode() for part in parts)).hex(),
        context_tokens=served.max_model_len or settings.context_tokens or 4096,
        engine="vllm",
        engine_version=version,
        judge_prompt=settings.judge_prompt,
        slots=settings.slots,
        # Without a parser for this model's calls vLLM refuses tools, and it guesses none.
        features=VLLM.features if set(flags) >= _FOR_TOOLS else VLLM.features - {"tools"},
    )
