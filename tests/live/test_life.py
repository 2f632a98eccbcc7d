"""How a daemon begins and ends: bad beginnings are one clear sentence, and no end leaves a process or a socket behind."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.conftest import COMMAND, Daemon, Ran, Starter, alive, run_cli, until
from tests.slow_engine import slow_engine, words

pytestmark = [pytest.mark.live, pytest.mark.slow]

WORDS, PAUSE_SECONDS = 12, 0.15
DEAD_PEER = "12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listed.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found: list[int] = []
    waiting = list(children.get(pid, []))
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def sockets(daemon: Daemon) -> list[Path]:
    return [path for path in (daemon.folder / "run").rglob("*") if path.is_socket()]


@pytest.fixture
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Starter]:
    """Without the fork server: here the start itself is tested."""
    with Starter(tmp_path_factory.mktemp("d")) as started:
        yield started


def refused(starter: Starter, name: str, *extra: str) -> Ran:
    """A start that must fail: its exit code and what it said."""
    daemon = starter.start(name, *extra)
    code = daemon.child.wait(30)
    return Ran(code, "", daemon.log)


def test_the_first_interrupt_drains_and_leaves_nothing(starter: Starter) -> None:
    with slow_engine(WORDS, PAUSE_SECONDS) as url:
        daemon = starter("slow", "--engine-url", url)
        asking = subprocess.Popen([*COMMAND, "ask", "x", "--socket", str(daemon.socket)], stdout=subprocess.PIPE, text=True)
        until(lambda: daemon.client.status()["engine"]["busy"] == 1)
        daemon.child.send_signal(signal.SIGINT)
        assert asking.communicate(timeout=20)[0].split() == "".join(words(WORDS)).split()
        assert daemon.child.wait(20) == 0
        assert sockets(daemon) == []


def test_a_second_interrupt_stops_at_once(starter: Starter) -> None:
    with slow_engine(WORDS, PAUSE_SECONDS) as url:
        daemon = starter("hasty", "--engine-url", url)
        command = [*COMMAND, "ask", "x", "--socket", str(daemon.socket)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            until(lambda: daemon.client.status()["engine"]["busy"] == 1)
            daemon.child.send_signal(signal.SIGINT)
            until(lambda: "a second signal stops at once" in daemon.log)
            daemon.child.send_signal(signal.SIGINT)
            started = time.monotonic()
            assert daemon.child.wait(20) == 0
        assert time.monotonic() - started < 1.5
        assert sockets(daemon) == []


def test_stop_ends_the_engine_too(starter: Starter) -> None:
    daemon = starter("plain")
    children = descendants(daemon.child.pid)
    assert children
    assert len(sockets(daemon)) == 2  # the API's and the engine's
    assert daemon.cli("stop").code == 0
    assert daemon.child.wait(20) == 0
    assert not any(runs(pid) for pid in children)
    assert sockets(daemon) == []


def test_after_a_kill_the_engine_dies_and_the_next_start_cleans_up(starter: Starter) -> None:
    daemon = starter("killed")
    first_id = daemon.peer_id
    epoch = daemon.client.status()["epoch"]
    children = descendants(daemon.child.pid)
    daemon.child.kill()
    daemon.child.wait()
    until(lambda: not any(runs(pid) for pid in children))
    assert daemon.socket.is_socket()  # nobody was left to remove it
    assert daemon.cli("status").code == 3
    again = starter("killed")
    assert again.peer_id == first_id
    assert again.client.status()["epoch"] > epoch
    assert again.cli("ask", "add 47 38").code == 0
    assert again.stop() == 0
    assert sockets(again) == []


def test_a_second_start_on_one_data_folder_is_refused(starter: Starter) -> None:
    daemon = starter("one", "--no-model")
    second = refused(starter, "one", "--no-model")
    tail = second.err.splitlines()[-1]
    assert second.code == 1
    assert f"process id {daemon.child.pid}" in tail
    assert daemon.client.status()["peer_id"] == daemon.peer_id


def test_a_busy_mesh_port_and_a_busy_api_port_are_named(starter: Starter) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        mesh = starter.start("port", "--no-model", listen=f"/ip4/127.0.0.1/tcp/{port}")
        assert mesh.child.wait(30) == 1
        assert str(port) in mesh.log.splitlines()[-1]
        api = refused(starter, "api", "--no-model", "--api", f"127.0.0.1:{port}")
        assert api.code == 1
        assert f"port {port}" in api.err.splitlines()[-1]
        assert "api.listen" in api.err.splitlines()[-1]
        assert "Traceback" not in mesh.log + api.err


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        (["--join", "/ip4/127.0.0.1/tcp/1"], 2, "/p2p/"),
        (["--join", "nonsense"], 2, "nonsense"),
        (["--set", "engine.thread=2"], 2, "engine.threads"),
        (["--model", "/no/such/model.gguf"], 2, "model.gguf"),
        (["--model", "no-such-shipped-model"], 2, "tiny-all"),
        (["--model", "--trust-remote-code"], 2, "trust-remote-code"),
        (["--model", "org/name"], 1, "vllm"),
    ],
)
def test_bad_starts_say_one_sentence(starter: Starter, extra: list[str], code: int, says: str) -> None:
    ran = refused(starter, "bad", *extra)
    assert ran.code == code, ran.err
    assert says in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


def test_a_file_that_is_no_model_is_refused(starter: Starter, tmp_path: Path) -> None:
    path = tmp_path / "not.gguf"
    path.write_bytes(b"hello" * 100)
    ran = refused(starter, "nogguf", "--model", str(path))
    assert ran.code == 2
    assert "GGUF" in ran.err.splitlines()[-1]


def test_a_key_that_others_may_read_is_refused(starter: Starter) -> None:
    daemon = starter("key", "--no-model")
    assert daemon.stop() == 0
    key = daemon.folder / "data" / "identity.pem"
    before = key.read_bytes()
    key.chmod(0o644)
    ran = refused(starter, "key", "--no-model")
    assert ran.code == 1
    assert f"chmod 600 {key}" in ran.err.splitlines()[-1]
    assert key.read_bytes() == before


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    ran = run_cli("start", "--no-model", "--data-dir", str(place / "data"), "--api", "")
    assert ran.code == 1
    assert str(place) in ran.err.splitlines()[-1]
    assert "Traceback" not in ran.err


def test_ask_without_a_daemon_says_how_to_start_one(tmp_path: Path) -> None:
    ran = run_cli("ask", "x", "--data-dir", str(tmp_path / "none"))
    assert ran.code == 3
    assert "swarmd start" in ran.err


def test_a_dead_bootstrap_degrades_but_the_api_is_up(starter: Starter) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{DEAD_PEER}"
    daemon = starter("alone", "--join", address)
    status = daemon.cli("status", "--json")
    assert status.code == 4
    assert status.json["state"] == "degraded"
    assert any("no bootstrap answers" in reason and address in reason for reason in status.json["reasons"])
    assert daemon.cli("ask", "add 47 38").code == 0


def test_a_killed_peer_leaves_routing_with_the_first_failed_call(starter: Starter) -> None:
    first = starter("first", "--no-model")
    second = starter("second", "--model", "tiny-add-mod", "--join", first.address)
    until(lambda: alive(first) == [second.peer_id])
    assert first.cli("ask", "add 47 38").out == "85\n"
    os.kill(second.child.pid, signal.SIGKILL)
    second.child.wait()
    started = time.monotonic()
    failed = first.cli("ask", "add 47 38", "--timeout", "4")
    assert failed.code == 1
    until(lambda: not first.client.models(), 5.0)
    assert time.monotonic() - started < 8.0
    assert first.cli("status").code == 4


def test_a_restarted_peer_replaces_itself(starter: Starter) -> None:
    first = starter("hub", "--no-model")
    second = starter("again", "--model", "tiny-add-mod", "--join", first.address)
    until(lambda: alive(first) == [second.peer_id])
    second.child.kill()
    second.child.wait()
    revived = starter("again", "--model", "tiny-add-mod", "--join", first.address)
    assert revived.peer_id == second.peer_id
    until(lambda: first.cli("ask", "add 47 38", "--json").code == 0)
    assert len(first.client.peers()) == 1


def test_detach_returns_when_ready_and_stop_ends_it(starter: Starter) -> None:
    arguments = starter.arguments("behind")
    ran = run_cli("start", *arguments, "--no-model", "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "127.0.0.1:0", "--detach")
    folder = next(Path(argument) for argument in arguments if argument.endswith("/data")).parent
    try:
        assert ran.code == 0, ran.err
        assert ran.out.rstrip().endswith("swarmd is ready")
    finally:
        stopped = run_cli("stop", "--socket", str(folder / "run" / "api.sock"))
    assert stopped.code == 0
    until(lambda: not (folder / "run" / "api.sock").exists())
