"""What the configuration means to each part: the engine's spec, the transport's options, the API key."""

from pathlib import Path
from typing import Any

import pytest

from daemon.config import ApiConfig, Config, ConfigError, EngineConfig, LimitsConfig, PatienceConfig, RelayConfig
from daemon.patience import Patience
from daemon.settings import api_key, engine_spec, patience, transport_options

JOIN = "/ip4/192.0.2.7/tcp/4711/p2p/12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"


def config(**changes: Any) -> Config:
    return Config(data_dir=Path("/data"), runtime_dir=Path("/run"), **changes)


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ({}, "embedded"),
        ({"model": "tiny-all"}, "embedded"),
        ({"model": "/srv/models/some.gguf"}, "embedded"),
        ({"model": "models/some.gguf"}, "embedded"),
        ({"model": "Qwen/Qwen3-4B"}, "vllm"),
        ({"url": "http://127.0.0.1:8000/v1"}, "url"),
        ({"url": "http://127.0.0.1:8000/v1", "model": "Qwen/Qwen3-4B"}, "url"),
        ({"kind": "none", "model": "tiny-all"}, "none"),
        ({"kind": "vllm", "model": "tiny-all"}, "vllm"),
        ({"kind": "embedded", "url": "http://127.0.0.1:8000/v1"}, "embedded"),
    ],
)
def test_which_engine_is_meant(engine: dict[str, Any], kind: str) -> None:
    spec = engine_spec(config(engine=EngineConfig(**engine)))
    assert spec.kind == kind
    assert (spec.model, spec.url) == (engine.get("model", ""), engine.get("url", ""))


def test_the_engine_takes_every_setting_of_its_section() -> None:
    section = EngineConfig(
        key_file="/key", threads=3, slots=5, context_tokens=1024, extra_args=("--a", "b"), vllm_executable="/venv/bin/vllm"
    )
    spec = engine_spec(config(engine=section))
    assert (spec.key_file, spec.executable) == (Path("/key"), Path("/venv/bin/vllm"))
    assert (spec.threads, spec.slots, spec.context_tokens, spec.extra_arguments) == (3, 5, 1024, ("--a", "b"))
    default = engine_spec(config())
    assert (default.key_file, default.executable) == (None, None)


def test_times_are_seconds_and_the_defaults_are_the_same_everywhere() -> None:
    assert patience(config()) == Patience()
    assert patience(config(patience=PatienceConfig(queue_ms=1, reader_ms=2, first_token_ms=3, gap_ms=4))) == Patience(
        queue=0.001, reader=0.002, first_token=0.003, gap=0.004
    )


def test_the_transport_listens_and_relays_as_configured() -> None:
    options = transport_options(config(listen=("/ip4/127.0.0.1/tcp/0",), limits=LimitsConfig(connections=40)), (JOIN,))
    assert (options.listen, options.max_connections) == (("/ip4/127.0.0.1/tcp/0",), 40)
    assert (options.serve_relay, tuple(options.relays)) == (True, (JOIN,))
    options = transport_options(config(relay=RelayConfig(serve=False, use=False)), (JOIN,))
    assert (options.serve_relay, tuple(options.relays)) == (False, ())


def test_the_api_key_is_read_from_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef0123\n")
    path.chmod(0o600)
    assert api_key(config()) is None
    assert api_key(config(api=ApiConfig(key_file=str(path)))) == "0123456789abcdef0123"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_key_that_others_can_touch_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef0123\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"api\.key_file: .*chmod 600 {path}"):
        api_key(config(api=ApiConfig(key_file=str(path))))


@pytest.mark.parametrize("content", ["", "short", " \n"])
def test_a_key_that_can_be_guessed_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"api\.key_file"):
        api_key(config(api=ApiConfig(key_file=str(path))))


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"api\.key_file: .*missing"):
        api_key(config(api=ApiConfig(key_file=str(tmp_path / "missing"))))
