"""A stream survives its peer: real daemons are killed (-9), frozen (SIGSTOP) and cut off in the middle of an answer.

Two engines: a server that is slow enough to be cut at leisure and says the same to everybody, behind several daemons (the
shipped models answer within milliseconds); and llama.cpp itself, with a model whose answer lasts for seconds.
"""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.random_model import ModelShape, write_gguf
from tests.live.conftest import Daemon, Starter, alive, until
from tests.slow_engine import slow_engine, words

pytestmark = [pytest.mark.live, pytest.mark.slow]

WORDS = 70
WHOLE = "".join(words(WORDS))
PAUSE_SECONDS = 0.02


@pytest.fixture
def slow_url() -> Iterator[str]:
    with slow_engine(WORDS, PAUSE_SECONDS) as url:
        yield url


class Wire:
    """A TCP connection's way to a daemon that can be cut: `cut` closes it in both directions and refuses new ones."""

    def __init__(self, daemon: Daemon) -> None:
        _, _, host, _, port, _, peer = daemon.address.split("/")
        self._far = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.address = f"/ip4/127.0.0.1/tcp/{self._listener.getsockname()[1]}/p2p/{peer}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._ends.append(near)
                far = socket.create_connection(self._far)
                self._ends.append(far)
                for source, target in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pump, args=(source, target), daemon=True))
                    self._threads[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(5)
        for end in (self._listener, *self._ends):
            end.close()


def answered(
    asker: Daemon, question: str, at_words: int, act: Callable[[], None], **options: Any
) -> tuple[list[str], dict[str, Any]]:
    """The pieces of an answer and its result; `act` is done once `at_words` pieces were heard."""
    pieces: list[str] = []
    for event in asker.client.ask(question, **options):
        if event.name == "token":
            pieces.append(event.fields["text"])
            if len(pieces) == at_words:
                act()
        elif event.name == "result":
            return pieces, event.fields
        else:
            assert event.name == "progress", event.fields
    raise AssertionError("the stream ended without a result")


def serving(daemons: list[Daemon]) -> Daemon:
    """The one whose engine works."""
    (busy,) = [daemon for daemon in daemons if daemon.client.status()["engine"]["busy"]]
    return busy


def asked(asker: Daemon, servers: list[Daemon]) -> Daemon:
    """The one that the asker's log says it asked last: known in a moment, while tokens flow."""
    chosen = [line for line in asker.log.splitlines() if '"event": "asking"' in line][-1]
    (server,) = [daemon for daemon in servers if f'"why": "{daemon.peer_id[-8:]}:' in chosen]
    return server


def survived(pieces: list[str], result: dict[str, Any], whole: str, failed: Daemon, outcome: str) -> None:
    """No word was lost or doubled, and the result says who failed and who went on, and where."""
    assert "".join(pieces) == result["answer"] == whole
    first, second = result["attempts"]
    assert first == {"peer_id": failed.peer_id, "outcome": outcome}
    at = second["at_chars"]
    assert second == {"peer_id": result["peer_id"], "outcome": "continued", "at_chars": at}
    assert result["continued"] == [at]
    assert 0 < at < len(whole)


def test_a_stream_survives_its_peer_killed_frozen_and_cut_off(starter: Starter, slow_url: str) -> None:
    servers = [starter.start(name, "--engine-url", slow_url) for name in "bcde"]
    wires = {daemon.wait_ready().peer_id: Wire(daemon) for daemon in servers}
    joins = [part for wire in wires.values() for part in ("--join", wire.address)]
    asker = starter("a", "--no-model", *joins, "--set", "patience.gap_ms=1000")
    left = list(servers)
    frozen: list[Daemon] = []

    def freeze(daemon: Daemon) -> None:
        daemon.child.send_signal(signal.SIGSTOP)
        frozen.append(daemon)

    ends: list[tuple[Callable[[Daemon], None], str]] = [
        (lambda daemon: daemon.child.kill(), "gone"),
        (lambda daemon: wires[daemon.peer_id].cut(), "gone"),
        (freeze, "deadline"),
    ]
    try:
        for at_words, (end, outcome) in zip((5, 15, 25), ends, strict=True):
            until(lambda: set(alive(asker)) >= {daemon.peer_id for daemon in left})
            failed: list[Daemon] = []

            def act(end: Callable[[Daemon], None] = end, failed: list[Daemon] = failed) -> None:
                failed.append(serving(left))
                end(failed[0])

            pieces, result = answered(asker, "say it", at_words, act, model="slow")
            survived(pieces, result, WHOLE, failed[0], outcome)
            assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": WORDS}
            left.remove(failed[0])
    finally:
        for daemon in frozen:
            daemon.child.send_signal(signal.SIGCONT)
        for wire in wires.values():
            wire.cut()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_llama_cpp_goes_on_where_a_killed_one_ended(starter: Starter, tmp_path: Path, temperature: float) -> None:
    """Each token of this model is one character. Its weights are noise, so that a rounding error soon changes the likeliest one:
    greedy, the rest alone is generated, and is as long as it must be; sampled, all is drawn again, and is the same to the letter.
    """
    model = write_gguf(tmp_path / "random-llama.gguf", ModelShape(layers=8, ascii=True))
    asker = starter("a", "--no-model", "--set", "log.level=debug", "--set", "log.format=json")
    servers = [starter.start(name, "--model", str(model), "--join", asker.address) for name in "bc"]
    third = starter("d", "--model", str(model))  # of its own: a cached prompt is read in other batches, with other errors
    for daemon in servers:
        daemon.wait_ready()
    until(lambda: len(alive(asker)) == 2)
    options = {"model": "tests/random-llama", "max_tokens": 1200, "temperature": temperature, "seed": 1}
    failed: list[Daemon] = []
    undisturbed, alone = answered(third, "tell me", 0, lambda: None, **options)
    assert [attempt["outcome"] for attempt in alone["attempts"]] == ["ok"]

    def act() -> None:
        failed.append(asked(asker, servers))
        failed[0].child.kill()

    pieces, result = answered(asker, "tell me", 20, act, **options)
    at = result["continued"][0]
    whole = "".join(undisturbed) if temperature else "".join(undisturbed)[:at] + result["answer"][at:]
    survived(pieces, result, whole, failed[0], "gone")
    assert result["finish_reason"] == alone["finish_reason"]
    assert result["usage"]["completion_tokens"] == alone["usage"]["completion_tokens"]
    assert temperature or len(result["answer"]) == result["usage"]["completion_tokens"] == 1200


def test_a_frozen_peer_of_a_shipped_model_costs_its_patience_and_no_answer(starter: Starter) -> None:
    asker = starter("a", "--no-model", "--set", "patience.first_token_ms=800")
    servers = [starter.start(name, "--model", "tiny-all", "--join", asker.address) for name in "bc"]
    for daemon in servers:
        daemon.wait_ready()
    until(lambda: len(alive(asker)) == 2)
    # Whoever is expected to be sooner after a few answers is the one to freeze: it will be asked again.
    for _ in range(6):
        answered(asker, "sort hgcabdfe", 0, lambda: None, model="tiny-all")
    measured = {one["peer_id"]: one["predicted_s"] for one in asker.cli("why", "last", "--json").json["candidates"]}
    frozen, other = sorted(servers, key=lambda daemon: measured[daemon.peer_id])
    frozen.child.send_signal(signal.SIGSTOP)
    try:
        for _ in range(20):
            pieces, result = answered(asker, "sort hgcabdfe", 0, lambda: None, model="tiny-all")
            assert ("".join(pieces), result["peer_id"]) == ("abcdefgh", other.peer_id)
            if len(result["attempts"]) == 2:
                break
        assert result["attempts"] == [
            {"peer_id": frozen.peer_id, "outcome": "deadline"},
            {"peer_id": other.peer_id, "outcome": "ok"},
        ]
        assert f"{other.peer_id[-8:]}: direct path" in result["why"]
    finally:
        frozen.child.send_signal(signal.SIGCONT)
