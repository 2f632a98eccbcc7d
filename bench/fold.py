"""How long does a fold take, and does it give the same bits whatever the order?

    python -m bench.fold [--json] [--check]

Median of many folds of one drawn round, in this process: `fuse` and `rank` at 7 members and 35 with 3N comparisons each, at 500
with 3N in all; then 1,000 permutations of the 7 and of the 35. The limits are those of the fold alone: no signature, no network.
A ballot on the wire holds 45 judgements of 9 classes at most, so that the round of 35 is larger than any can be: the row
of 50 members, the most there are, is of as much as a verdict can rest on, held to the same limit.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from protocol.round.classes import AnswerClass
from protocol.round.fold import Contributions, Voice, fold, verdict_hash
from protocol.round.messages import MAX_JUDGED_CLASSES, MAX_JUDGEMENTS, FoldParameters, Judgement
from protocol.wire.ids import Hash
from protocol.wire.limits import MAX_COMMITTEE

ROUND = Hash(b"b" * 32)
LIMITS_MS = {7: 0.2, 35: 2.0, 500: 40.0}
PERMUTATIONS = 1000
REPEATS = {7: 400, 35: 60, 500: 15}


def drawn(members: int, arm: str, seed: int = 1, most: bool = False) -> Contributions:
    """A round of `members` different answers; 3N comparisons of each judge, or of all together from 500 members on; or of `most`
    judgements that ballots may hold, of as many answers."""
    chance = Random(seed)
    answers = MAX_JUDGED_CLASSES if most else members
    classes = tuple(AnswerClass(str(i), str(i), (i,), 1_000_000) for i in range(answers))
    table = {seat: Voice(chance.randint(1, 3000), chance.randint(-500, 3000), seat.to_bytes(2, "big")) for seat in range(members)}
    strength = [chance.gauss(0, 0.7) for _ in range(answers)]
    each = MAX_JUDGEMENTS if most else 3 if members >= 500 else 3 * members
    ballots = {}
    for judge in range(members):
        pairs: dict[tuple[int, int], int] = {}
        while len(pairs) < min(each, answers * (answers - 1)):
            a, b = chance.sample(range(answers), 2)
            pairs[a, b] = round(max(-8.0, min(8.0, strength[a] - strength[b] + chance.gauss(0, 1))) * 1000)
        ballots[judge] = tuple(Judgement(a, b, odds) for (a, b), odds in pairs.items())
    return Contributions(ROUND, "rank", FoldParameters(arm="rank" if arm == "rank" else "fuse"), table, classes, ballots)


def timed(given: Contributions, repeats: int) -> float:
    """Median milliseconds of one fold."""
    taken = []
    for _ in range(repeats):
        begun = perf_counter()
        fold(given)
        taken.append((perf_counter() - begun) * 1000)
    return median(taken)


def permuted(given: Contributions, count: int) -> int:
    """How many different results `count` permutations of the contributions give: 1 is right."""
    chance = Random(2)
    found = set()
    for _ in range(count):
        judges = chance.sample(sorted(given.ballots), len(given.ballots))
        ballots = {judge: tuple(chance.sample(given.ballots[judge], len(given.ballots[judge]))) for judge in judges}
        table = {seat: given.voices[seat] for seat in chance.sample(sorted(given.voices), len(given.voices))}
        found.add(verdict_hash(fold(Contributions(given.round, given.strategy, given.fold, table, given.classes, ballots))))
    return len(found)


@click.command(help=__doc__)
@click.option("--json", "json_", is_flag=True, help="Print every figure.")
@click.option("--check", is_flag=True, help="Exit 1 if a limit is missed.")
@click.option("--permutations", default=PERMUTATIONS, type=click.IntRange(2), help="Orders tried for each round.")
def main(json_: bool, check: bool, permutations: int) -> None:
    rows: list[dict[str, Any]] = []
    rounds = [(members, limit, False) for members, limit in LIMITS_MS.items()]
    for members, limit, most in (*rounds, (MAX_COMMITTEE, LIMITS_MS[35], True)):
        for arm in ("fuse", "rank"):
            given = drawn(members, arm, most=most)
            fold(given)
            tries = permutations if members < 500 and not most else max(2, permutations // 100)
            milliseconds = timed(given, REPEATS.get(members, 60))
            rows.append(
                {
                    "members": members,
                    "answers": len(given.classes),
                    "comparisons": sum(map(len, given.ballots.values())),
                    "arm": arm,
                    "ms": round(milliseconds, 3),
                    "limit_ms": limit,
                    "ratio": round(milliseconds / limit, 2),
                    "permutations": tries,
                    "results": permuted(given, tries),
                }
            )
            if not json_:
                click.echo("  ".join(f"{name} {value}" for name, value in rows[-1].items()))
    short = shortfalls(rows)
    if json_:
        click.echo(json.dumps({"rows": rows, "short": short}, indent=1))
    for line in short:
        click.echo(line, err=True)
    if check and short:
        sys.exit(1)


def shortfalls(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each figure that misses its limit."""
    slow = [f"{r['arm']} at {r['members']}: {r['ms']} ms where {r['limit_ms']} are allowed" for r in rows if r["ratio"] > 1]
    return slow + [f"{r['arm']} at {r['members']}: {r['results']} different results" for r in rows if r["results"] != 1]


if __name__ == "__main__":
    main()
