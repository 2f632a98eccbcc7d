"""What a run of the RPC benchmark says: medians, ratios, a table, JSON, and which figures are short. Measures nothing."""

import json
import os
from dataclasses import dataclass
from statistics import median
from typing import Any

from bench.loads import Load
from bench.rivals import RIVALS
from bench.side import Sample

OURS = "swarmd"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All samples of one load, by side and in the order of the rounds."""

    load: Load
    samples: dict[str, list[Sample]]

    def rate(self, side: str) -> float:
        """Median units per second."""
        return median(sample.rate for sample in self.samples[side])

    def cpu(self, side: str) -> tuple[float, float]:
        """Median CPU microseconds per unit: caller, server. Steadier than the rate while others use the machine."""
        taken = self.samples[side]
        return median(sample.caller_cpu for sample in taken), median(sample.server_cpu for sample in taken)

    def ratio(self, rival: str) -> float:
        """Our median rate to the rival's."""
        return self.rate(OURS) / self.rate(rival)

    def spread(self, rival: str) -> tuple[float, float]:
        """Least and greatest ratio of one round's two rates."""
        pairs = zip(self.samples[OURS], self.samples[rival], strict=True)
        ratios = [ours.rate / theirs.rate for ours, theirs in pairs]
        return min(ratios), max(ratios)


@dataclass(frozen=True, slots=True)
class Report:
    """One run."""

    rounds: int
    seconds: float
    rivals: tuple[str, ...]
    comparisons: list[Comparison]
    failures: dict[str, list[str]]
    """Why a rival had to be started anew, by side."""


def as_table(report: Report) -> str:
    """The table, one part per rival."""
    lines = [
        f"Two processes a side, TCP loopback, medians of {report.rounds} alternating rounds of {report.seconds:g} s; "
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}. CPU: microseconds per unit, caller / server."
    ]
    for rival in report.rivals:
        rows = _rows(report, rival)
        header = ("", "unit", "swarmd", rival, "ratio", "rounds", "target", "CPU swarmd", f"CPU {rival}")
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines += ["", f"swarmd against {RIVALS[rival].title}"]
        for row in [header, *rows]:
            sized = enumerate(zip(row, widths, strict=True))
            cells = (cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in sized)
            lines.append("  ".join(cells))
        cut = sum(sample.cut for comparison in report.comparisons for sample in comparison.samples.get(rival, ()))
        if cut:
            lines.append(f"{rival} ended {cut} item streams early without an error; the items that came are counted")
        lines += [f"{rival} was started anew: {failure}" for failure in report.failures[rival]]
    return "\n".join(lines)


def _rows(report: Report, rival: str) -> list[tuple[str, ...]]:
    rows = []
    for comparison in report.comparisons:
        load = comparison.load
        if rival not in comparison.samples:
            continue
        ratio, (least, most) = comparison.ratio(rival), comparison.spread(rival)
        target = load.targets.get(rival)
        verdict = "-" if target is None else f">= {target:g} {'ok' if ratio >= target else 'SHORT'}"
        rates = [f"{comparison.rate(side):,.0f}" for side in (OURS, rival)]
        cpu = ["{:.0f} / {:.0f}".format(*comparison.cpu(side)) for side in (OURS, rival)]
        rows.append((load.title, load.unit, *rates, f"{ratio:.2f}", f"{least:.2f} to {most:.2f}", verdict, *cpu))
    return rows


def as_json(report: Report) -> str:
    """Every sample and what was made of it."""
    loads: list[dict[str, Any]] = [
        {
            "load": comparison.load.name,
            "title": comparison.load.title,
            "unit": comparison.load.unit,
            "sides": {
                side: {
                    "rate": comparison.rate(side),
                    "rates": [sample.rate for sample in samples],
                    "streams_cut": sum(sample.cut for sample in samples),
                    "cpu_us_per_unit": dict(zip(("caller", "server"), comparison.cpu(side), strict=True)),
                }
                for side, samples in comparison.samples.items()
            },
            "ratios": {
                rival: {
                    "ratio": comparison.ratio(rival),
                    "rounds": comparison.spread(rival),
                    "target": comparison.load.targets.get(rival),
                }
                for rival in report.rivals
                if rival in comparison.samples
            },
        }
        for comparison in report.comparisons
    ]
    run = {"rounds": report.rounds, "seconds": report.seconds, "cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}
    return json.dumps({**run, "loads": loads, "failures": report.failures}, indent=1)


def shortfalls(report: Report) -> list[str]:
    """One line for each ratio that is short of its target."""
    return [
        f"short: {comparison.load.title}: {comparison.ratio(rival):.2f} times {rival}, target {target:g}"
        for comparison in report.comparisons
        for rival, target in comparison.load.targets.items()
        if rival in comparison.samples and comparison.ratio(rival) < target
    ]
