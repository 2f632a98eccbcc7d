"""What makes the values of a configuration valid together and against the files they name. Changes nothing."""

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from daemon.config.fields import Config, EngineConfig
from daemon.paths import read_file
from protocol.wire.ids import is_model_name, is_peer_id

MAX_SOCKET_PATH_BYTES = 107
"""unix(7): sun_path holds 108 bytes with its terminating zero."""
MAX_KEY_FILE_BYTES = 4 << 10
MIN_KEY_CHARS = 16
"""Shorter keys can be guessed over the network."""
GGUF_MAGIC = b"GGUF"


class KeyFileError(Exception):
    """A file with a secret cannot be used. The message is one sentence."""


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """Every (setting, sentence) that stands in the way of a start, the most basic first."""
    if len(os.fsencode(config.socket_path)) > MAX_SOCKET_PATH_BYTES:
        yield "runtime_dir", f"{config.socket_path} is too long for a Unix socket's path ({MAX_SOCKET_PATH_BYTES} bytes at most)"
    for address in config.listen:
        if sentence := _listen_problem(address):
            yield "listen", sentence
    for address in config.join:
        if sentence := _join_problem(address):
            yield "join", sentence
    yield from _api_problems(config)
    yield from _engine_problems(config.engine)


def read_key_file(path: Path) -> str:
    """The secret in `path`, without surrounding white space; raises KeyFileError."""
    try:
        info, raw = read_file(path, MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error.strerror}") from None
    if info.st_mode & 0o077:
        raise KeyFileError(f"others may read the key file {path}; run: chmod 600 {path}")
    secret = raw.decode("ascii", "replace").strip()
    if len(raw) > MAX_KEY_FILE_BYTES or len(secret) < MIN_KEY_CHARS or not secret.isascii() or any(c.isspace() for c in secret):
        raise KeyFileError(f"the key file {path} must hold one key of at least {MIN_KEY_CHARS} ASCII characters")
    return secret


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of "HOST:PORT" or "[IPV6]:PORT"; raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    ipaddress.ip_address(host)
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this box can reach `host`."""
    return ipaddress.ip_address(host).is_loopback


def _listen_problem(address: str) -> str:
    names, sentence = _protocols(address)
    if not sentence and (len(names) != 2 or names[0] not in ("ip4", "ip6") or names[1] != "tcp"):
        sentence = f"{address!r} is not of the form /ip4/ADDRESS/tcp/PORT"
    return sentence


def _join_problem(address: str) -> str:
    names, sentence = _protocols(address)
    if sentence:
        return sentence
    if names[-1] != "p2p" or not is_peer_id(address.rpartition("/")[2]):
        return f"{address!r} does not end in /p2p/<peer id>; `swarmd status` on that peer prints its addresses"
    if "tcp" not in names:
        return f"{address!r} has no tcp part; peers are reached over TCP"
    return ""


def _protocols(address: str) -> tuple[list[str], str]:
    from multiaddr import Multiaddr  # costs 50 ms, which `status` must not pay

    try:
        names = [protocol.name for protocol in Multiaddr(address).protocols()]
    except Exception as error:  # noqa: BLE001 - the library raises many kinds for malformed text
        cause = str(error).partition(": ")[2].partition(" (string:")[0] or "malformed"
        return [], f"{address[:200]!r} is not a multiaddr: {cause[:200]}"
    return names, "" if names else f"{address!r} is not a multiaddr: it is empty"


def _api_problems(config: Config) -> Iterator[tuple[str, str]]:
    api = config.api
    if api.key_file:
        try:
            read_key_file(Path(api.key_file))
        except KeyFileError as error:
            yield "api.key_file", str(error)
    if not api.listen:
        return
    try:
        host, _ = split_address(api.listen)
    except ValueError:
        yield "api.listen", f"{api.listen[:100]!r} is not HOST:PORT with an IP address, such as 127.0.0.1:4712"
        return
    if not is_loopback(host) and not api.key_file:
        yield "api.listen", f"{api.listen} can be reached from other boxes, so api.key_file must name a key that callers send"


def _engine_problems(engine: EngineConfig) -> Iterator[tuple[str, str]]:
    if engine.key_file:
        try:
            read_key_file(Path(engine.key_file))
        except KeyFileError as error:
            yield "engine.key_file", str(error)
    if engine.url:
        parts = urlsplit(engine.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or any(c.isspace() for c in engine.url):
            yield "engine.url", f"{engine.url[:200]!r} is not an http or https URL"
        elif parts.username or parts.password or parts.query:
            yield "engine.url", "the URL must not carry a key; put it into a file and name that in engine.key_file"
    elif engine.kind == "url":
        yield "engine.url", "engine.kind is url, so engine.url must name the server"
    if sentence := _model_problem(engine):
        yield "engine.model", sentence


def _model_problem(engine: EngineConfig) -> str:
    model, kind = engine.model, engine.chosen_kind()
    if kind == "none" or not model:
        return "engine.kind is vllm, so engine.model must name a model" if kind == "vllm" else ""
    if model.endswith(".gguf"):
        return _gguf_problem(Path(model))
    if not is_model_name(model):
        return f"{model[:100]!r} is neither a .gguf file nor a model's name (owner/name of letters, digits, '.', '_' and '-')"
    return _shipped_problem(model) if kind == "embedded" and "/" not in model else ""


def _shipped_problem(model: str) -> str:
    from daemon.engine.catalog import shipped_model  # only who names a model reads the catalog
    from daemon.engine.interface import EngineError

    try:
        shipped_model(model)
    except EngineError as error:
        return str(error)
    return ""


def _gguf_problem(path: Path) -> str:
    try:
        _, head = read_file(path, len(GGUF_MAGIC))
    except OSError as error:
        return f"the model file {path} cannot be read: {error.strerror}"
    return "" if head.startswith(GGUF_MAGIC) else f"{path} is not a GGUF model file"
