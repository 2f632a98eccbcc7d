"""A daemon's local socket with answers from a table, and the command line called in this process."""

import json
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest

import daemon.cli
from swarmd import Client


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Server(socketserver.ThreadingUnixStreamServer):
    """Answers by (method, path): a dict is sent as JSON, a list of (event, fields) as an event stream, bytes as they are."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.answers: dict[tuple[str, str], Any] = {}
        self.seen: list[tuple[str, str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def address_string(self) -> str:
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((self.command, self.path, body))
        status, answer = 200, self.server.answers.get((self.command, self.path))
        if answer is None:
            status, answer = 404, {"error": {"message": "there is no such thing", "code": "not_found"}}
        if isinstance(answer, tuple):
            status, answer = answer
        if isinstance(answer, list):
            raw = b": hello\n\n" + b"".join(f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode() for name, fields in answer)
        else:
            raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/event-stream" if isinstance(answer, list) else "application/json")
        self.send_header("Connection", "close")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = True


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("CONFIG_HOME", "DATA_HOME", "STATE_HOME"):
        monkeypatch.delenv(f"XDG_{variable}", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # a daemon of the developer's own may answer at the usual place
    for variable in ("SWARMD_SOCKET", "SWARMD_RUNTIME_DIR", "SWARMD_DATA_DIR", "SWARMD_CONFIG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[Server]:
    # Not below tmp_path: a socket's path may have 107 bytes only.
    with TemporaryDirectory(prefix="swarmd-test-") as folder, Server(f"{folder}/api.sock") as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> Client:
    return Client(str(server.server_address), timeout=5.0)


@pytest.fixture
def swarmd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run the command line with these arguments."""

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["swarmd", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            daemon.cli.main()
        printed = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, printed.out, printed.err)

    return call


@pytest.fixture
def ask_daemon(server: Server, swarmd: Callable[..., Result]) -> Callable[..., Result]:
    """Run the command line against the server."""
    return lambda *arguments: swarmd("--socket", str(server.server_address), *arguments)
