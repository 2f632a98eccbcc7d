"""Claims after a partition, shown: two halves of a mesh are parted, both go on saying things, the line heals, all hold the same.

    python -m bench.partition [--json] [--check]

Four real daemons, two in each of two network namespaces with one line between them, which is taken down and up again. Needs root
and iproute2, touches nothing outside the namespaces that it makes, and removes them.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.daemons import Daemon, Processes
from swarmd import Client

HOSTS = ("10.77.0.1", "10.77.0.2")
SECONDS = 120.0
"""The longest wait for any of the conditions."""


class Halves:
    """Two network namespaces and the line between them. Each half's address is on its loopback, so that it outlives the line."""

    def __init__(self) -> None:
        self.names = tuple(f"swp{os.getpid()}{side}" for side in "ab")
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", "line", "netns", self.names[0], "type", "veth", "peer", "name", "line", "netns", self.names[1])
        for name, host in zip(self.names, HOSTS, strict=True):
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "addr", "add", f"{host}/32", "dev", "lo")
        self.heal()

    def heal(self) -> None:
        """The line is up."""
        for name in self.names:
            _ip("-n", name, "link", "set", "line", "up")
        for name, far in zip(self.names, reversed(HOSTS), strict=True):
            _ip("-n", name, "route", "replace", f"{far}/32", "dev", "line")

    def part(self) -> None:
        """The line is down: nothing passes, and nobody is told."""
        _ip("-n", self.names[0], "link", "set", "line", "down")

    def remove(self) -> None:
        """Both namespaces go."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"ip {' '.join(words)}: {done.stderr.strip()}; this needs root and iproute2")


@contextlib.contextmanager
def halves() -> Iterator[Halves]:
    made = Halves()
    try:
        yield made
    finally:
        made.remove()


def until(what: str, holds: Callable[[], bool]) -> float:
    """Wait for it; gives the seconds that it took."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > SECONDS:
            raise click.ClickException(f"{what}: not within {SECONDS:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - started


def hashes(replies: list[dict[str, Any]]) -> list[str]:
    """The state hash of each, with its number of claims."""
    return [f"{reply['replica_hash'][:16]} of {reply['claims']} claims" for reply in replies]


def show(say: Callable[[str], None]) -> dict[str, object]:
    """Part and heal one mesh; what each daemon held before, apart and after."""
    with halves() as network, Processes() as processes:
        daemons: list[Daemon] = []
        for place in range(4):
            half, joins = place // 2, ("--join", daemons[0].address) if daemons else ()
            inside = ("ip", "netns", "exec", network.names[half])
            listen = f"/ip4/{HOSTS[half]}/tcp/0"
            daemons.append(processes.daemon(f"d{place}", "--model", "tiny-all", *joins, prefix=inside, listen=listen))
        clients = [Client(daemon.socket, timeout=120) for daemon in daemons]
        peers = [daemon.address.rpartition("/")[2] for daemon in daemons]

        def meet(count: int) -> bool:
            return all(sum(row["state"] == "alive" for row in client.peers()) == count for client in clients)

        held: list[dict[str, Any]] = []

        def look(*groups: range) -> bool:
            """Whether each group holds one thing, and no two groups the same; what all hold is kept to be shown."""
            held[:] = [client.reputation() for client in clients]
            found = [{held[place]["replica_hash"] for place in group} for group in groups]
            return all(len(one) == 1 for one in found) and len(set.union(*found)) == len(groups)

        def offered() -> bool:
            """Whether each knows what the other of its half serves: on a busy box that comes later than that it is there."""
            seen = [{peer for model in client.models() for peer in model["peers"]} for client in clients]
            return all(peers[place ^ 1] in seen[place] for place in range(4))

        def speak() -> None:
            until("the offer of the other in its half", offered)
            for place in range(4):  # each asks the other of its half what it knows the answer of: probes become claims
                clients[place].probe(peers[place ^ 1], count=2)

        until("four daemons that know each other", lambda: meet(3))
        speak()
        until("equal sets", lambda: look(range(4)) and held[0]["claims"] > 0)
        before = hashes(held)
        say(f"together: {before}")
        network.part()
        took = until("halves that miss each other", lambda: meet(1))
        say(f"the line is down; each half counts the other as gone after {took:.1f} s, and goes on")
        speak()
        until("equal sets in each half", lambda: look(range(2), range(2, 4)))
        apart = hashes(held)
        say(f"apart:    {apart}")
        network.heal()
        healed = until("equal sets", lambda: look(range(4)))
        after = hashes(held)
        say(f"healed:   {after}, {healed:.1f} s after the line came up")
        for reply in held:
            say(f"  replica_hash {reply['replica_hash']}  claims {reply['claims']}  forks {len(reply['forks'])}")
        whole = [reply["replica_hash"] for reply in held]
        return {"before": before, "apart": apart, "after": after, "replica_hash": whole, "healed_s": round(healed, 1)}


@click.command()
@click.option("--json", "json_wanted", is_flag=True, help="Print the states as JSON.")
@click.option("--check", is_flag=True, help="Exit 1 where the hashes differ after the line healed.")
def main(json_wanted: bool, check: bool) -> None:
    """Part a mesh of four daemons, let both halves write, heal it, and print the hash of each one's claims."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the namespaces go, whoever ends it
    shown = show(lambda text: None if json_wanted else click.echo(text))
    if json_wanted:
        click.echo(json.dumps(shown, indent=1))
    if check and len(set(shown["replica_hash"])) != 1:  # type: ignore[call-overload]
        click.echo("short: the hashes differ", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
