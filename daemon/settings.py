"""Turns the configuration into what each part takes: the engine's spec, the transport's options, the API key."""

from collections.abc import Sequence
from pathlib import Path

from daemon.config import Config, ConfigError
from daemon.config.checks import KeyFileError, read_key_file
from daemon.content.exchange import ContentPolicy
from daemon.engine.factory import EngineSpec
from daemon.patience import Patience
from daemon.transport.options import TransportOptions


def engine_spec(config: Config) -> EngineSpec:
    """Which engine the configuration means."""
    engine = config.engine
    return EngineSpec(
        kind=engine.chosen_kind(),
        model=engine.model,
        url=engine.url,
        key_file=Path(engine.key_file) if engine.key_file else None,
        executable=Path(engine.vllm_executable) if engine.vllm_executable else None,
        extra_arguments=engine.extra_args,
        threads=engine.threads,
        slots=engine.slots,
        context_tokens=engine.context_tokens,
    )


def transport_options(config: Config, join: Sequence[str]) -> TransportOptions:
    """How the transport listens, how much it takes, and whose relay it uses: the bootstraps', which can be reached."""
    return TransportOptions(
        listen=config.listen,
        max_connections=config.limits.connections,
        serve_relay=config.relay.serve,
        relay_reservations=config.relay.reservations,
        relay_circuits=config.relay.circuits,
        relay_peer_circuits=config.relay.peer_circuits,
        relay_circuit_bytes=config.relay.circuit_mib << 20,
        relay_rate=config.relay.kib_per_second << 10,
        relays=tuple(join) if config.relay.use else (),
        punch=config.nat.punch,
        udp=config.nat.udp,
        birthday=config.nat.birthday,
        port_mapping=config.nat.port_mapping,
    )


def patience(config: Config) -> Patience:
    """How long we wait for what, in seconds."""
    return Patience(
        queue=config.patience.queue_ms / 1000,
        reader=config.patience.reader_ms / 1000,
        first_token=config.patience.first_token_ms / 1000,
        gap=config.patience.gap_ms / 1000,
    )


def content_policy(config: Config) -> ContentPolicy:
    """How much of the disk and of the line files may take."""
    content = config.content
    return ContentPolicy(content.quota_gib << 30, content.upload_kib_s * 1024.0, frozenset(content.accept_from))


def api_key(config: Config) -> str | None:
    """The key that callers of the OpenAI endpoint must present, None where none is configured; raises ConfigError."""
    if not config.api.key_file:
        return None
    try:
        return read_key_file(Path(config.api.key_file))
    except KeyFileError as error:
        raise ConfigError(f"api.key_file: {error}") from None
