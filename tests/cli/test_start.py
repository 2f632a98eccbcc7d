"""What `swarmd start` makes of its options, and what it says when the node does not run. The node itself is a stand-in here."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crdt_store.store import StorageError
from daemon.config import Config, Loaded
from daemon.engine.interface import EngineError
from daemon.identity import IdentityError
from daemon.transport.interface import TransportError

Call = Callable[..., Any]

PEER = "12D3KooWGRUfXzAkT8ZQJq9kSpzTnPzh5cQd1xh1jhm1HWQZDXpz"
ADDRESS = f"/ip4/127.0.0.1/tcp/4711/p2p/{PEER}"


class Node(ModuleType):
    """Remembers the configuration it is run with; raises `failure`, or reports to be ready and ends."""

    def __init__(self) -> None:
        super().__init__("daemon.node")
        self.loaded: Loaded | None = None
        self.failure: Exception | None = None
        self.mesh = ""

    def run(self, loaded: Loaded, on_ready: Callable[[Sequence[str], str, str, bool], None]) -> int:
        self.loaded = loaded
        if self.failure:
            raise self.failure
        on_ready([ADDRESS], "http://127.0.0.1:4712/v1", self.mesh, False)
        return 0

    @property
    def config(self) -> Config:
        assert self.loaded is not None
        return self.loaded.config


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    stand_in = Node()
    monkeypatch.setitem(sys.modules, "daemon.node", stand_in)
    return stand_in


def test_without_options_it_starts_and_says_how_to_join(swarmd: Call, node: Node) -> None:
    result = swarmd("start")
    assert (result.code, result.err) == (0, "")
    assert f"  swarmd start --join {ADDRESS}\n" in result.out
    assert f"local socket  {node.config.socket_path}\n" in result.out
    assert result.out.endswith("swarmd is ready\n")
    assert node.config.engine.chosen_kind() == "embedded"


def test_in_a_private_mesh_it_says_who_may_invite(swarmd: Call, node: Node) -> None:
    node.mesh = "home"
    assert "private mesh home; this peer may not invite others\n" in swarmd("start").out


def test_options_become_settings(swarmd: Call, node: Node, home: Path) -> None:
    (home / "m.gguf").write_bytes(b"GGUF")
    listen = "/ip4/127.0.0.1/tcp/0"
    options = ("--model", "m.gguf", "--join", ADDRESS, "--join", ADDRESS, "--listen", listen, "--api", "", "--data-dir", "d")
    assert swarmd("start", *options, "--set", "engine.threads=2", "--set", "relay.serve=false").code == 0
    config = node.config
    assert config.engine.model == str(home / "m.gguf")
    assert config.engine.chosen_kind() == "embedded"
    assert config.join == (ADDRESS, ADDRESS)
    assert config.listen == (listen,)
    assert config.api.listen == ""
    assert config.data_dir == home / "d"
    assert (config.engine.threads, config.relay.serve) == (2, False)
    assert node.loaded is not None
    assert node.loaded.origins["engine.threads"] == "command line"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (("--model", "org/name"), "vllm"),
        (("--engine-url", "http://127.0.0.1:8000/v1"), "url"),
        (("--engine-url", "http://127.0.0.1:8000/v1", "--model", "org/name"), "url"),
        (("--no-model",), "none"),
        ((), "url"),
    ],
)
def test_an_option_decides_the_engine_over_a_files_kind(swarmd: Call, node: Node, home: Path, options: Any, kind: str) -> None:
    file = home / "c.toml"
    file.write_text('[engine]\nkind = "url"\nurl = "http://127.0.0.1:9/v1"')
    file.chmod(0o600)
    assert swarmd("start", "--config", file, *options).code == 0
    assert node.config.engine.chosen_kind() == kind


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--join", "nowhere"), "join (command line): 'nowhere' is not a multiaddr: unknown protocol: nowhere"),
        (
            ("--listen", "/ip4/1.2.3/tcp/1"),
            "listen (command line): '/ip4/1.2.3/tcp/1' is not a multiaddr: base address '1.2.3' is not IPv4",
        ),
        (("--model", "absent.gguf"), "cannot be read: No such file or directory"),
        (("--model", "--host=0.0.0.0"), "'--host=0.0.0.0' is neither a .gguf file nor a model's name"),
        (("--set", "engine.treads=2"), "unknown setting 'engine.treads'; the nearest known one is 'engine.threads'"),
        (("--set", "engine.threads"), "'engine.threads' is not of the form NAME=VALUE"),
        (("--set", "engine.threads=x"), "command line: engine.threads: expected int, got 'x'"),
        (("--config", "absent.toml"), "absent.toml does not exist"),
    ],
)
def test_wrong_settings_are_told_before_anything_starts(swarmd: Call, node: Node, options: Any, sentence: str) -> None:
    for arguments in (options, (*options, "--detach")):
        result = swarmd("start", *arguments)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith("swarmd: ")
        assert sentence in result.err
        assert result.err.count("\n") == 1
    assert node.loaded is None


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            IdentityError("the data folder /d is in use by swarmd with process id 7"),
            "the data folder /d is in use by swarmd with process id 7",
        ),
        (TransportError("port 4711 is in use"), "port 4711 is in use"),
        (EngineError("vLLM is not installed; run: pip install vllm"), "vLLM is not installed; run: pip install vllm"),
        (StorageError("/d/claims.sqlite is damaged; move it away"), "/d/claims.sqlite is damaged; move it away"),
        (OSError(28, "No space left on device", "/d/x"), "No space left on device: /d/x"),
        (ExceptionGroup("nursery", [ExceptionGroup("inner", [TransportError("port 4711 is in use")])]), "port 4711 is in use"),
        (ExceptionGroup("nursery", [TransportError("port 4711 is in use"), EngineError("stopped")]), "port 4711 is in use"),
    ],
)
def test_a_node_that_cannot_run_is_one_sentence(swarmd: Call, node: Node, failure: Exception, sentence: str) -> None:
    node.failure = failure
    assert swarmd("start") == (1, "", f"swarmd: {sentence}\n")


@pytest.mark.parametrize("failure", [KeyError("x"), ExceptionGroup("nursery", [TransportError("t"), KeyError("x")])])
def test_our_own_bug_shows_its_traceback_and_ends_with_one_line(swarmd: Call, node: Node, failure: Exception) -> None:
    node.failure = failure
    result = swarmd("start")
    assert result.code == 1
    assert "Traceback" in result.err
    assert result.err.endswith("swarmd: internal error: KeyError: 'x'\n")


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the detached daemon be this Python text; `fd` is the pipe on which it says that it is ready."""

    def become(text: str) -> None:
        script = tmp_path / "stand-in"
        script.write_text(f"#!{sys.executable}\nimport os, sys, time\nfd = int(sys.argv[-1])\n{text}\n")
        script.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(script))

    return become


