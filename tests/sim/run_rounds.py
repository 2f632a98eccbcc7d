"""`make sim-rounds`: every attack on a round over many seeds, its mean and worst figures, and whether they hold."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from math import comb, sqrt
from multiprocessing import Pool
from statistics import mean

from protocol.wire import envelope
from tests.sim.round_attacks import ATTACKS, COMMITTEES, ROUNDS_PER_SEED, SHARES, Figures

WORST = {
    "R1 aborted rounds without a verdict": 0.0,
    "R1 aborters that won": 0.0,
    "R1 seconds to close": 5.5,
    "R2 copies accepted": 0.0,
    "R2 copies that outvoted originals": 0.0,
    "R4 places the target moved": 1.0,
    "R5 newcomers' weight": 0.1,
    "R6 seconds to proof": 5.0,
    "R6 unproved": 0.0,
    "R6 verdicts given": 0.0,
    "R8 members left out": 0.0,
    "R8 counted 3 s after the end": 0.0,
    "R8 late ones that were not told": 0.0,
    "R9 verdicts without a quorum": 0.0,
    "R9 wrong with one": 0.0,
}
"""The most that any seed may show."""

SEATS = {f"R7 first seats of weight {tickets} ({place})": tickets for tickets, place in ((500, 0), (1000, 1), (20, 10))}
ALL_TICKETS = 500 + 9 * 1000 + 20


def expected_right(skill: float, size: int, share: float) -> float:
    """The chance that the honest who judge rightly outnumber all others, a tie counting half."""
    honest = size - int(share * size)
    terms = [comb(honest, k) * skill**k * (1 - skill) ** (honest - k) for k in range(honest + 1)]
    return sum(term for k, term in enumerate(terms) if 2 * k > size) + sum(t for k, t in enumerate(terms) if 2 * k == size) / 2


def targets(trials: int) -> dict[str, tuple[float, float]]:
    """Figures whose mean must lie within bounds. Chance alone moves a mean: three deviations are allowed on top."""
    found: dict[str, tuple[float, float]] = {}
    for skill, size in COMMITTEES:
        for name, share in SHARES.items():
            right = expected_right(skill, size, share)
            slack = 0.01 + 3 * sqrt(right * (1 - right) / (trials * ROUNDS_PER_SEED))
            found[f"R3 right at p={skill} k={size} s={name}%"] = (right - slack, right + slack)
    for name, tickets in SEATS.items():
        share = tickets / ALL_TICKETS
        slack = 3 * sqrt(share * (1 - share) / (100 * trials))
        found[name] = (share - slack, share + slack)
    return found


def run(job: tuple[str, int]) -> Figures:
    """One attack with one seed."""
    name, seed = job
    return ATTACKS[name](seed)


def once_per_signature() -> None:
    """`verify` and `public_key_of` are pure: members in one process that check one signature need it computed once."""
    envelope.verify = cache(envelope.verify)
    envelope.public_key_of = cache(envelope.public_key_of)


def rows_of(found: Mapping[str, Mapping[int, Figures]]) -> list[dict[str, object]]:
    """By figure: mean, worst, the seed of it, the bounds, and whether they hold."""
    rows: list[dict[str, object]] = []
    for by_seed in found.values():
        bounds = targets(len(by_seed))
        for figure in next(iter(by_seed.values())):
            values = {seed: given[figure] for seed, given in by_seed.items()}
            worst = max(values, key=lambda seed: values[seed])
            average = mean(values.values())
            row: dict[str, object] = {"figure": figure, "mean": round(average, 4), "worst": round(values[worst], 3)}
            row["seed"] = worst
            if figure in bounds:
                low, high = bounds[figure]
                row |= {"target": f"mean {low:.4f} to {high:.4f}", "holds": low <= average <= high}
            elif figure in WORST:
                row |= {"target": f"never above {WORST[figure]:g}", "holds": values[worst] <= WORST[figure] + 1e-9}
            else:
                row |= {"target": "", "holds": None}
            rows.append(row)
    return rows + _rush(rows)


def _rush(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    means = {row["figure"]: row["mean"] for row in rows}
    if "R5 right without" not in means:
        return []
    lost = round(float(str(means["R5 right without"])) - float(str(means["R5 right in a rush"])), 4)
    row = {"figure": "R5 accuracy lost", "mean": lost, "worst": lost, "seed": "all"}
    return [row | {"target": "at most 0.01", "holds": lost <= 0.01}]


def main() -> int:
    """Run, print, and exit with 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds, from 1 on")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--only", default="", help="attacks whose name contains this, such as R3")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = [name for name in ATTACKS if options.only in name]
    seeds = [options.seed] if options.seed is not None else list(range(1, options.seeds + 1))
    jobs = [(name, seed) for name in names for seed in seeds]
    with Pool(options.processes, once_per_signature, maxtasksperchild=200) as pool:
        figures = pool.map(run, jobs, chunksize=10)
    found: dict[str, dict[int, Figures]] = {}
    for (name, seed), given in zip(jobs, figures, strict=True):
        found.setdefault(name, {})[seed] = given
    rows = rows_of(found)
    missed = [row for row in rows if row["holds"] is False]
    if options.json:
        print(json.dumps({"seeds": seeds, "rows": rows}, indent=2))
    else:
        print(f"{len(seeds)} seeds: {seeds[0]} to {seeds[-1]}")
        for row in rows:
            held = {True: "held", False: "MISSED", None: ""}[row["holds"]]  # type: ignore[index]
            print(f"{row['figure']:<40}{row['mean']:>9}{row['worst']:>9} (seed {row['seed']})  {row['target']} {held}")
    for row in missed:
        print(f"{row['figure']}: mean {row['mean']}, worst {row['worst']} (seed {row['seed']}); {row['target']}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
