"""`python -m tests.natlab`: the matrix of NAT pairs with real daemons. Changes nothing outside its namespaces."""

import argparse
import itertools
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

from tests.natlab.commands import add_skip, begin
from tests.natlab.matrix import Cell, run_cell
from tests.natlab.routers import TYPES
from tests.natlab.topology import Lab

QUICK = (
    ("open", "open"), ("open", "sym"), ("full", "sym"), ("addr", "portnp"), ("port", "port"), ("port", "portnp"),
    ("port", "sym"), ("portnp", "cgn"), ("sym", "sym"), ("sym", "cgn"), ("cgn", "udpblk"), ("sym", "udpblk"),
)  # fmt: skip
"""Twelve pairs: every type, and every way to a path."""

MEDIAN_TARGET_MS = 500.0


def main() -> int:
    options = _options()
    begin(options)
    pairs = pairs_of(options)
    began, cells = time.monotonic(), []
    with Lab(options.rtt / 1000, options.loss / 100, resets=options.resets) as lab:
        lab.log_level = "debug" if options.keep else "info"
        for left, right in pairs:
            extra = ["--set", "nat.punch=false"] if options.relayed else []
            kept = options.keep / f"{left}-{right}" if options.keep else None
            patience = 0.0 if options.relayed else options.patience
            cell = lab.undisturbed(f"{left}-{right}", partial(run_cell, lab, left, right, patience, extra, kept))
            cells.append(cell)
            print(json.dumps(cell.shown()) if options.json else line(cell), flush=True)
    summary = summarise(cells, time.monotonic() - began)
    if options.json:
        print(json.dumps(summary))
    else:
        print(table(cells))
        print(sentence(summary))
    if options.check:
        failures = short_of_target(summary, len(pairs))
        print("\n".join(failures), file=sys.stderr, end="\n" if failures else "")
        return 1 if failures else 0
    return 0


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Which pairs, how far apart, and how the outcome is shown."""
    parser.add_argument("--quick", action="store_true", help="twelve pairs instead of 36")
    parser.add_argument("--pairs", help="only these, such as port-sym,open-open")
    parser.add_argument("--rtt", type=float, default=40.0, help="round trip over the backbone, milliseconds (40)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_skip(parser)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="natlab", description=__doc__)
    add_pair_options(parser)
    parser.add_argument("--relayed", action="store_true", help="with hole punching off: who serves over a relay")
    parser.add_argument("--loss", type=float, default=0.0, help="share of frames lost, percent (0)")
    parser.add_argument("--resets", action="store_true", help="routers answer unsolicited SYNs by RST")
    parser.add_argument("--patience", type=float, default=12.0, help="seconds that a direct path may take (12)")
    parser.add_argument("--keep", type=Path, help="have the daemons log each dial, and copy that to this folder")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a figure misses its target")
    return parser.parse_args()


def pairs_of(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The pairs that the options ask for."""
    if options.pairs:
        return [(pair.partition("-")[0], pair.partition("-")[2]) for pair in options.pairs.split(",")]
    return list(QUICK) if options.quick else list(itertools.combinations_with_replacement(TYPES, 2))


def line(cell: Cell) -> str:
    """One pair, for people."""
    served = f"served over {cell.served_over}" if cell.served else "NOT SERVED"
    took = "" if cell.relayed_ms is None else f" after {cell.relayed_ms:.0f} ms"
    return f"{cell.left:>7} {cell.right:<7} {cell.kind or '-':<8} {cell.transport:<4}{took:<15} {served}  {cell.note}"


def table(cells: list[Cell]) -> str:
    """The matrix: T or Q (punched TCP, QUIC), D (plain dial), M (port mapping) or R (relayed), and ms from relayed to direct."""
    by_pair = {(cell.left, cell.right): cell for cell in cells}
    kinds = [kind for kind in TYPES if any(kind in pair for pair in by_pair)]
    kinds += sorted({kind for pair in by_pair for kind in pair} - set(kinds))
    rows = [f"{'':8}" + "".join(f"{kind:>9}" for kind in kinds)]
    for left in kinds:
        marks = [_mark(by_pair.get((left, right))) for right in kinds]
        rows.append(f"{left:8}" + "".join(f"{mark:>9}" for mark in marks))
    return "\n".join(rows)


def _mark(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if not cell.served:
        return "NONE"
    if not cell.direct:
        return "R"
    letter = "D" if cell.kind == "direct" else "M" if cell.kind == "mapped" else "Q" if cell.transport == "quic" else "T"
    return letter if cell.relayed_ms is None else f"{letter} {cell.relayed_ms:.0f}"


def summarise(cells: list[Cell], seconds: float) -> dict[str, object]:
    """The figures that are promised."""
    upgraded = [cell.relayed_ms for cell in cells if cell.direct and cell.relayed_ms is not None]
    return {
        "pairs": len(cells),
        "direct": sum(cell.direct for cell in cells),
        "served": sum(cell.served for cell in cells),
        "without_service": sum(not cell.served for cell in cells),
        "upgraded": len(upgraded),
        "median_ms": round(statistics.median(upgraded), 1) if upgraded else None,
        "worst_ms": max(upgraded) if upgraded else None,
        "seconds": round(seconds, 1),
    }


def sentence(summary: dict[str, object]) -> str:
    return (
        f"in this lab {summary['direct']} of {summary['pairs']} pairs are direct, {summary['served']} are served, "
        f"{summary['without_service']} are without service; from relayed to direct: median {summary['median_ms']} ms, worst "
        f"{summary['worst_ms']} ms over {summary['upgraded']} upgrades; {summary['seconds']} s in all"
    )


def short_of_target(summary: dict[str, object], pairs: int) -> list[str]:
    """One line for each figure that misses; the two pairs that nothing reaches directly are all that may stay relayed."""
    direct, served, median = summary["direct"], summary["served"], summary["median_ms"]
    allowed = pairs - 2
    failures = []
    if not isinstance(direct, int) or direct < allowed:
        failures.append(f"direct: {direct} of {pairs}, the target is {allowed}")
    if served != pairs:
        failures.append(f"served: {served} of {pairs}, the target is all")
    if median is None or not isinstance(median, float) or median >= MEDIAN_TARGET_MS:
        failures.append(f"median from relayed to direct: {median} ms, the target is below {MEDIAN_TARGET_MS:.0f} ms")
    return failures


if __name__ == "__main__":
    sys.exit(main())
