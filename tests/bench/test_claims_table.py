"""Which figures of `bench.claims` miss their targets: each by itself, on whatever machine."""

from typing import Any

import pytest

from bench.claims_table import short_of

GOOD: dict[str, Any] = {
    "merge_share": 0.8,
    "in_full_share": 0.8,
    "score_us": 49.0,
    "stall_ms": 20.0,
    "stall_p99_ms": 20.0,
    "bulk": {"stall_ms": 20.0, "stall_p99_ms": 20.0},
    "fresh": {"stall_ms": 20.0, "stall_p99_ms": 20.0},
    "sync": {n: {"ratio": 1.3, "seconds": 10.0} for n in ("10", "1000", "10000")},
    "useful_at": {"0": 0.95, "50": 0.95},
    "useful_at_bytes": {"0": 0.5, "50": 0.5},
    "flood": {"flooded_p99_s": 5.0},
}


def test_what_reaches_its_target_is_not_named() -> None:
    assert short_of(GOOD) == []


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [
        (("merge_share",), 0.79, "merged 79% of the bare signature rate, target 80%"),
        (("in_full_share",), 0.44, "merged 44% of the bare signature rate of claims in their envelopes, target 80%"),
        (("score_us",), 50.0, "a score takes 50.0 us, target 50"),
        (("useful_at", "0"), 1.0, "a fresh node that probed 0 peers is within 5% only once it has every claim"),
        (("useful_at_bytes", "50"), 0.6, "a fresh node that probed 50 peers is within 5% only at 60% of all bytes, target 50%"),
        (("bulk", "stall_ms"), 202.0, "the loop was 202.0 ms late at worst while a node pulled 10,000 claims in checkpoints"),
        (("bulk", "stall_p99_ms"), 20.1, "the loop was 20.1 ms late at p99 while a node pulled 10,000 claims in checkpoints"),
        (("fresh", "stall_ms"), 21.0, "the loop was 21.0 ms late at worst while a fresh node pulled all, target 20"),
        (("fresh", "stall_p99_ms"), 21.0, "the loop was 21.0 ms late at p99 while a fresh node pulled all, target 20"),
        (("stall_ms",), 20.1, "the loop was 20.1 ms late at worst, target 20"),
        (("stall_p99_ms",), 20.1, "the loop was 20.1 ms late at the 99th percentile, target 20"),
        (("sync", "10000", "seconds"), 10.1, "10,000 claims took 10.1 s, target 10"),
        (("sync", "10", "ratio"), 1.31, "10 missing claims took 1.31 times their bytes, target 1.3"),
        (("flood", "flooded_p99_s"), 5.1, "an honest sync under a flood took 5.1 s at p99, target 5"),
    ],
)
def test_each_figure_short_of_its_target_is_named(place: tuple[str, ...], value: float, sentence: str) -> None:
    def changed(found: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
        return found | {path[0]: changed(found[path[0]], path[1:]) if path[1:] else value}

    (named,) = short_of(changed(GOOD, place))
    assert named.startswith(sentence)
