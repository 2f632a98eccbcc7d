"""An engine that someone else runs: any OpenAI-compatible server by URL. Starts nothing; its state is what probes say."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from daemon.engine.completions import CompletionClient, ServedModel
from daemon.engine.dialect import ANY_SERVER
from daemon.engine.gguf import model_name
from daemon.engine.http_engine import HttpEngine, Serving
from daemon.engine.http_exchange import Server
from daemon.engine.interface import EngineError, ModelDescription
from daemon.engine.lifecycle import LifecycleConfig
from protocol.wire.ids import is_model_name, sha256

_MAX_KEY_BYTES = 4096
_DEFAULT_CONTEXT = 4096
"""Where neither the server nor the owner says."""


@dataclass(frozen=True, slots=True)
class UrlSettings:
    """What the box's owner may choose. A `model` of "" takes the first that the server lists."""

    url: str
    model: str = ""
    key_file: Path | None = None
    judge_prompt: str = "instructed"
    slots: int = 4
    context_tokens: int = 0


def url_engine(settings: UrlSettings, rng: Random) -> HttpEngine:
    """Raises EngineError for a URL, key file or model name that cannot work."""
    server = checked_url(settings.url, "" if settings.key_file is None else read_key(settings.key_file))
    if settings.model and not is_model_name(settings.model):
        raise EngineError("a model is named as name or owner/name, of letters, digits and . _ -")
    if not 1 <= settings.slots <= 1024:
        raise EngineError("the engine's slots are out of range")

    async def describe(client: CompletionClient, served: ServedModel) -> ModelDescription:
        return _describe(served, settings)

    return HttpEngine(
        Serving(
            server=server,
            describe=describe,
            dialect=ANY_SERVER,
            model_name=settings.model,
            slots=settings.slots,
            command=None,
            lifecycle=LifecycleConfig(
                starting_interval=1.0, ready_interval=5.0, failures_allowed=2, start_timeout=30.0, hopeless_codes=frozenset()
            ),
            health_timeout=10.0,
            warm_up_timeout=25.0,
        ),
        rng,
    )


def checked_url(text: str, key: str = "") -> Server:
    """The server behind an http or https URL, a trailing `/v1` left out; raises EngineError, also for credentials in it."""
    try:
        url = urlsplit(text)
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        raise EngineError("the engine's URL is malformed") from None
    if not text.isascii() or not text.isprintable() or " " in text:
        raise EngineError("the engine's URL is malformed")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise EngineError("the engine's URL begins with http:// or https:// and names a host")
    if "@" in url.netloc or url.query or url.fragment:
        raise EngineError("the engine's URL holds no user, query or fragment: a key belongs in a key file")
    prefix = url.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return Server(host=url.hostname, port=port, tls=url.scheme == "https", prefix=prefix, key=key)


def read_key(path: Path) -> str:
    """The first line of a file that only its owner can read; raises EngineError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
                raise EngineError(f"the key file {path.name} must be a regular file of mode 0600")
            line = file.read(_MAX_KEY_BYTES).split(b"\n", 1)[0].strip()
    except OSError as error:
        raise EngineError(f"the key file {path.name} cannot be read: {error.strerror}") from None
    if not line or not line.isascii() or not line.decode("ascii", "replace").isprintable():
        raise EngineError(f"the key file {path.name} holds no key")
    return line.decode("ascii")


def _describe(served: ServedModel, settings: UrlSettings) -> ModelDescription:
    meta = served.meta or {}
    reported = served.max_model_len or meta.get("n_ctx")
    # All that a foreign server tells of its weights. Two servers that tell the same count as one voice, which is the safe side.
    sizes = [f"{key}={meta[key]}" for key in ("n_params", "size", "ftype") if key in meta]
    told = "\n".join([served.id, served.root or "", *sizes])
    return ModelDescription(
        name=model_name(served.id),
        config_digest=sha256(told.encode(), b"unknown", b"unknown", b"url", b"unknown").hex(),
        context_tokens=settings.context_tokens or (reported if isinstance(reported, int) and reported > 0 else _DEFAULT_CONTEXT),
        engine="url",
        engine_version="unknown",
        judge_prompt=settings.judge_prompt,
        slots=settings.slots,
        features=ANY_SERVER.features,
    )
