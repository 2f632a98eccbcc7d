"""A streamed answer survives its peer, shown: real daemons with real engines, the one that serves is killed, frozen or cut off.

    python -m bench.failover [--end kill|freeze|cut ...] [--temperature 0.7] [--json] [--check]

The same question is first answered undisturbed. Then it is asked again, the serving daemon is ended in the middle of its answer,
another one with the same model goes on, and the two texts are compared. The model has random weights: its answer is noise, lasts
long enough in a real llama.cpp, and follows from the seed to the letter, so that a lost or doubled word would show.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.daemons import Daemon, Processes
from bench.random_model import ModelShape, write_gguf
from swarmd import Client

QUESTION = "tell me"
MODEL = "tests/random-llama"
SERVERS = 3
LAYERS = 10
TOKENS = 1200
AT_PIECES = 25
GAP_MS = 1000
"""The asker's patience between two words, so that a frozen peer costs a second here and not fifteen."""

MESH_SECONDS = 45.0
ENDS = {"kill": "kill -9", "freeze": "kill -STOP", "cut": "cut the line to"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one ending went. `at_chars` is where the successor took over; `pause_s` the longest wait for a piece of the text."""

    end: str
    served_by: str
    continued_by: str
    at_chars: int
    chars: int
    pause_s: float
    undisturbed_pause_s: float
    same: bool
    attempts: list[dict[str, Any]]


class Line:
    """A TCP connection's way to a daemon that can be cut: `cut` closes it in both directions and refuses new ones."""

    def __init__(self, daemon: Daemon) -> None:
        _, _, host, _, port, _, peer = daemon.address.split("/")
        self._far = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.address = f"/ip4/127.0.0.1/tcp/{self._listener.getsockname()[1]}/p2p/{peer}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._far)
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                target.sendall(piece)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End what runs over it, for good."""
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@dataclass(slots=True)
class Heard:
    """An answer as it came: its pieces, its result, the longest wait for a piece, and what was done in the middle of it."""

    pieces: list[str]
    result: dict[str, Any]
    pause_s: float
    ended: str


def ask(client: Client, temperature: float, act: Callable[[], str] | None = None) -> Heard:
    """Ask, and `act` once AT_PIECES pieces were heard."""
    pieces: list[str] = []
    longest, before, ended = 0.0, 0.0, ""
    for event in client.ask(QUESTION, model=MODEL, max_tokens=TOKENS, temperature=temperature, seed=1, timeout_s=120):
        now = time.monotonic()
        if event.name == "token":
            longest, before = max(longest, now - before if pieces else 0.0), now
            pieces.append(event.fields["text"])
            if act is not None and len(pieces) == AT_PIECES:
                ended = act()
        elif event.name == "result":
            return Heard(pieces, event.fields, longest, ended)
    raise click.ClickException("the stream ended without a result")


def serving_now(client: Client) -> str:
    """Who is answering the newest question, by the asker's own notes."""
    return str(client.why("last")["attempts"][-1]["peer_id"])


def wait_for_peers(client: Client, count: int) -> None:
    deadline = time.monotonic() + MESH_SECONDS
    while sum(row["state"] == "alive" and row["model"] == MODEL for row in client.peers()) < count:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{count} peers were not found within {MESH_SECONDS:.0f} s")
        time.sleep(0.1)


def show(end: str, temperature: float, say: Callable[[str], None]) -> Outcome:
    """One ending in a mesh of its own."""
    with tempfile.TemporaryDirectory(prefix="swbm") as folder, Processes() as processes, contextlib.ExitStack() as after:
        model = write_gguf(Path(folder) / "random-llama.gguf", ModelShape(layers=LAYERS, ascii=True))
        say(f"starting {SERVERS} daemons that serve {MODEL}, and one without a model that asks")
        servers = [processes.daemon(f"server{place}", "--model", str(model)) for place in range(SERVERS)]
        lines = {daemon.address.rpartition("/")[2]: Line(daemon) for daemon in servers}
        for line in lines.values():
            after.callback(line.cut)
        joins = [part for line in lines.values() for part in ("--join", line.address)]
        asker = processes.daemon("asker", "--no-model", *joins, "--set", f"patience.gap_ms={GAP_MS}")
        by_peer = {daemon.address.rpartition("/")[2]: daemon for daemon in servers}
        client = Client(asker.socket, timeout=120)
        wait_for_peers(client, SERVERS)
        # Outside the mesh: a prompt that an engine has cached is read in other batches, with other rounding errors.
        alone = ask(Client(processes.daemon("alone", "--model", str(model)).socket, timeout=120), temperature)
        say(f"undisturbed: {len(alone.result['answer'])} characters from {alone.result['peer_id'][-8:]}")

        def act() -> str:
            peer = serving_now(client)
            say(f"  {''.join(said[-40:])!r}... after {AT_PIECES} pieces: {ENDS[end]} {peer[-8:]} (pid {by_peer[peer].pid})")
            if end == "cut":
                lines[peer].cut()
            else:
                os.kill(by_peer[peer].pid, signal.SIGKILL if end == "kill" else signal.SIGSTOP)
                if end == "freeze":
                    after.callback(os.kill, by_peer[peer].pid, signal.SIGCONT)
            return peer

        said = alone.pieces[:AT_PIECES]
        heard = ask(client, temperature, act)
        return _judged(end, alone, heard, temperature, say)


def _judged(end: str, alone: Heard, heard: Heard, temperature: float, say: Callable[[str], None]) -> Outcome:
    result = heard.result
    answer, at = result["answer"], (result["continued"] or [0])[0]
    # Greedy, only the rest is generated anew, and a rounding error may choose another letter: then its length must be right.
    rest = alone.result["answer"][:at] + answer[at:] if temperature == 0 else alone.result["answer"]
    is_whole = bool(temperature) or result["usage"] == alone.result["usage"]
    same = "".join(heard.pieces) == answer == rest and is_whole and bool(result["continued"])
    for attempt in result["attempts"]:
        place = f" from character {attempt['at_chars']}" if "at_chars" in attempt else ""
        say(f"  {attempt['peer_id'][-8:]}: {attempt['outcome']}{place}")
    say(f"  ...{answer[max(0, at - 20) : at]!r} | {answer[at : at + 20]!r}... to the end, {len(answer)} characters")
    say(f"  the text is {'the same as undisturbed' if same else 'NOT the same'}; longest pause {heard.pause_s:.2f} s")
    pauses = round(heard.pause_s, 3), round(alone.pause_s, 3)
    return Outcome(end, heard.ended, result["peer_id"], at, len(answer), *pauses, same, result["attempts"])


@click.command()
@click.option("--end", "ends", multiple=True, type=click.Choice(tuple(ENDS)), help="How; may be repeated. [kill]")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.7, show_default=True, help="0: the likeliest text.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the outcomes as JSON.")
@click.option("--check", is_flag=True, help="Exit 1 where a text was not the same.")
def main(ends: tuple[str, ...], temperature: float, json_wanted: bool, check: bool) -> None:
    """End the daemon that serves a streamed answer, and compare the whole text."""

    def say(text: str) -> None:
        if not json_wanted:
            click.echo(text)

    outcomes = [show(end, temperature, say) for end in ends or ("kill",)]
    if json_wanted:
        click.echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    for outcome in outcomes if check else []:
        if not outcome.same:
            click.echo(f"short: after {outcome.end} the text is not the same", err=True)
    if check and not all(outcome.same for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
