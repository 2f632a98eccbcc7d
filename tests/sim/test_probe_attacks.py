"""Attacks on probes, each with its figure (docs/security.md, L5 and L6), over fixed seeds."""

from random import Random

import pytest

from tests.sim.probe_attacks import CANNERS, Canner, mean_shares, requests_until_caught


@pytest.mark.parametrize("canner", CANNERS[:2], ids=lambda canner: canner.name)
def test_l5_canned_answers_are_caught_by_a_twentieth_of_gold(canner: Canner) -> None:
    """1 - 0.95^60 is 95.4% of seeds; 120 of them are within 4 points of that in 98 of 100 cases."""
    spent = [requests_until_caught(canner, Random(seed)) for seed in range(120)]
    assert sum(number <= 60 for number in spent) / 120 >= 0.91
    assert sum(number <= 91 for number in spent) / 120 >= 0.95


def test_l6_lazy_judges_end_with_a_tenth_of_the_weight_at_most() -> None:
    assert mean_shares([0.75] * 4, 3, 30, 100).lazy <= 0.10


def test_l6_honest_judges_that_are_hardly_better_than_a_coin_keep_most_of_the_weight() -> None:
    assert mean_shares([0.6] * 4, 3, 30, 100).honest >= 0.70


def test_l6_lazy_judges_lose_weight_with_every_round() -> None:
    shares = [mean_shares([0.75] * 4, 3, rounds, 60).lazy for rounds in (1, 5, 30)]
    assert shares == sorted(shares, reverse=True)
