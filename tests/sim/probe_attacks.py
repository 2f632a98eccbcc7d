"""Peers that cheat on probes, in simulation: canned answers, lazy judging. Uses the tasks, marks and weights that daemons use.

python -m tests.sim.probe_attacks [--seeds 1000]
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from protocol.probes.answers import is_right
from protocol.probes.task import SKILLS, Task, fresh
from protocol.probes.traffic import PLAIN, Traffic, bind
from protocol.round.weights import Known, Trials, weigh

SHARE = 0.05
PAIRS = 3
"""Telling pairs that a judge is given in a gold round of seven members, as rounds of the shipped models showed on average."""


@dataclass(frozen=True, slots=True)
class Canner:
    """A way to answer without a model."""

    name: str
    says: Callable[[Task], str]


CANNERS = (
    Canner("one number", lambda task: "42"),
    Canner("echo", lambda task: task.text),
    Canner("refusal", lambda task: "I am sorry, I cannot help with that."),
    Canner("last word of the question", lambda task: task.text.split()[-1]),
    Canner("every number at once", lambda task: " ".join(map(str, range(100)))),
)


def requests_until_caught(canner: Canner, rng: Random, limit: int = 200) -> int:
    """How many questions, probes among them, a canner is asked until a probe of it fails first; `limit` where none did."""
    traffic = Traffic()
    for number in range(1, limit + 1):
        if rng.random() >= SHARE:
            traffic.note(bind(fresh(rng.choice(SKILLS), rng), PLAIN, ""), rng)
            continue
        task = traffic.task("canner", SKILLS, rng)
        if not is_right(task.known, canner.says(task)):
            return number
    return limit


@dataclass(frozen=True, slots=True)
class Shares:
    """Of all judging weight after so many rounds of gold: that of the lazy judges, and of the honest ones."""

    lazy: float
    honest: float


def judging_shares(honest: Sequence[float], lazy: int, rounds: int, rng: Random) -> Shares:
    """Honest judges prefer the right answer as often as stated; lazy ones say always A, or toss a coin, in turn."""
    right = [0] * (len(honest) + lazy)
    for _ in range(rounds * PAIRS):
        a_is_right = rng.random() < 0.5  # the order of a pair is random
        for place in range(len(right)):
            if place < len(honest):
                right[place] += rng.random() < honest[place]
            elif place % 2:
                right[place] += a_is_right
            else:
                right[place] += rng.random() < 0.5
    trials = rounds * PAIRS * 1000
    candidates = [Known(Trials(), Trials(won * 1000, trials - won * 1000)) for won in right]
    weights = [abs(one.judge_milli) for one in weigh(candidates)]
    total = max(1, sum(weights))
    return Shares(sum(weights[len(honest) :]) / total, sum(weights[: len(honest)]) / total)


def mean_shares(honest: Sequence[float], lazy: int, rounds: int, seeds: int) -> Shares:
    """The mean over seeds."""
    found = [judging_shares(honest, lazy, rounds, Random(seed)) for seed in range(seeds)]
    return Shares(sum(one.lazy for one in found) / seeds, sum(one.honest for one in found) / seeds)


@click.command()
@click.option("--seeds", type=click.IntRange(min=1), default=1000, show_default=True)
def main(seeds: int) -> None:
    """Print how soon canned answers are caught (L5), and what lazy judges weigh (L6)."""
    click.echo(f"canned answers, {SHARE:.0%} of requests are gold, {seeds} seeds: caught within 60, within 91, median requests")
    for canner in CANNERS:
        spent = sorted(requests_until_caught(canner, Random(seed)) for seed in range(seeds))
        within = [sum(number <= limit for number in spent) / seeds for limit in (60, 91)]
        click.echo(f"  {canner.name:28}{within[0]:8.1%}{within[1]:8.1%}{spent[seeds // 2]:6}")
    click.echo(f"judging weight, 4 honest and 3 lazy judges, {PAIRS} telling pairs a round, {seeds} seeds: lazy, honest")
    for skill in (0.75, 0.6):
        for rounds in (1, 5, 10, 30):
            found = mean_shares([skill] * 4, 3, rounds, seeds)
            click.echo(f"  honest p={skill}, after {rounds:2} gold rounds{found.lazy:9.1%}{found.honest:9.1%}")


if __name__ == "__main__":
    main()