@pytest.mark.slow
def test_detached_it_returns_once_the_daemon_is_ready(swarmd: Call, home: Path, program: Any) -> None:
    program("""
print(sys.argv[1:-2], os.getsid(0) == os.getpid())
os.write(fd, b'{"addresses": ["/ip4/9.9.9.9/tcp/1/p2p/x"], "api_url": "", "mesh": "", "may_invite": false}'); os.close(fd)
""")
    result = swarmd("start", "--detach", "--no-model")
    assert result.code == 0
    assert "swarmd start --join /ip4/9.9.9.9/tcp/1/p2p/x\n" in result.out
    assert result.out.endswith("swarmd is ready\n")
    log = home / ".local/state/swarmd/swarmd.log"
    assert f"logs to {log}" in result.err


@pytest.mark.slow
def test_of_its_mesh_is_told_what_the_daemon_says_whatever_became_of_the_file(swarmd: Call, home: Path, program: Any) -> None:
    (home / "d").mkdir(mode=0o700)
    (home / "d" / "mesh.json").write_text("damaged since it started")
    program("""
os.write(fd, b'{"addresses": [], "api_url": "", "mesh": "home", "may_invite": true}'); os.close(fd)
""")
    result = swarmd("start", "--detach", "--no-model", "--data-dir", "d")
    assert result.code == 0
    assert "private mesh home; let others in with\n  swarmd invite create --for PEER\n" in result.out


@pytest.mark.slow
def test_a_detached_daemon_that_fails_tells_its_error_and_exit_code(swarmd: Call, home: Path, program: Any) -> None:
    log = home / "d" / "swarmd.log"
    log.parent.mkdir(mode=0o700)
    log.write_text("an earlier run\n")
    program("""
print(sys.argv[1:-2], os.getsid(0) == os.getpid(), flush=True)
print("swarmd: port 4711 is in use", file=sys.stderr)
sys.exit(5)
""")
    result = swarmd("start", "--detach", "--data-dir", "d")
    assert result.code == 5
    assert "['-P', '-m', 'swarmd', 'start', '--data-dir', 'd'] True\n" in result.err
    assert result.err.endswith(f"swarmd: port 4711 is in use\nswarmd: the daemon ended with exit code 5; its log is {log}\n")
    assert "an earlier run" not in result.err


@pytest.mark.slow
def test_a_detached_daemon_that_is_slow_is_left_running(swarmd: Call, program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.cli.start.DETACH_WAIT_S", 0.05)
    program("time.sleep(1.3)")
    result = swarmd("start", "--detach")
    assert result.code == 4
    assert "still starting; see `swarmd status`" in result.err


def test_a_log_that_cannot_be_written_is_told(swarmd: Call, home: Path) -> None:
    (home / "d").write_text("")
    result = swarmd("start", "--detach", "--data-dir", "d")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("swarmd: the log cannot be written: the data folder ")


@pytest.mark.slow
def test_who_interrupts_a_detached_start_leaves_nothing_running(
    swarmd: Call, home: Path, program: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(f"open({str(home / 'pid')!r}, 'w').write(str(os.getpid()))\nos.close(fd)\ntime.sleep(60)")

    def interrupted(descriptor: int) -> None:
        os.read(descriptor, 1)
        os.close(descriptor)
        raise KeyboardInterrupt

    monkeypatch.setattr("daemon.cli.start._await_ready", interrupted)
    assert swarmd("start", "--detach").code == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((home / "pid").read_text()), 0)
