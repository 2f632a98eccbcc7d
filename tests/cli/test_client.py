"""The client library against a socket that answers well, wrongly, or not at all."""

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from swarmd import ApiError, Client, ClientError, Event, NoDaemon, places

RESULT = {"answer": "4", "peer_id": "12D3KooWx", "model": "m", "strategy": "route"}


def test_reads_are_calls(client: Client, server: Any) -> None:
    server.answers = {
        ("GET", "/swarmd/v1/status"): {"state": "ready"},
        ("GET", "/swarmd/v1/peers"): {"peers": [{"peer_id": "a"}]},
        ("GET", "/swarmd/v1/models"): {"models": [{"name": "m"}]},
        ("GET", "/swarmd/v1/rounds"): {"rounds": []},
        ("GET", "/swarmd/v1/rounds/r%2F1"): {"round_id": "r/1"},
        ("POST", "/swarmd/v1/rounds/r%2F1/verify"): {"ok": True},
        ("GET", "/swarmd/v1/reputation"): {"claims": 3},
        ("GET", "/swarmd/v1/reputation/p"): {"claims": 1},
        ("GET", "/swarmd/v1/config"): {"settings": {}},
        ("GET", "/swarmd/v1/version"): {"version": "1"},
        ("POST", "/swarmd/v1/stop"): {"stopping": True},
    }
    assert client.status() == {"state": "ready"}
    assert client.peers() == [{"peer_id": "a"}]
    assert client.models() == [{"name": "m"}]
    assert client.rounds() == []
    assert client.round("r/1") == {"round_id": "r/1"}
    assert client.verify("r/1") == {"ok": True}
    assert client.reputation() == {"claims": 3}
    assert client.reputation("p") == {"claims": 1}
    assert client.config() == {"settings": {}}
    assert client.version() == {"version": "1"}
    assert client.stop() == {"stopping": True}


def test_an_ask_is_a_stream_of_events(client: Client, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = [("token", {"text": "4"}), ("progress", {"phase": "seal"}), ("result", RESULT)]
    events = list(client.ask("2+2?", strategy="rank", committee=5, timeout_s=3, model=None))
    assert events == [Event("token", {"text": "4"}), Event("progress", {"phase": "seal"}), Event("result", RESULT)]
    assert server.seen[-1][2] == {"prompt": "2+2?", "strategy": "rank", "committee": 5, "timeout_s": 3}


def test_messages_are_sent_as_such(client: Client, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = [("result", RESULT)]
    list(client.ask([{"role": "user", "content": "hi"}]))
    assert server.seen[-1][2] == {"messages": [{"role": "user", "content": "hi"}], "strategy": "route"}


def test_data_over_several_lines_is_joined(client: Client, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = b'event: result\r\ndata: {"answer":\r\ndata: "4"}\r\n\r\n'
    assert list(client.ask("x")) == [Event("result", {"answer": "4"})]


def test_an_error_keeps_its_code_and_status(client: Client, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = (413, {"error": {"message": "the prompt is too long", "code": "prompt_too_long"}})
    with pytest.raises(ApiError, match=r"^the prompt is too long$") as raised:
        client.ask("x")
    assert (raised.value.code, raised.value.status) == ("prompt_too_long", 413)


def test_an_error_within_a_stream_is_raised(client: Client, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = [("token", {"text": "4"}), ("error", {"code": "gone", "message": "the peer left"})]
    events = client.ask("x")
    assert next(events).name == "token"
    with pytest.raises(ApiError, match="the peer left") as raised:
        next(events)
    assert raised.value.code == "gone"


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "closed the stream before the result"),
        (b'event: token\ndata: {"text": "4"}\n\n', "closed the stream before the result"),
        (b"event: result\ndata: not json\n\n", "is not JSON"),
        (b"event: result\ndata: [1]\n\n", "is not a JSON object"),
        (b"event: result\ndata: " + b"x" * (5 << 20), "more than"),
    ],
)
def test_a_broken_stream_is_told(client: Client, server: Any, raw: bytes, sentence: str) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = raw
    with pytest.raises(ClientError, match=sentence):
        list(client.ask("x"))


@pytest.mark.parametrize(("raw", "sentence"), [(b"<html>", "is not JSON"), (b"[]", "is not a JSON object"), (b"", "is not JSON")])
def test_a_broken_reply_is_told(client: Client, server: Any, raw: bytes, sentence: str) -> None:
    server.answers["GET", "/swarmd/v1/status"] = raw
    with pytest.raises(ClientError, match=sentence):
        client.status()


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"error": "x"}', b'{"error": {}}', b"[]"])
def test_an_error_without_our_shape_still_tells_its_status(client: Client, server: Any, body: bytes) -> None:
    server.answers["GET", "/swarmd/v1/status"] = (500, body)
    with pytest.raises(ApiError, match="HTTP status 500"):
        client.status()


def test_rows_of_a_wrong_shape_are_none(client: Client, server: Any) -> None:
    server.answers["GET", "/swarmd/v1/peers"] = {"peers": "many"}
    assert client.peers() == []


def test_no_daemon_says_how_to_start_one(tmp_path: Path) -> None:
    stale = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(stale))
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "absent", stale, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NoDaemon, match=rf"no swarmd daemon answers on {path}; start one with: swarmd start"):
            Client(path).status()


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="too long"):
        Client(tmp_path / ("x" * 120)).status()


