"""Builds the engine that the configuration asks for. The only place that knows all kinds of them."""

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from daemon.engine.catalog import DEFAULT_MODEL, shipped_model, verified_file
from daemon.engine.embedded import EmbeddedSettings, embedded_engine
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import EngineError
from daemon.engine.url_engine import UrlSettings, url_engine
from daemon.engine.vllm_engine import VllmSettings, vllm_engine

EngineKind = Literal["embedded", "vllm", "url", "none"]
JUDGE_PROMPTS = ("compact", "instructed")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine as configured. 0 and "" mean "the engine's own default"."""

    kind: EngineKind = "embedded"
    model: str = ""
    """embedded: a shipped model's name or the path of a GGUF file; vllm: owner/name or a path under model_root; url: a name."""
    model_root: Path | None = None
    served_name: str = ""
    revision: str = ""
    url: str = ""
    key_file: Path | None = None
    executable: Path | None = None
    extra_arguments: tuple[str, ...] = ()
    judge_prompt: str = ""
    threads: int = 0
    slots: int = 0
    context_tokens: int = 0
    allow_download: bool = False


def build_engine(spec: EngineSpec, run_folder: Path, rng: Random) -> HttpEngine | None:
    """The engine, not yet running, or None for kind "none". Raises EngineError, in one sentence, where it can never work.

    `run_folder` is private to one daemon: two engines of one kind must not share it.
    """
    if spec.judge_prompt and spec.judge_prompt not in JUDGE_PROMPTS:
        raise EngineError(f"a judge prompt is one of {', '.join(JUDGE_PROMPTS)}")
    match spec.kind:
        case "none":
            return None
        case "embedded":
            return embedded_engine(_embedded(spec), run_folder, rng)
        case "vllm":
            return vllm_engine(_vllm(spec), run_folder, rng)
        case "url":
            return url_engine(_url(spec), rng)


def _embedded(spec: EngineSpec) -> EmbeddedSettings:
    path, name, judge_prompt = Path(spec.model), spec.served_name, "instructed"
    # A bare word is a shipped model; a path has a slash or the suffix.
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", spec.model or DEFAULT_MODEL) and not spec.model.endswith(".gguf"):
        shipped = shipped_model(spec.model or DEFAULT_MODEL)
        path, name, judge_prompt = verified_file(shipped), name or shipped.name, shipped.judge_prompt
    return EmbeddedSettings(
        model=path,
        name=name,
        judge_prompt=spec.judge_prompt or judge_prompt,
        threads=spec.threads,
        slots=spec.slots or 4,
        context_tokens=spec.context_tokens,
    )


def _vllm(spec: EngineSpec) -> VllmSettings:
    return VllmSettings(
        model=spec.model,
        model_root=spec.model_root,
        served_name=spec.served_name,
        revision=spec.revision,
        judge_prompt=spec.judge_prompt or "instructed",
        slots=spec.slots or 16,
        context_tokens=spec.context_tokens,
        extra_arguments=spec.extra_arguments,
        executable=spec.executable,
        allow_download=spec.allow_download,
    )


def _url(spec: EngineSpec) -> UrlSettings:
    return UrlSettings(
        url=spec.url,
        model=spec.model,
        key_file=spec.key_file,
        judge_prompt=spec.judge_prompt or "instructed",
        slots=spec.slots or 4,
        context_tokens=spec.context_tokens,
    )
