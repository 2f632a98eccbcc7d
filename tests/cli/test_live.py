"""A real daemon without a model: started detached, asked, refused a second one, stopped. No engine, so that it is quick."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytestmark = [pytest.mark.live, pytest.mark.slow]

# Nobody listens on port 1 of loopback, and this is a well-formed peer id.
DEAD = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGRUfXzAkT8ZQJq9kSpzTnPzh5cQd1xh1jhm1HWQZDXpz"


class Box:
    """A home folder and the command line in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run")}

    def swarmd(self, *arguments: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "swarmd", *arguments]
        return subprocess.run(command, cwd=self.home, env=self.environ, capture_output=True, text=True, timeout=timeout)

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.swarmd("start", "--no-model", "--listen", "/ip4/127.0.0.1/tcp/0", "--api", "", *arguments)


@pytest.fixture(scope="module")
def box() -> Iterator[Box]:
    """A box with a daemon on its usual data folder that was told to join through a peer that is not there."""
    with TemporaryDirectory(prefix="swarmd-test-") as folder:
        (Path(folder) / "run").mkdir(mode=0o700)
        box = Box(Path(folder))
        started = box.start("--detach", "--join", DEAD)
        assert started.returncode == 0, started.stderr
        assert started.stdout.endswith("swarmd is ready\n")
        assert re.search(r"swarmd start --join /ip4/127\.0\.0\.1/tcp/\d+/p2p/12D3KooW\w{44}\n", started.stdout)
        try:
            yield box
        finally:
            box.swarmd("stop")


def test_a_dead_bootstrap_is_degraded_and_the_local_api_is_up(box: Box) -> None:
    status = box.swarmd("status", "--json")
    assert status.returncode == 4, status.stderr
    reply = json.loads(status.stdout)
    assert reply["state"] == "degraded"
    assert any(DEAD in reason for reason in reply["reasons"]), reply["reasons"]
    assert [(peer["address"], peer["connected"]) for peer in reply["mesh"]["bootstrap"]] == [(DEAD, False)]
    for verb in ("peers", "models", "rounds", "reputation"):
        assert box.swarmd(verb, "--json").returncode == 0
    assert box.swarmd("ask", "hello", "--timeout", "5").returncode == 1


def test_a_second_start_on_one_data_folder_is_refused(box: Box) -> None:
    second = box.start()
    assert (second.returncode, second.stdout) == (1, "")
    expected = rf"swarmd: the data folder {box.home}/\.local/share/swarmd is in use by swarmd with process id \d+; .*\n"
    assert re.fullmatch(expected, second.stderr), second.stderr
    assert box.swarmd("status", "--quiet").returncode == 4


@pytest.mark.parametrize("option", ["--listen", "--api"])
def test_a_busy_port_is_named(box: Box, option: str) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        options = {"--listen": "/ip4/127.0.0.1/tcp/0", "--api": ""}
        options[option] = f"127.0.0.1:{port}" if option == "--api" else f"/ip4/127.0.0.1/tcp/{port}"
        refused = box.swarmd("start", "--no-model", "--data-dir", "other", *(part for pair in options.items() for part in pair))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert str(port) in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len([line for line in refused.stderr.splitlines() if line.startswith("swarmd: ")]) == 1


def test_after_kill_9_the_next_start_cleans_up_and_stop_leaves_nothing(box: Box) -> None:
    data = box.home / "killed"
    assert box.start("--detach", "--data-dir", str(data)).returncode == 0
    os.kill(int((data / "lock").read_text()), signal.SIGKILL)
    (socket_path,) = (path for path in (box.home / "run" / "swarmd").glob("*/api.sock"))
    assert socket_path.is_socket()
    assert box.start("--detach", "--data-dir", str(data)).returncode == 0
    stopped = box.swarmd("stop", "--data-dir", str(data))
    assert (stopped.returncode, stopped.stderr) == (0, "stopped\n")
    assert list(socket_path.parent.iterdir()) == []
    assert box.swarmd("status", "--data-dir", str(data)).returncode == 3
