"""How long choosing a peer for one question takes among few and many that serve its model. Decides what is compared.

    python -m bench.choosing [--json] [--check]

The event loop stands still meanwhile. The ratio is that of ten times as many candidates: about ten where each is looked at a
fixed number of times.
"""

import json
import sys
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, cast

import click
import trio

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemon import collector
from daemon.api.backend import AskRequest
from daemon.ask_notes import AskNote
from daemon.asking import Asking
from daemon.selector import Candidate
from dht.standing import Load
from protocol.job import Job, Role, Sampling, Turn
from protocol.wire.ids import PeerId

COUNTS = (10, 100, 1_000)
ROUNDS = 15
CONNECTED = 20
"""Of the candidates; a daemon knows the others by their offers alone."""

MOST_MS = 20.0
MOST_GROWTH = 20.0


def candidates(count: int) -> list[Candidate]:
    """So many peers that serve one model, each with a load of its own."""
    found = []
    for number in range(count):
        near = number < CONNECTED
        load = Load(number % 4, 0, 100 + number % 50, 200, 500)
        path, rtt = ("direct", 0.02) if near else ("unknown", None)
        found.append(Candidate(PeerId(f"peer {number}"), "m", 4, path, rtt, "ab" * 32, load, frozenset(("tools",))))
    return found


async def milliseconds() -> list[float]:
    """The median for each of COUNTS."""
    request = AskRequest(Job((Turn(Role.USER, "x"),), Sampling(5), "m"), "route")
    found = []
    for count in COUNTS:
        known = candidates(count)
        # Neither an engine nor a peer is asked here.
        asking = Asking(cast("Any", None), cast("Any", None), lambda _, known=known: known, lambda _: None, Random(1))
        taken = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            asking.choices(request, AskNote("x", 0.0, "m"))
            taken.append(1000 * (time.perf_counter() - begun))
        found.append(median(taken))
    return found


@click.command()
@click.option("--json", "json_wanted", is_flag=True, help="Print the figures as JSON instead of the table.")
@click.option("--check", is_flag=True, help="Exit 1, naming each figure, where one misses its target.")
def main(json_wanted: bool, check: bool) -> None:
    """Measure what choosing among 10, 100 and 1,000 peers costs."""
    collector.settle()
    found = trio.run(milliseconds)
    growth = found[-1] / found[-2]
    if json_wanted:
        click.echo(json.dumps({"ms": dict(zip(map(str, COUNTS), found, strict=True)), "growth": growth}, indent=1))
    else:
        for count, taken in zip(COUNTS, found, strict=True):
            click.echo(f"{count:5} candidates  {taken:8.3f} ms")
        targets = f"target <= {MOST_GROWTH:g}; of {COUNTS[-1]:,} <= {MOST_MS:g} ms"
        click.echo(f"ten times as many: {growth:.1f} times as long ({targets})")
    short = [f"{COUNTS[-1]} candidates take {found[-1]:.1f} ms, target {MOST_MS:g}"] if found[-1] > MOST_MS else []
    short += [f"ten times as many take {growth:.1f} times as long, target {MOST_GROWTH:g}"] if growth > MOST_GROWTH else []
    for line in short if check else ():
        click.echo(line, err=True)
    sys.exit(1 if check and short else 0)


if __name__ == "__main__":
    main()
