"""Values that are well typed and still cannot be used."""

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.config import ConfigError, EngineConfig, Loaded
from daemon.config.checks import is_loopback, read_key_file, split_address

Load = Callable[..., Loaded]

PEER = "12D3KooWGRUfXzAkT8ZQJq9kSpzTnPzh5cQd1xh1jhm1HWQZDXpz"


@pytest.mark.parametrize(
    "address",
    [
        "foo", "", "/", "/ip4/1.2.3/tcp/1", "/ip4/127.0.0.1/tcp/65536", "/ip4/127.0.0.1/tcp/-1", "/ip4/127.0.0.1", "/tcp/1",
        "/ip4/127.0.0.1/udp/1", "/dns4/example.org/tcp/1", f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",
        "/ip4/127.0.0.1/tcp/1/ws", "x" * 9999,
    ],
)  # fmt: skip
def test_a_listen_address_that_is_none_is_named(load_toml: Load, address: str) -> None:
    with pytest.raises(ConfigError, match=r"^listen \(command line\): ") as raised:
        load_toml("", {"listen": [address]})
    assert repr(address)[:100] in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "address",
    [
        "foo", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWBad", f"/p2p/{PEER}", f"/ip4/127.0.0.1/udp/1/p2p/{PEER}",
        "/ip4/127.0.0.1/tcp/1/p2p/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}/p2p-circuit",
    ],
)  # fmt: skip
def test_a_join_address_that_is_none_is_named(load_toml: Load, address: str) -> None:
    with pytest.raises(ConfigError, match=r"^join \(environment SWARMD_JOIN\): ") as raised:
        load_toml("", SWARMD_JOIN=address)
    assert repr(address) in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",
        f"/dns4/example.org/tcp/1/p2p/{PEER}",
        f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_join_addresses_that_are_fine(load_toml: Load, address: str) -> None:
    assert load_toml("", {"join": (address,)}).config.join == (address,)


@pytest.mark.parametrize("listen", ["0.0.0.0:4712", "192.0.2.1:1", "[::]:4712"])
def test_beyond_loopback_the_endpoint_needs_a_key(load_toml: Load, home: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"can be reached from other boxes, so api\.key_file"):
        load_toml("", {"api.listen": listen})
    key = home / "key"
    key.write_text("0123456789abcdef\n")
    key.chmod(0o600)
    assert load_toml("", {"api.listen": listen, "api.key_file": str(key)}).config.api.listen == listen
    assert read_key_file(key) == "0123456789abcdef"


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.9.9.9:4712", "[::1]:4712", ""])
def test_loopback_needs_none(load_toml: Load, listen: str) -> None:
    assert load_toml("", {"api.listen": listen}).config.api.listen == listen


