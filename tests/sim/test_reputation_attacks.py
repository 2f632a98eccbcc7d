"""Whitewashing, praise, slander and laundering hold to their figures; `make sim-reputation` runs more seeds at full length."""

import pytest

from tests.sim.reputation_attacks import TARGETS, Figures, launder, praise, slander, whitewash

pytestmark = pytest.mark.slow


def hold(figures: Figures) -> None:
    missed = {name: value for name, value in figures.items() if name in TARGETS and value > TARGETS[name][0]}
    assert missed == {}


def test_a_new_key_never_pays() -> None:
    hold(whitewash(1, rounds=260, every=20))


def test_a_ring_that_praises_itself_gains_nothing() -> None:
    hold(praise(1, "praise and slander", rounds=240))


def test_slander_takes_little() -> None:
    hold(slander(1, "blatant", rounds=300))


def test_credit_of_one_skill_buys_little_in_another() -> None:
    hold(launder(1))


def test_a_seed_says_the_same_again() -> None:
    assert launder(3, rounds=30) == launder(3, rounds=30)
