"""`make sim-mesh`: every attack on finding over many seeds, its worst and mean figures, and whether they hold."""

import argparse
import gc
import json
import sys
from functools import partial
from multiprocessing import Pool
from statistics import mean

from tests.sim.dht_attacks import PEERS, TARGETS, Figures, play


def rows_of(figures: dict[int, Figures]) -> list[dict[str, object]]:
    """By figure: over all seeds the worst, where it was, the mean, the limit and whether it is kept."""
    rows: list[dict[str, object]] = []
    for figure in next(iter(figures.values())):
        values = {seed: found[figure] for seed, found in figures.items()}
        worst = max(values, key=lambda seed: values[seed])
        limit, of = TARGETS.get(figure, (None, ""))
        held = values[worst] if of == "worst" else mean(values.values())
        row: dict[str, object] = {"figure": figure, "worst": round(values[worst], 3), "seed": worst}
        row |= {"mean": round(mean(values.values()), 3), "limit": limit, "of": of}
        rows.append(row | {"holds": None if limit is None else held <= limit})
    return rows


def main() -> int:
    """Run, print, and exit with 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds, from 1 on")
    parser.add_argument("--seed", type=int, help="this seed alone")
    parser.add_argument("--only", default="", help="one attack, such as D2")
    parser.add_argument("--peers", type=int, default=PEERS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    gc.set_threshold(200_000, 20, 100)
    seeds = [options.seed] if options.seed is not None else list(range(1, options.seeds + 1))
    found: dict[int, Figures] = {}
    with Pool(min(options.processes, len(seeds))) as pool:
        for seed, figures in zip(seeds, pool.imap(partial(play, peers=options.peers, only=options.only), seeds), strict=True):
            found[seed] = figures
            print(f"seed {seed}: {json.dumps(figures)}", file=sys.stderr, flush=True)
    rows = rows_of(found)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{'':46}{'worst':>10} {'(seed)':>7} {'mean':>10}  limit")
        for row in rows:
            limit = "-" if row["limit"] is None else f"{row['limit']:g} ({row['of']}) {'ok' if row['holds'] else 'SHORT'}"
            print(f"{row['figure']!s:46}{row['worst']:>10} {row['seed']:>7} {row['mean']:>10}  {limit}")
    return 0 if all(row["holds"] is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