@pytest.mark.parametrize(
    "listen", ["4712", "localhost:4712", "example.org:4712", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", ":4712"]
)
def test_an_endpoint_that_is_no_address_is_named(load_toml: Load, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"is not HOST:PORT with an IP address"):
        load_toml("", {"api.listen": listen})


def test_addresses_are_split() -> None:
    assert split_address("[::1]:80") == ("::1", 80)
    assert is_loopback("127.9.9.9")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")


@pytest.mark.parametrize(
    ("content", "mode", "sentence"),
    [
        (b"0123456789abcdef", 0o640, r"others may read the key file .*; run: chmod 600 "),
        (b"0123456789abcdef", 0o604, r"others may read"),
        (b"", 0o600, r"must hold one key of at least 16"),
        (b"short", 0o600, r"must hold one key of at least 16"),
        (b"two words that are long", 0o600, r"must hold one key"),
        (b"\xff" * 32, 0o600, r"must hold one key"),
        (b"x" * 10_000, 0o600, r"must hold one key"),
    ],
)
def test_a_key_file_that_cannot_be_used(load_toml: Load, home: Path, content: bytes, mode: int, sentence: str) -> None:
    key = home / "key"
    key.write_bytes(content)
    key.chmod(mode)
    for setting in ("api.key_file", "engine.key_file"):
        with pytest.raises(ConfigError, match=sentence) as raised:
            load_toml("", {setting: str(key)})
        assert "0123456789abcdef" not in str(raised.value)


def test_a_key_file_that_is_none(load_toml: Load, home: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_toml("", {"api.key_file": str(home / "absent")})
    with pytest.raises(ConfigError, match="is not a regular file"):
        load_toml("", {"api.key_file": str(home)})


@pytest.mark.parametrize(
    "name",
    [
        "--host=0.0.0.0", "-m", "../../etc/passwd", "/etc/passwd", "org/../x", "a/b/c", "org/--flag", "~/x", "a b", "a\nb",
        "org/na:me", "org@main", "\uff4frg/name", ".hidden", "x" * 97, "a/" + "x" * 97, "http://127.0.0.1/x",
    ],
)  # fmt: skip
def test_a_model_name_cannot_be_a_flag_or_a_path(load_toml: Load, name: str) -> None:
    with pytest.raises(ConfigError, match=r"^engine\.model \(command line\): ") as raised:
        load_toml("", {"engine.model": name})
    assert "neither a .gguf file nor a model's name" in str(raised.value)


def test_a_bare_name_must_be_a_shipped_models(load_toml: Load) -> None:
    with pytest.raises(ConfigError, match=r"^engine\.model .*: no model called 'nosuch' is shipped; there are: .*tiny-all"):
        load_toml("", {"engine.model": "nosuch"})
    assert load_toml("", {"engine.model": "tiny-all"}).config.engine.model == "tiny-all"
    assert load_toml("", {"engine.model": "nosuch", "engine.url": "http://127.0.0.1:1/v1"}).config.engine.chosen_kind() == "url"


def test_a_model_file_must_be_there_and_be_one(load_toml: Load, home: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.gguf cannot be read: No such file"):
        load_toml("", {"engine.model": "absent.gguf"})
    (home / "text.gguf").write_text("not a model")
    (home / "empty.gguf").write_text("")
    (home / "folder.gguf").mkdir()
    for name in ("text.gguf", "empty.gguf", "folder.gguf"):
        with pytest.raises(ConfigError, match=rf"{name} (is not a GGUF model file|cannot be read: it is not a regular file)"):
            load_toml("", {"engine.model": name})
    (home / "good.gguf").write_bytes(b"GGUF\x03\0\0\0")
    assert load_toml("", {"engine.model": "good.gguf"}).config.engine.model == str(home / "good.gguf")


@pytest.mark.parametrize("url", ["ftp://x/", "127.0.0.1:80", "http://", "file:///etc/passwd", "http://a b/"])
def test_an_engine_url_that_is_none_is_named(load_toml: Load, url: str) -> None:
    with pytest.raises(ConfigError, match="is not an http or https URL"):
        load_toml("", {"engine.url": url})


@pytest.mark.parametrize("url", ["http://user:hush@127.0.0.1/v1", "http://127.0.0.1/v1?key=hush"])
def test_an_engine_url_carries_no_key(load_toml: Load, url: str) -> None:
    with pytest.raises(ConfigError, match="must not carry a key") as raised:
        load_toml("", {"engine.url": url})
    assert "hush" not in str(raised.value)


def test_an_engine_kind_needs_what_it_runs(load_toml: Load) -> None:
    with pytest.raises(ConfigError, match="must name the server"):
        load_toml("", {"engine.kind": "url"})
    with pytest.raises(ConfigError, match="must name a model"):
        load_toml("", {"engine.kind": "vllm"})


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, "embedded"),
        ({"model": "arithmetic"}, "embedded"),
        ({"model": "/models/a.gguf"}, "embedded"),
        ({"model": "org/name"}, "vllm"),
        ({"model": "org/name", "url": "http://127.0.0.1/v1"}, "url"),
        ({"kind": "none", "model": "org/name"}, "none"),
    ],
)
def test_auto_decides_by_what_is_named(fields: dict[str, str], kind: str) -> None:
    assert EngineConfig(**fields).chosen_kind() == kind  # type: ignore[arg-type]


def test_a_socket_path_that_is_too_long_is_told(load_toml: Load) -> None:
    with pytest.raises(ConfigError, match=r"^runtime_dir .* too long for a Unix socket's path \(107 bytes at most\)"):
        load_toml("", {"runtime_dir": "/tmp/" + "x" * 95})
    load_toml("", {"runtime_dir": "/tmp/" + "x" * 93})
