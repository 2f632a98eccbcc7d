"""Ridge Bradley-Terry in whole numbers: how strong each contender is, from who was preferred to whom. Decides no winner.

Maximises sum of w (y log s(D) + (1-y) log s(-D)) - ridge/2 |theta - mean|^2, D = theta_a - theta_b, by Newton steps along one
coordinate after the other. `mean` is what is expected of a contender before anybody judged.
The sums that enter are exact, and the sweeps go through contenders by number, so no order of input shows.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from operator import mul

from protocol.round.logistic import TABLE_REACH_MILLI, logistic_table

RIDGE_MILLI = 2_000
"""One answer lies some 0.7 nats from what is expected of its author. It keeps the undefeated finite, and says how firmly a
judged answer is drawn to that. Of 0.3, 0.6, 1, 2 and 3, picked on halves of bench/data's judgements by chance, 2 and 3 did best
on the other halves."""

MAX_SWEEPS = 60
"""A complete design settles in 3 to 5; a chain of 500 contenders is still within a few hundredths of a nat after these."""

SETTLED_MILLI = 4
"""A sweep that moves nothing by more is the last: the next one would move by an eighth of it in a complete design."""

_BOUND = TABLE_REACH_MILLI // 2
_SHIFT = 60
_LOW = (1 << _SHIFT) - 1

Pair = tuple[int, int]


def strengths_milli(means: Sequence[int], wins: Mapping[Pair, tuple[int, int]]) -> tuple[int, ...]:
    """Milli-nats, by contender; `means` are what is expected of each, within 8192. `wins[a, b]` is (weight for a, weight of the
    pair), in thousandths of one judgement, the second positive and not less than the first; each unordered pair is there once.
    Weights of one contender together are below 2**40."""
    chance, both = (table.__getitem__ for table in _tables())
    others: list[list[int]] = [[] for _ in means]
    weights: list[list[int]] = [[] for _ in means]
    won = [0] * len(means)
    for (a, b), (for_a, weight) in wins.items():
        others[a].append(b)
        others[b].append(a)
        weights[a].append(weight)
        weights[b].append(weight)
        won[a] += for_a
        won[b] += weight - for_a
    ridge, middle = RIDGE_MILLI * 1000, sum(means)
    targets = [1_000_000 * value + ridge * mean for value, mean in zip(won, means, strict=True)]
    strength = _start(means, won, weights)
    bends = [0] * len(means)
    for sweep in range(MAX_SWEEPS):
        furthest = 0
        for place, met in enumerate(others):
            here = strength[place]
            gaps = [here - strength[other] for other in met]
            weighed = weights[place]
            if sweep:
                expected, bend = sum(map(mul, weighed, map(chance, gaps))), bends[place]
            else:  # the likelihood's bend hardly changes after the first sweep
                total = sum(map(mul, weighed, map(both, gaps)))
                expected, bend = total >> _SHIFT, 1000 * ridge + (total & _LOW)
                bends[place] = bend
            step = (2000 * (targets[place] - ridge * here - expected) + bend) // (2 * bend)
            if step:
                strength[place] = min(_BOUND, max(-_BOUND, here + step))
                furthest = max(furthest, abs(step))
        if furthest <= SETTLED_MILLI:
            break
        # At the optimum strengths add up to what the means do; single steps come to that last of all.
        shift = (2 * (middle - sum(strength)) + len(means)) // (2 * len(means))
        if shift:
            strength = [min(_BOUND, max(-_BOUND, value + shift)) for value in strength]
    return tuple(strength)


def _start(means: Sequence[int], won: Sequence[int], weights: Sequence[Sequence[int]]) -> list[int]:
    """One Newton step for all at once where all are expected alike: there the likelihood is known without looking it up."""
    if any(mean != means[0] for mean in means):
        return list(means)
    met = list(map(sum, weights))
    return [
        min(_BOUND, max(-_BOUND, mean + 2000 * (2 * value - weight) // (weight + 4 * RIDGE_MILLI)))
        for mean, value, weight in zip(means, won, met, strict=True)
    ]


@cache
def _tables() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """P, and P * 2**60 + P(1 - P), in millionths, by log-odds in milli-nats; negative ones count from the end, as Python's
    indexes do. One number holds both, so that one sum does where both are wanted."""
    chances, spreads = logistic_table()
    both = [(chance << _SHIFT) + spread for chance, spread in zip(chances, spreads, strict=True)]
    return (
        chances[TABLE_REACH_MILLI:] + chances[:TABLE_REACH_MILLI],
        tuple(both[TABLE_REACH_MILLI:] + both[:TABLE_REACH_MILLI]),
    )
