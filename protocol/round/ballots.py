"""What the judges of a round say together of each pair of classes: exact sums, the same in any order. Decides no winner.

A judge's two looks at a swapped pair are averaged, which cancels a taste for the first place; the taste so found is taken off the
pairs it saw one way round. A judge of negative weight counts by its opposite.
"""

from collections.abc import Mapping, Sequence
from functools import cache

from protocol.round.logistic import probability_milli
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, FoldParameters, Judgement

Pair = tuple[int, int]

TASTE_PRIOR_PAIRS = 2
"""A judge is taken for unbiased as firmly as so many swapped pairs that show no bias would say."""


def preferences(judgements: Sequence[Judgement], position_bias: bool = False) -> dict[Pair, int]:
    """A judge's log-odds (milli-nats) that the lower-numbered class of each pair wins; the mean where it was asked both ways."""
    return _preferences(asked_of(judgements), position_bias)


def asked_of(judgements: Sequence[Judgement]) -> dict[Pair, int]:
    """What a judge said (log-odds for the first, milli-nats) by the pair as it was shown."""
    return {(judgement.first, judgement.second): judgement.log_odds_milli for judgement in judgements}


def _preferences(asked: Mapping[Pair, int], position_bias: bool) -> dict[Pair, int]:
    taste = taste_milli(asked) if position_bias else 0
    found: dict[Pair, int] = {}
    for pair, odds in asked.items():
        first, second = pair
        turned = (second, first)
        if turned not in asked:
            if first < second:
                found[pair] = odds - taste
            else:
                found[turned] = taste - odds
        elif first < second:
            found[pair] = ratio(odds - asked[turned], 2)
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


@cache
def _evidence_table(evidence: str) -> tuple[int, ...]:
    """`evidence_micro` of every clamped value, from -LOG_ODDS_CLAMP_MILLI on: looked up once per judgement."""
    parameters = FoldParameters(evidence="log_odds" if evidence == "log_odds" else "probability")
    return tuple(evidence_micro(odds, parameters) for odds in range(-LOG_ODDS_CLAMP_MILLI, LOG_ODDS_CLAMP_MILLI + 1))


class PairSums:
    """Of each judged pair a < b: the weighted evidence for a (weight * evidence), the weight, and how many judges."""

    def __init__(self) -> None:
        self.sums: dict[Pair, list[int]] = {}

    def add(self, judge: tuple[int, int], asked: Mapping[Pair, int], parameters: FoldParameters) -> None:
        """Count one judge's ballot (`asked_of`). `judge` is its weight for pairs that hold its favourite and for the others, in
        millionths."""
        said = _preferences(asked, parameters.position_bias)
        favourite, other = judge
        chosen = favourites(said) if favourite != other else frozenset()
        table, sums, size = _evidence_table(parameters.evidence), self.sums, abs(other)
        for pair, odds in said.items():
            weight = other
            if chosen and (pair[0] in chosen) != (pair[1] in chosen):
                weight = favourite
            if -LOG_ODDS_CLAMP_MILLI <= odds <= LOG_ODDS_CLAMP_MILLI:
                evidence = weight * table[odds + LOG_ODDS_CLAMP_MILLI]
            else:
                evidence = weight * evidence_micro(odds, parameters)
            whole = size if weight is other else abs(weight)
            row = sums.get(pair)
            if row is None:
                sums[pair] = [evidence, whole, 1]
            else:
                row[0] += evidence
                row[1] += whole
                row[2] += 1


def ratio(numerator: int, denominator: int) -> int:
    """Nearest whole number, halves away from zero, so that f(-x) is exactly -f(x); the denominator is positive."""
    magnitude = (2 * abs(numerator) + denominator) // (2 * denominator)
    return -magnitude if numerator < 0 else magnitude
