"""Where settings come from, and what each wrong one is told."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.config import ConfigError, Loaded, load, masked
from daemon.config.layers import settings

Load = Callable[..., Loaded]


def test_flag_beats_environment_beats_file_beats_default(load_toml: Load) -> None:
    toml = "[engine]\nthreads = 2\nslots = 2\ncontext_tokens = 2"
    loaded = load_toml(toml, {"engine.threads": 4}, SWARMD_ENGINE_THREADS="3", SWARMD_ENGINE_SLOTS="3")
    engine = loaded.config.engine
    assert (engine.threads, engine.slots, engine.context_tokens, engine.url) == (4, 3, 2, "")
    assert loaded.origins["engine.threads"] == "command line"
    assert loaded.origins["engine.slots"] == "environment SWARMD_ENGINE_SLOTS"
    assert loaded.origins["engine.context_tokens"].startswith("file ")
    assert loaded.origins["engine.url"] == "default"
    assert set(loaded.origins) == set(settings())


def test_nothing_at_all_is_a_valid_configuration(home: Path) -> None:
    config = load({}, None, {}).config
    assert config.data_dir == home / ".local/share/swarmd"
    assert config.listen == ("/ip4/0.0.0.0/tcp/4711",)
    assert config.api.listen == "127.0.0.1:4712"
    assert config.engine.chosen_kind() == "embedded"


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        ("/ip4/127.0.0.1/tcp/1, /ip4/127.0.0.1/tcp/2", ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2")),
        ('["/ip4/127.0.0.1/tcp/1"]', ("/ip4/127.0.0.1/tcp/1",)),
        ("", ()),
    ],
)
def test_lists_in_the_environment(load_toml: Load, text: str, listen: tuple[str, ...]) -> None:
    assert load_toml("", SWARMD_LISTEN=text).config.listen == listen


def test_truths_in_the_environment(load_toml: Load) -> None:
    assert load_toml("", SWARMD_RELAY_SERVE="false").config.relay.serve is False


def test_relative_paths_are_relative_to_who_names_them(load_toml: Load, home: Path) -> None:
    elsewhere = home / "elsewhere"
    elsewhere.mkdir()
    file = elsewhere / "c.toml"
    file.write_text('data_dir = "mine"')
    file.chmod(0o600)
    assert load({}, file, {}).config.data_dir == elsewhere / "mine"
    assert load({"data_dir": Path("mine")}, file, {}).config.data_dir == home / "mine"
    assert load({"data_dir": Path("~/x")}, file, {}).config.data_dir == home / "x"


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ('data_dri = "x"', "unknown setting 'data_dri'; the nearest known one is 'data_dir'"),
        ("threads = 3", "unknown setting 'threads'; the nearest known one is 'engine.threads'"),
        ("[engine]\ntreads = 3", "unknown setting 'engine.treads'; the nearest known one is 'engine.threads'"),
        ("[engin]\nthreads = 3", "unknown setting 'engin'; the nearest known one is"),
        ("zzzzzz = 3", "unknown setting 'zzzzzz'"),
        ("engine = 3", "engine is a group of settings; write [engine]"),
        ("[engine]\nthreads = -1", "engine.threads: expected int >= 0, got -1"),
        ("[engine]\nthreads = 99999", "engine.threads: expected int <= 1024, got 99999"),
        ('[engine]\nthreads = "two"', "engine.threads: expected int, got 'two'"),
        ("[engine]\nthreads = 1.5", "engine.threads: expected int, got 1.5"),
        ("[engine]\nthreads = true", "engine.threads: expected int, got True"),
        ("[engine]\nmodel = {a = 1}", "engine.model: expected str, got {'a': 1}"),
        ("[engine]\nextra_args = [1]", "engine.extra_args: expected a list of str, got [1]"),
        ("[engine]\nvllm_executable = []", "engine.vllm_executable: expected"),
        ('listen = "/ip4/127.0.0.1/tcp/1"', "listen: expected array, got '/ip4/127.0.0.1/tcp/1'"),
        ("data_dir = 3", "data_dir: expected str, got 3"),
        ('data_dir = ""', "data_dir: expected a path, got nothing"),
        ('data_dir = "a\\u0000b"', "data_dir: a zero character is not allowed"),
        ('[log]\nlevel = "loud"', "log.level: expected one of debug, info, warning, error, got 'loud'"),
        ("[round]\ncommittee = 1", "round.committee: expected int >= 2, got 1"),
        ("a = 1\na = 2", "is not valid TOML"),
        ("[engine]\n[engine]", "is not valid TOML"),
        ("x" * 100, "is not valid TOML"),
        (b"a = '\xff'", "is not UTF-8 (byte 5)"),
        ("#" * (10 << 20), "has more than 256 KiB"),
        ("a = " + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(load_toml: Load, toml: str | bytes, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_toml(toml)
    assert sentence in str(raised.value)
    assert "swarmd.toml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_wrong_environment_is_told_by_its_variable(load_toml: Load) -> None:
    with pytest.raises(ConfigError, match=r"^environment SWARMD_ENGINE_THREADS: engine.threads: expected int, got 'many'$"):
        load_toml("", SWARMD_ENGINE_THREADS="many")
    with pytest.raises(ConfigError, match=r"^environment SWARMD_RELAY_USE: relay.use: expected bool, got 'perhaps'$"):
        load_toml("", SWARMD_RELAY_USE="perhaps")


def test_an_unknown_variable_is_a_warning_since_orchestrators_set_some(load_toml: Load) -> None:
    loaded = load_toml("", SWARMD_ENGIN_THREADS="1", SWARMD_SERVICE_HOST="10.0.0.1", SWARMD_CONFIG="", OTHER="x")
    assert loaded.warnings[0] == "SWARMD_ENGIN_THREADS is no setting; the nearest is SWARMD_ENGINE_THREADS"
    assert len(loaded.warnings) == 2


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602])
def test_a_file_that_others_may_write_is_refused(home: Path, mode: int) -> None:
    path = home / "c.toml"
    path.write_text("")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=rf"others may write the config file {path}; run: chmod go-w {path}"):
        load({}, path, {})


def test_a_link_is_judged_by_its_target(home: Path) -> None:
    target, link = home / "target.toml", home / "link.toml"
    target.write_text("")
    link.symlink_to(target)
    target.chmod(0o644)
    load({}, link, {})
    target.chmod(0o666)
    with pytest.raises(ConfigError, match="others may write"):
        load({}, link, {})


def test_what_is_no_file_is_refused_without_hanging(home: Path) -> None:
    os.mkfifo(home / "fifo", 0o600)
    for name, sentence in (("fifo", "not a regular file"), ("absent", "does not exist"), (".", "not a regular file")):
        with pytest.raises(ConfigError, match=sentence):
            load({}, home / name, {})


def test_the_file_named_by_the_environment_is_read(home: Path) -> None:
    path = home / "c.toml"
    path.write_text("[engine]\nslots = 9")
    path.chmod(0o600)
    assert load({}, None, {"SWARMD_CONFIG": str(path)}).config.engine.slots == 9


def test_the_usual_file_is_read_where_none_is_named(home: Path) -> None:
    path = home / ".config/swarmd/config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("[engine]\nslots = 9")
    path.chmod(0o600)
    assert load({}, None, {}).config.engine.slots == 9


def test_secrets_are_masked(load_toml: Load) -> None:
    loaded = load_toml('[engine]\nextra_args = ["--api-key", "hush", "--hf-token=hush", "--max-num-seqs=4"]')
    shown = masked(loaded)
    assert shown["engine.extra_args"]["value"] == ["--api-key", "***", "--hf-token=***", "--max-num-seqs=4"]
    assert "hush" not in str(shown)
    assert set(shown) == set(settings())


def test_every_setting_is_read_by_the_daemon() -> None:
    root = Path(__file__).parents[2] / "daemon"
    source = "\n".join(path.read_text() for path in root.rglob("*.py") if path.parent.name != "config")
    unread = []
    for name in settings():
        section, _, key = name.rpartition(".")
        if not re.search(rf"\b_?(config|{section or 'config'})\.{key}\b", source):
            unread.append(name)
    assert unread == [], "a setting that changes nothing misleads whoever sets it"
