"""`make sim-reputation`: every attack on reputation over many seeds, its worst and mean figures, and whether they hold."""

import argparse
import json
import sys
from collections.abc import Sequence
from multiprocessing import Pool
from statistics import mean

from tests.sim.reputation_attacks import TARGETS, Figures, attacks


def run(job: tuple[str, int, float]) -> Figures:
    """One attack with one seed."""
    name, seed, part = job
    return attacks(part)[name](seed)


def rows_of(names: Sequence[str], figures: dict[tuple[str, int], Figures]) -> list[dict[str, object]]:
    """By attack and figure: over all seeds the worst, where it was, the mean, the target and whether it is met."""
    rows: list[dict[str, object]] = []
    for attack in names:
        seeds = {seed: found for (name, seed), found in figures.items() if name == attack}
        for figure in next(iter(seeds.values())):
            values = {seed: found[figure] for seed, found in seeds.items()}
            worst = max(values, key=lambda seed: values[seed])
            limit, of = TARGETS.get(figure, (None, ""))
            row: dict[str, object] = {"attack": attack, "figure": figure, "worst": round(values[worst], 3), "seed": worst}
            row |= {"mean": round(mean(values.values()), 3), "limit": limit, "of": of}
            held = values[worst] if of == "worst" else mean(values.values())
            rows.append(row | {"holds": None if limit is None else held <= limit})
    return rows


def main() -> int:
    """Run, print, and exit with 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 1 on")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--part", type=float, default=1.0, help="this part of the full length")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = [name for name in attacks() if options.only in name]
    seeds = [options.seed] if options.seed is not None else list(range(1, options.seeds + 1))
    jobs = [(name, seed, options.part) for seed in seeds for name in names]
    with Pool(options.processes) as pool:
        found = pool.map(run, jobs, chunksize=1)
    rows = rows_of(names, {(name, seed): figures for (name, seed, _), figures in zip(jobs, found, strict=True)})
    missed = [row for row in rows if row["holds"] is False]
    if options.json:
        print(json.dumps({"seeds": seeds, "part": options.part, "rows": rows}, indent=2))
    else:
        print(f"{len(seeds)} seeds: {seeds[0]} to {seeds[-1]}; 28 honest members, 12 attackers where a ring attacks")
        print(f"{'attack':<30}{'figure':<22}{'worst':>9}{'(seed)':>8}{'mean':>9}   target")
        for row in rows:
            target = "" if row["limit"] is None else f"<= {row['limit']:g} ({row['of']}) {'held' if row['holds'] else 'MISSED'}"
            print(f"{row['attack']:<30}{row['figure']:<22}{row['worst']:>9}{row['seed']:>8}{row['mean']:>9}   {target}")
    for row in missed:
        where = f"worst {row['worst']} (seed {row['seed']}), mean {row['mean']}"
        print(f"missed: {row['attack']}, {row['figure']}: {where}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
