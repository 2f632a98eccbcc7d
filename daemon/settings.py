"""Turns the configuration into what each part takes: the engine's spec, the transport's options, the API key. Reads key files."""

import os
import re
import stat
from pathlib import Path

from daemon.config import Config, ConfigError
from daemon.engine.factory import EngineKind, EngineSpec
from daemon.transport.options import TransportOptions

MAX_KEY_BYTES = 4 << 10

_SHIPPED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWNER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def engine_spec(config: Config) -> EngineSpec:
    """Which engine the configuration means; "auto" is decided by engine.url and the form of engine.model."""
    engine = config.engine
    return EngineSpec(
        kind=_kind(config),
        model=engine.model,
        url=engine.url,
        key_file=Path(engine.key_file) if engine.key_file else None,
        executable=Path(engine.vllm_command[0]) if engine.vllm_command != ("vllm",) else None,
        extra_arguments=engine.extra_args,
        threads=engine.threads or min(8, os.cpu_count() or 1),
        slots=engine.slots,
        context_tokens=engine.context_tokens,
    )


def _kind(config: Config) -> EngineKind:
    engine = config.engine
    if engine.kind != "auto":
        return engine.kind
    if engine.url:
        return "url"
    if not engine.model or engine.model.endswith(".gguf") or _SHIPPED.fullmatch(engine.model):
        return "embedded"
    return "vllm" if _OWNER_NAME.fullmatch(engine.model) else "embedded"


def transport_options(config: Config) -> TransportOptions:
    """How the transport listens and how much it takes."""
    return TransportOptions(listen=config.listen, max_connections=config.limits.connections)


def read_key(path: str) -> str | None:
    """The API key in `path`, None where none is configured; raises ConfigError for a file that others may read."""
    if not path:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"api.key_file {path} cannot be read: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"api.key_file {path} is not a regular file")
        if info.st_mode & 0o077:
            raise ConfigError(f"others may read api.key_file {path}; run: chmod 600 {path}")
        key = file.read(MAX_KEY_BYTES).decode("ascii", "replace").strip()
    if len(key) < 16:
        raise ConfigError(f"api.key_file {path} must hold a key of at least 16 characters, such as: openssl rand -hex 32")
    return key