def test_a_daemon_that_hangs_is_told(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(path)
        hanging.listen(1)
        with pytest.raises(ClientError, match=r"did not answer within 0\.05 s"):
            Client(path, timeout=0.05).status()


def test_leaving_an_ask_hangs_up(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    hung_up = threading.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(1)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while not connection.recv(65536).endswith(b"}"):
                    pass
                connection.sendall(b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nevent: token\ndata: {"text": "a"}\n\n')
                connection.settimeout(5)
                if connection.recv(1) == b"":
                    hung_up.set()

        thread = threading.Thread(target=serve)
        thread.start()
        events = Client(path).ask("x")
        assert next(events).fields == {"text": "a"}
        events.close()  # type: ignore[attr-defined]  # it is a generator
        thread.join(5)
    assert hung_up.is_set()


def test_where_the_socket_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert places.socket_path() == Path(f"/tmp/swarmd-{os.getuid()}/api.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert places.socket_path() == Path(f"/tmp/swarmd-{os.getuid()}/api.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert places.socket_path() == Path("/run/user/7/swarmd/api.sock")
    monkeypatch.setenv("SWARMD_RUNTIME_DIR", "/run/swarmd")
    assert places.socket_path() == Path("/run/swarmd/api.sock")
    monkeypatch.setenv("SWARMD_SOCKET", "/s")
    assert Client().socket_path == "/s"
    below = places.runtime_dir(tmp_path)
    assert below.parent == Path("/run/user/7/swarmd")
    assert below == places.runtime_dir(tmp_path / "x" / "..")
    assert len(below.name) == 12


def test_a_socket_that_another_user_may_have_planted_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    uid = 3_000_000_000 + os.getpid()
    base = Path(f"/tmp/swarmd-{uid}")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("os.getuid", lambda: uid)
    with pytest.raises(NoDaemon):
        Client().status()
    base.mkdir(mode=0o700)
    try:
        with pytest.raises(ClientError, match="lies in a folder that is not yours alone, so anybody may answer on it"):
            Client().status()
        monkeypatch.undo()
        with pytest.raises(NoDaemon):
            Client(base / "api.sock").status()
    finally:
        base.rmdir()


def test_a_shared_folder_of_ours_that_others_may_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_shared_base", lambda: tmp_path)
    tmp_path.chmod(0o700)
    assert not places.may_be_planted(str(tmp_path / "api.sock"))
    tmp_path.chmod(0o777)
    assert places.may_be_planted(str(tmp_path / "x" / "api.sock"))
    assert not places.may_be_planted("/run/user/7/swarmd/api.sock")
