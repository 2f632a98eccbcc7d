"""Calls and streams of swarmd against rivals: two processes a side on TCP loopback, alternating. Decides what is compared.

    python -m bench.rpc [--against lattica|hivemind|stock|tcp ...] [--quick] [--json] [--check]

Each round runs each load once on every side, in an order that turns round by round, so that what else the machine does hits all
sides alike. A rate is the median over the rounds; a ratio is that of the two medians.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.loads import LOADS, Load
from bench.report import Comparison, Report, as_json, as_table, shortfalls
from bench.rivals import RIVALS, environment
from bench.side import Sample, Side, SideError

OURS = "swarmd"


@click.command()
@click.option("--against", "rivals", multiple=True, type=click.Choice(tuple(RIVALS)), help="A rival; may be repeated. [lattica]")
@click.option("--load", "chosen", multiple=True, type=click.Choice([load.name for load in LOADS]), help="Only these loads.")
@click.option("--rounds", type=click.IntRange(min=3), default=5, show_default=True, help="Rounds whose median counts.")
@click.option("--seconds", type=click.FloatRange(min=0.05), default=1.0, show_default=True, help="Time of one load on one side.")
@click.option("--quick", is_flag=True, help="3 rounds of 0.3 s: whether it works, roughly how fast.")
@click.option("--lattica-python", type=click.Path(exists=True, dir_okay=False), help="One that has lattica. [made on demand]")
@click.option("--hivemind-python", type=click.Path(exists=True, dir_okay=False), help="One that has hivemind. [made on demand]")
@click.option("--json", "json_wanted", is_flag=True, help="Print every sample as JSON instead of the table.")
@click.option("--check", is_flag=True, help="Exit 1, naming each figure, where one is short of its target.")
def main(  # noqa: PLR0913 - one argument per option
    rivals: tuple[str, ...],
    chosen: tuple[str, ...],
    rounds: int,
    seconds: float,
    quick: bool,
    lattica_python: str | None,
    hivemind_python: str | None,
    json_wanted: bool,
    check: bool,
) -> None:
    """Measure swarmd's calls and streams against rivals, side by side."""
    rivals = tuple(dict.fromkeys(rivals)) or ("lattica",)
    if quick:
        rounds, seconds = 3, 0.3
    given = {"lattica": lattica_python, "hivemind": hivemind_python}
    loads = [load for load in LOADS if not chosen or load.name in chosen]
    try:
        report = compare(rivals, given, loads, rounds, seconds)
    except SideError as error:
        raise click.ClickException(str(error)) from None
    click.echo(as_json(report) if json_wanted else as_table(report))
    missed = shortfalls(report) if check else []
    for line in missed:
        click.echo(line, err=True)
    if missed:
        sys.exit(1)


def compare(rivals: tuple[str, ...], given: dict[str, str | None], loads: list[Load], rounds: int, seconds: float) -> Report:
    """Start every side, run all loads on all of them, and end them; raises SideError."""
    sides = [Side(OURS, "bench.peers.swarmd", sys.executable)]
    sides += [Side(name, RIVALS[name].module, given.get(name) or environment(RIVALS[name])) for name in rivals]
    comparisons = []
    with ExitStack() as stack:
        for side in sides:
            stack.enter_context(side)
        for load in loads:
            able = [side for side in sides if side.name == OURS or load.kind not in RIVALS[side.name].lacks]
            samples: dict[str, list[Sample]] = {side.name: [] for side in able}
            for side in able:
                _run(side, load, min(seconds, 0.2))  # not counted: first use opens streams and fills caches
            for number in range(rounds):
                turn = number % len(able)
                for side in able[turn:] + able[:turn]:
                    samples[side.name].append(_run(side, load, seconds))
            comparisons.append(Comparison(load, samples))
    return Report(rounds, seconds, rivals, comparisons, {side.name: side.failures for side in sides})


def _run(side: Side, load: Load, seconds: float) -> Sample:
    return side.run(load, seconds) if side.name == OURS else side.run_again(load, seconds)


if __name__ == "__main__":
    main()
