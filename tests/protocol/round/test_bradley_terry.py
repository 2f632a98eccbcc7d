"""Strengths: against a float fit of the same likelihood, and at its optimum however far apart the means are."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.round.bradley_terry import RIDGE_JUDGEMENTS, SETTLED_MILLI, Matches, strengths_milli
from protocol.round.calibration import confidence_milli, gain_milli
from tests.sim.round_network import seeded

Wins = dict[tuple[int, int], tuple[int, int]]


def by_floats(means: list[int], wins: Wins) -> list[float]:
    """Gradient ascent on the same sum, in floats."""
    count, ridge = len(means), RIDGE_JUDGEMENTS
    theta = [0.0] * count
    for _ in range(4000):
        slope = [ridge * (mean / 1000 - value) for mean, value in zip(means, theta, strict=True)]
        for (a, b), (won, weight) in wins.items():
            residue = (won - weight / (1 + math.exp(theta[b] - theta[a]))) / 1000
            slope[a] += residue
            slope[b] -= residue
        most = max(sum(w for pair, (_, w) in wins.items() if place in pair) for place in range(count)) / 1000
        theta = [value + change / (0.5 * most + ridge) for value, change in zip(theta, slope, strict=True)]
    return theta


def fitted(means: list[int], wins: Wins, judgement: float = 1000.0) -> tuple[int, ...]:
    """Strengths where of each pair the first one won so much of a weight."""
    first, second = zip(*wins, strict=True)
    lead = [0.0] * len(means)
    for (a, b), (won, weight) in wins.items():
        lead[a] += 1_000_000 * won - 500_000 * weight
        lead[b] -= 1_000_000 * won - 500_000 * weight
    return strengths_milli(means, Matches(first, second, [float(weight) for _, weight in wins.values()], lead), judgement)


@st.composite
def any_wins(draw: st.DrawFn) -> tuple[list[int], Wins]:
    count = draw(st.integers(2, 7))
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    chosen = draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True))
    return draw(st.lists(st.integers(-8000, 8000), min_size=count, max_size=count)), {
        pair: (won, won + lost) for pair in chosen for won, lost in [draw(st.tuples(st.integers(0, 9000), st.integers(1, 9000)))]
    }


@given(any_wins(), st.integers(1, 4000))
def test_strengths_are_finite_and_hang_on_ratios_of_weights(given_: tuple[list[int], Wins], times: int) -> None:
    means, wins = given_
    strengths = fitted(means, wins)
    assert all(abs(value) <= 10_000 for value in strengths)
    scaled = fitted(means, {pair: (won * times, weight * times) for pair, (won, weight) in wins.items()}, 1000.0 * times)
    assert max(abs(ours - theirs) for ours, theirs in zip(strengths, scaled, strict=True)) <= 2


def step_left(means: list[int], wins: Wins, strengths: tuple[int, ...], place: int) -> float:
    """How many milli-nats a Newton step along one coordinate would still go."""
    slope, bend = RIDGE_JUDGEMENTS * (means[place] - strengths[place]) / 1000, RIDGE_JUDGEMENTS
    for (a, b), (won, weight) in wins.items():
        if place in (a, b):
            chance = 1 / (1 + math.exp((strengths[b] - strengths[a]) / 1000))
            slope += (won - weight * chance) / 1000 * (1 if place == a else -1)
            bend += weight * chance * (1 - chance) / 1000
    return 1000 * slope / bend


@given(any_wins())
def test_nobody_is_left_far_from_the_optimum(given_: tuple[list[int], Wins]) -> None:
    means, wins = given_
    strengths = fitted(means, wins)
    assert max(abs(step_left(means, wins, strengths, place)) for place in range(len(means))) < 60


@given(any_wins())
def test_who_met_nobody_stays_where_it_was_expected(given_: tuple[list[int], Wins]) -> None:
    means, wins = given_
    *_, alone = fitted([*means, 77], wins)
    assert abs(alone - 77) <= SETTLED_MILLI


@pytest.mark.parametrize("seed", range(12))
def test_strengths_are_those_of_a_float_fit(seed: int) -> None:
    chance = seeded(seed)
    wins = {(a, b): (chance.randint(0, 5000), 5000) for a in range(6) for b in range(a + 1, 6) if chance.random() < 0.8}
    means = [chance.randint(-1500, 1500) for _ in range(6)] if seed % 2 else [0] * 6
    for ours, theirs in zip(fitted(means, wins), by_floats(means, wins), strict=True):
        assert ours == pytest.approx(1000 * theirs, abs=15)


def test_the_undefeated_stays_finite_and_a_cycle_is_level() -> None:
    assert 800 < fitted([0] * 3, {(0, 1): (5000, 5000), (0, 2): (5000, 5000), (1, 2): (2500, 5000)})[0] < 8000
    assert max(map(abs, fitted([0] * 3, {(0, 1): (3000, 3000), (1, 2): (3000, 3000), (2, 0): (3000, 3000)}))) <= 5


@pytest.mark.parametrize("mean", [-8000, 8000])
def test_the_furthest_means_a_header_can_state_stay_within_the_table(mean: int) -> None:
    wins = {(a, b): (50_000, 50_000) for a in range(50) for b in range(a + 1, 50)}
    strengths = fitted([mean] * 50, wins)
    assert list(strengths) == sorted(strengths, reverse=True)
    assert fitted([mean, -mean], {(0, 1): (0, 50_000)}) != fitted([mean, -mean], {(0, 1): (50_000, 50_000)})


def test_the_gain_is_the_one_whose_confidence_was_right() -> None:
    assert (gain_milli([], "fuse"), gain_milli([], "rank")) == (1000, 1400)
    too_sure = [((2000,), place % 10 < 6) for place in range(50)]
    assert gain_milli(too_sure, "fuse") < 700, "6 of 10 right where 0.88 was claimed"
    assert abs(confidence_milli((2000,), gain_milli(too_sure, "fuse")) - 600) < 180
    assert gain_milli([((2000,), place % 100 < 98) for place in range(200)], "fuse") >= 1700


@pytest.mark.parametrize("count", [50, 60])
def test_some_of_whom_most_have_met_and_many_of_whom_few_have_are_fitted_alike(count: int) -> None:
    chance = seeded(3)
    wins = {(a, a + step): (chance.randint(0, 5000), 5000) for step in (1, 2, 7) for a in range(count - step)}
    means = [*(chance.randint(-500, 500) for _ in range(count - 1)), 77]
    wins = {pair: row for pair, row in wins.items() if count - 1 not in pair}
    ours, theirs = fitted(means, dict(sorted(wins.items()))), by_floats(means, wins)
    assert abs(ours[-1] - 77) <= SETTLED_MILLI
    assert max(abs(one - 1000 * other) for one, other in zip(ours, theirs, strict=True)) < 15
