"""What is remembered of the time to the first token."""

import pytest

from daemon.first_token import FORGET_SECONDS, LEAST_SAMPLES, MAX_PEERS, FirstTokens
from protocol.wire.ids import PeerId

A, B = PeerId("a"), PeerId("b")


def test_the_mean_follows_the_newest_and_forgets() -> None:
    seen = FirstTokens()
    assert seen.of(A, 0.0) is None
    seen.note(A, 1.0, 0.0)
    assert seen.of(A, 1.0) == 1.0
    seen.note(A, 2.0, 1.0)
    assert seen.of(A, 1.0) == pytest.approx(1.3)
    assert seen.of(B, 1.0) is None
    assert seen.of(A, 1.0 + FORGET_SECONDS) is None
    seen.note(A, 0.2, 1.0 + FORGET_SECONDS)
    assert seen.of(A, 1.0 + FORGET_SECONDS) == 0.2, "what is forgotten does not weigh"


def test_the_slow_end_needs_enough_calls_and_leaves_out_the_slowest_few() -> None:
    seen = FirstTokens()
    for place in range(LEAST_SAMPLES - 1):
        seen.note(A, float(place), 0.0)
    assert seen.p95() is None
    seen = FirstTokens()
    for place in range(100):
        seen.note(B, float(place), 0.0)
    assert seen.p95() == 94.0
    for _ in range(100):
        seen.note(A, 0.5, 0.0)
    assert seen.p95() == 0.5, "only the latest hundred count"


def test_strangers_cost_bounded_memory() -> None:
    seen = FirstTokens()
    for place in range(MAX_PEERS + 5):
        seen.note(PeerId(str(place)), 1.0, 0.0)
    assert seen.of(PeerId("4"), 0.0) is None
    assert seen.of(PeerId("5"), 0.0) == 1.0
