"""`python -m tests.natlab.beside`: the matrix of NAT pairs for other stacks in the same laboratory, side by side with ours."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.rivals import RIVALS, environment
from tests.natlab.__main__ import add_pair_options, line, pairs_of, sentence, summarise, table
from tests.natlab.commands import begin
from tests.natlab.house import House
from tests.natlab.matrix import MEET_SECONDS, Cell, run_cell
from tests.natlab.namespaces import LabError
from tests.natlab.peers import PORT
from tests.natlab.topology import RELAYS, Lab

HERE = Path(__file__).parent / "rivals"
ANSWER_SECONDS = 40.0
POLL_SECONDS = 0.05


class Foreign:
    """A process of another stack, which says who it is in its first line and then answers JSON lines. End it by `close`."""

    def __init__(self, lab: Lab, namespace: str, folder: Path, command: list[str]) -> None:
        folder.mkdir()
        self._log = (folder / "log").open("wb")
        self._process = lab.spaces.popen(
            namespace, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd=folder
        )
        self._name = namespace
        try:
            self.peer = str(self._read()["peer"])
        except BaseException:
            self.close()
            raise

    def ask(self, question: str, peer: str) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"ask": question, "peer": peer}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LabError(f"{self._name} is gone") from error
        return self._read()

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(5)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        signal.alarm(round(ANSWER_SECONDS))
        try:
            raw = self._process.stdout.readline()
        finally:
            signal.alarm(0)
        if not raw:
            raise LabError(f"{self._name} has ended")
        return json.loads(raw)


@dataclass(frozen=True)
class Stack:
    """How one stack is started: `relay(address)`, then `peer(relays, target)`, each a command."""

    title: str
    relays: int
    relay: Callable[[str], list[str]]
    relay_at: Callable[[str, str, bool], str]
    """A relay's multiaddr from its IP address, its peer id and whether UDP passes."""
    peer: Callable[[list[str], str | None], list[str]]


def lattica() -> Stack:
    """Two js-libp2p relays, as one that is bootstrap and relay at once loses Lattica its reservation; QUIC where UDP passes."""
    if shutil.which("node") is None or not (HERE / "node_modules").exists():
        raise LabError("the relay for Lattica needs node and npm: make natlab-peers installs the rest")
    python = environment(RIVALS["lattica"])
    return Stack(
        "Lattica 1.0.21",
        2,
        lambda host: ["node", str(HERE / "relay.mjs"), f"/ip4/{host}/udp/{PORT}/quic-v1", f"/ip4/{host}/tcp/{PORT}"],
        lambda host, peer, udp: f"/ip4/{host}/{f'udp/{PORT}/quic-v1' if udp else f'tcp/{PORT}'}/p2p/{peer}",
        lambda relays, target: [python, str(HERE / "lattica_peer.py"), str(PORT), *relays, *([target] if target else [])],
    )


def stock() -> Stack:
    """One relay of its own; TCP alone, as its QUIC cannot punch."""
    program = [sys.executable, str(HERE / "stock_peer.py"), str(PORT)]
    return Stack(
        "py-libp2p 0.8.1 as shipped",
        1,
        lambda _: program,
        lambda host, peer, _: f"/ip4/{host}/tcp/{PORT}/p2p/{peer}",
        lambda relays, target: [*program, *relays, *([target] if target else [])],
    )


STACKS = {"lattica": lattica, "stock": stock}


def run_foreign(lab: Lab, stack: Stack, left: str, right: str, patience: float) -> Cell:
    """One pair: both know the relay, the left one dials the right one over it, and then it is up to them."""
    cell = Cell(left, right)
    try:
        with House(lab) as house:
            house.site("A", left, 1)
            house.site("B", right, 11)

            def start(name: str, command: list[str]) -> Foreign:
                one = Foreign(lab, name, house.base / name, command)
                house.ending.callback(one.close)
                return one

            hosts = enumerate(RELAYS[: stack.relays], 1)
            relays = [(host, start(f"R{number}", stack.relay(host)).peer) for number, host in hosts]
            of_right = [stack.relay_at(host, peer, right != "udpblk") for host, peer in relays]
            of_left = [stack.relay_at(host, peer, left != "udpblk") for host, peer in relays]
            server = start("B", stack.peer(of_right, None))
            time.sleep(1.0)  # for its reservation, of which neither stack tells
            asker = start("A", stack.peer(of_left, f"{of_left[0]}/p2p-circuit/p2p/{server.peer}"))
            _follow(cell, asker, server.peer, patience)
    except (LabError, OSError, ValueError) as error:
        cell.note = str(error)[-200:]
    return cell


def _follow(cell: Cell, asker: Foreign, target: str, patience: float) -> None:
    met, deadline = None, time.monotonic() + MEET_SECONDS
    while time.monotonic() < deadline:
        paths = asker.ask("paths", target)
        direct = [path for path in paths if "/p2p-circuit" not in path]
        if paths and met is None:
            met, deadline = time.monotonic(), time.monotonic() + patience
            cell.joined, cell.kind, cell.transport = True, "relayed", "tcp"
        if direct and met is not None:
            cell.relayed_ms = round(1000 * (time.monotonic() - met), 1)
            cell.kind, cell.transport = "punched", "quic" if "/quic" in direct[0] else "tcp"
            break
        time.sleep(POLL_SECONDS)
    if met is None:
        cell.note = "the two never met"
        return
    answer = asker.ask("call", target)
    cell.served = answer["right"]
    cell.served_over = cell.kind if cell.served else ""
    if not cell.served:
        cell.note = " ".join(answer.get("why", "another answer than the right one").split())[:100]


def main() -> int:
    options = _options()
    begin(options)
    signal.signal(signal.SIGALRM, _late)
    pairs = pairs_of(options)
    found: dict[str, tuple[list[Cell], float]] = {}
    with Lab(options.rtt / 1000) as lab:
        runs: dict[str, Callable[[str, str], Cell]] = {}
        if "swarmd" in options.stacks:
            runs["swarmd"] = partial(run_cell, lab, patience=options.patience)
        for name in (name for name in options.stacks if name in STACKS):
            stack = STACKS[name]()
            runs[stack.title] = partial(run_foreign, lab, stack, patience=options.patience)
        for title, run in runs.items():
            print(f"# {title}", file=sys.stderr, flush=True)
            began, cells = time.monotonic(), []
            for left, right in pairs:
                cell = lab.undisturbed(f"{left}-{right}", partial(run, left, right))
                cells.append(cell)
                print(json.dumps({"stack": title, **cell.shown()}) if options.json else line(cell), flush=True)
            found[title] = cells, time.monotonic() - began
    for title, (cells, seconds) in found.items():
        summary = summarise(cells, seconds)
        print(json.dumps({"stack": title, **summary}) if options.json else f"\n{title}\n{table(cells)}\n{sentence(summary)}")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="natlab.beside", description=__doc__)
    add_pair_options(parser)
    parser.add_argument("--stacks", default="swarmd,lattica,stock", help="which of swarmd, lattica and stock (all)")
    parser.add_argument("--patience", type=float, default=25.0, help="seconds that a direct path may take (25)")
    options = parser.parse_args()
    options.stacks = options.stacks.split(",")
    if unknown := set(options.stacks) - {"swarmd", *STACKS}:
        parser.error(f"unknown stack: {', '.join(sorted(unknown))}; there are swarmd, lattica and stock")
    return options


def _late(*_: object) -> None:
    raise LabError(f"a peer gave no answer in {ANSWER_SECONDS:g} s")


if __name__ == "__main__":
    sys.exit(main())
