"""Confidence against truth: how often what was said to be right with a chance was right. Decides nothing."""

from collections.abc import Sequence
from statistics import mean

BINS = 10

Confidences = Sequence[tuple[int, bool]]
"""Thousandths of probability that were said, and whether it was right."""


def table(confidences: Confidences) -> list[dict[str, float]]:
    """By tenth of what was said: the mean of it and the share that was right, in percent, and of how many."""
    bins: dict[int, list[tuple[int, bool]]] = {}
    for confidence, right in confidences:
        bins.setdefault(min(BINS - 1, confidence * BINS // 1000), []).append((confidence, right))
    return [
        {
            "said": round(mean(confidence for confidence, _ in rows) / 10, 1),
            "right": round(100 * mean(right for _, right in rows), 1),
            "count": len(rows),
        }
        for _, rows in sorted(bins.items())
    ]


def error(rows: Sequence[dict[str, float]]) -> float:
    """Expected calibration error in points: what was said against what was right, weighed by how many fall into each tenth."""
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["said"] - row["right"]) for row in rows) / max(1, total)
