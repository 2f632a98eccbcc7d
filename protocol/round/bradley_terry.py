"""Ridge Bradley-Terry in whole numbers: how strong each contender is, from who was preferred to whom. Decides no winner.

Maximises sum of w (y log s(D) + (1-y) log s(-D)) - ridge/2 |theta - mean|^2, D = theta_a - theta_b, by Newton steps along one
coordinate after the other. `mean` is what is expected of a contender before anybody judged.
The sums that enter are exact, and the sweeps go through contenders by number, so no order of input shows.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from protocol.round.logistic import TABLE_REACH_MILLI, logistic_table

RIDGE_MILLI = 2_000
"""One answer lies some 0.7 nats from what is expected of its author. It keeps the undefeated finite, and says how firmly a
judged answer is drawn to that. Of 0.3, 0.6, 1, 2 and 3, picked on halves of bench/data's judgements by chance, 2 and 3 did best
on the other halves."""

MAX_SWEEPS = 60
"""A complete design settles in 5 to 10; a chain of 500 contenders is still within a few hundredths of a nat after these."""

SETTLED_MILLI = 1

_BOUND = TABLE_REACH_MILLI // 2
_SHIFT = 60
_LOW = (1 << _SHIFT) - 1

Pair = tuple[int, int]


def strengths_milli(means: Sequence[int], wins: Mapping[Pair, tuple[int, int]]) -> tuple[int, ...]:
    """Milli-nats, by contender; `means` are what is expected of each, within 8192. `wins[a, b]` is (weight for a, weight of the
    pair), in thousandths of one judgement, the second positive and not less than the first; each unordered pair is there once.
    Weights of one contender together are below 2**42."""
    table = _slopes_and_bends()
    meets: list[list[tuple[int, int]]] = [[] for _ in means]
    won = [0] * len(means)
    for (a, b), (for_a, weight) in wins.items():
        meets[a].append((b, weight))
        meets[b].append((a, weight))
        won[a] += for_a
        won[b] += weight - for_a
    strength = list(means)
    ridge = RIDGE_MILLI * 1000
    targets = [value * 1_000_000 + ridge * mean for value, mean in zip(won, means, strict=True)]
    for _ in range(MAX_SWEEPS):
        furthest = 0
        for place, row in enumerate(meets):
            here = strength[place]
            total = 0
            for other, weight in row:
                total += weight * table[here - strength[other]]
            slope = targets[place] - ridge * here - (total >> _SHIFT)
            bend = ridge * 1000 + (total & _LOW)
            step = (2000 * slope + bend) // (2 * bend)
            if step:
                strength[place] = min(_BOUND, max(-_BOUND, here + step))
                furthest = max(furthest, abs(step))
        if furthest <= SETTLED_MILLI:
            break
    return tuple(strength)


@cache
def _slopes_and_bends() -> tuple[int, ...]:
    """P * 2**60 + P(1 - P), in millionths, by log-odds in milli-nats; negative ones count from the end, as Python's indexes do.

    One number instead of two: the inner loop adds both sums at once.
    """
    chances, spreads = logistic_table()
    packed = [(chance << _SHIFT) + spread for chance, spread in zip(chances, spreads, strict=True)]
    return tuple(packed[TABLE_REACH_MILLI:] + packed[:TABLE_REACH_MILLI])
