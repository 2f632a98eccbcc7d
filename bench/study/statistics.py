"""Paired differences and their intervals. Knows no models and no rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean

Outcomes = Sequence[Sequence[float]]
"""By run, then by question in the same order: 0 to 1."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Points (hundredths) by which one arm is above another, with the 95% interval, and each run's own difference."""

    points: float
    low: float
    high: float
    runs: tuple[float, ...]


def mean(outcomes: Outcomes) -> float:
    """Over all runs and questions."""
    return fmean(fmean(run) for run in outcomes)


def difference(arm: Outcomes, other: Outcomes, seed: int, resamples: int) -> Difference:
    """`arm` minus `other`; percentile bootstrap over questions, each drawn with the outcomes of all runs."""
    by_run = [[a - b for a, b in zip(ours, theirs, strict=True)] for ours, theirs in zip(arm, other, strict=True)]
    gaps = [100 * fmean(column) for column in zip(*by_run, strict=True)]
    rng = Random(seed)
    means = sorted(sum(rng.choices(gaps, k=len(gaps))) / len(gaps) for _ in range(resamples))
    cut = resamples * 25 // 1000
    return Difference(fmean(gaps), means[cut], means[-1 - cut], tuple(100 * fmean(run) for run in by_run))
