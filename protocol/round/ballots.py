"""What the judges of a round say together of each pair of classes: exact sums, the same in any order. Decides no winner.

A judge's two looks at a swapped pair are averaged, which cancels a taste for the first place; the taste so found is taken off the
pairs it saw one way round. A judge of negative weight counts by its opposite.
"""

from collections.abc import Mapping, Sequence

from protocol.round.logistic import probability_milli
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, FoldParameters, Judgement

Pair = tuple[int, int]

TASTE_PRIOR_PAIRS = 2
"""A judge is taken for unbiased as firmly as so many swapped pairs that show no bias would say."""


def preferences(judgements: Sequence[Judgement], position_bias: bool = False) -> dict[Pair, int]:
    """A judge's log-odds (milli-nats) that the lower-numbered class of each pair wins; the mean where it was asked both ways."""
    asked = {(judgement.first, judgement.second): judgement.log_odds_milli for judgement in judgements}
    taste = taste_milli(asked) if position_bias else 0
    found: dict[Pair, int] = {}
    for (first, second), odds in asked.items():
        other = asked.get((second, first))
        if other is None:
            found[(first, second) if first < second else (second, first)] = odds - taste if first < second else taste - odds
        elif first < second:
            found[first, second] = ratio(odds - other, 2)
    return found


def taste_milli(asked: Mapping[Pair, int]) -> int:
    """By how much (log-odds, milli-nats) a judge favours the answer it is shown first, as its swapped pairs say."""
    swapped = [
        odds + asked[second, first] for (first, second), odds in asked.items() if first < second and (second, first) in asked
    ]
    return ratio(sum(swapped), 2 * (len(swapped) + TASTE_PRIOR_PAIRS))


def favourites(said: Mapping[Pair, int]) -> frozenset[int]:
    """The classes that a judge puts first: those that win most of its pairs, net of those they lose."""
    net: dict[int, int] = {}
    for (a, b), odds in said.items():
        won = (odds > 0) - (odds < 0)
        net[a] = net.get(a, 0) + won
        net[b] = net.get(b, 0) - won
    most = max(net.values(), default=0)
    return frozenset(index for index, value in net.items() if value == most)


def evidence_micro(log_odds_milli: int, parameters: FoldParameters) -> int:
    """Between -500,000 and 500,000: probability above one half, or log-odds on the same range."""
    odds = max(-LOG_ODDS_CLAMP_MILLI, min(LOG_ODDS_CLAMP_MILLI, log_odds_milli))
    if parameters.evidence == "log_odds":
        return ratio(odds * 500_000, LOG_ODDS_CLAMP_MILLI)
    return (probability_milli(odds) - 500) * 1000


class PairSums:
    """Of each judged pair a < b: the weighted evidence for a (weight * evidence), the weight, and how many judges."""

    def __init__(self) -> None:
        self.sums: dict[Pair, tuple[int, int, int]] = {}

    def add(self, judge: tuple[int, int], judgements: Sequence[Judgement], parameters: FoldParameters) -> None:
        """Count one judge's ballot. `judge` is its weight for pairs that hold its favourite and for the others, in millionths."""
        said = preferences(judgements, parameters.position_bias)
        favourite, other = judge
        chosen = favourites(said) if favourite != other else frozenset()
        for pair, odds in said.items():
            weight = favourite if (pair[0] in chosen) != (pair[1] in chosen) else other
            total, whole, judges = self.sums.get(pair, (0, 0, 0))
            self.sums[pair] = (total + weight * evidence_micro(odds, parameters), whole + abs(weight), judges + 1)


def ratio(numerator: int, denominator: int) -> int:
    """Nearest whole number, halves away from zero, so that f(-x) is exactly -f(x); the denominator is positive."""
    magnitude = (2 * abs(numerator) + denominator) // (2 * denominator)
    return -magnitude if numerator < 0 else magnitude
