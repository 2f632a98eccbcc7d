"""What the judges of a round say together of each pair of classes: exact sums, the same in any order. Decides no winner.

A judge's two looks at a swapped pair are averaged, which cancels a taste for the first place; the taste so found is taken off the
pairs it saw one way round. A judge of negative weight counts by its opposite.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from protocol.round.logistic import probability_milli
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, FoldParameters, Judgement
from protocol.wire.limits import MAX_COMMITTEE

Pair = tuple[int, int]

TASTE_PRIOR_PAIRS = 2
"""A judge is taken for unbiased as firmly as so many swapped pairs that show no bias would say."""

_WEIGHT_SHIFT = 9
_EVIDENCE_SHIFT = 41
_LOW = (1 << _EVIDENCE_SHIFT) - 1
_FEW = (1 << _WEIGHT_SHIFT) - 1
"""A pair's sums are one number: evidence, above 32 bits of weight, above 9 of judges (511, each of 8,000,000 at most). One
addition instead of three, and the evidence of one judgement still fits two digits of a Python integer."""


PairSum = tuple[int, int, int, int, int, int]
"""A judged pair a < b: a, b, weighted evidence for a, weight, judges, and the evidence per weight in millionths."""


@dataclass(frozen=True, slots=True)
class Said:
    """One judge's ballot. `odds` by a * classes + b, a < b: log-odds for a, the mean where it was asked both ways (`swapped`
    pairs, in `consistent` of which it preferred the same answer)."""

    odds: dict[int, int]
    swapped: int
    consistent: int


def preferences(judgements: Sequence[Judgement], position_bias: bool = False) -> dict[Pair, int]:
    """A judge's log-odds (milli-nats) that the lower-numbered class of each pair wins; the mean where it was asked both ways."""
    said = heard(judgements, MAX_COMMITTEE, position_bias)
    return {divmod(key, MAX_COMMITTEE): odds for key, odds in said.odds.items()}


def heard(judgements: Sequence[Judgement], count: int, position_bias: bool) -> Said:
    """What a judge of `count` classes said; each ordered pair is there once at most, and log-odds are within the clamp."""
    said: dict[int, int] = {}
    both: list[tuple[int, int, bool]] = []
    keys = _keys(count)
    for judgement in judgements:
        a, b = judgement.first, judgement.second
        key = keys[a][b]
        if key in said:
            both.append((key, judgement.log_odds_milli if a < b else -judgement.log_odds_milli, a < b))
        elif a < b:
            said[key] = judgement.log_odds_milli
        else:
            said[key] = -judgement.log_odds_milli
    consistent = tastes = 0
    for key, odds, lower_first in both:
        other = said[key]
        consistent += odds * other >= 0
        tastes += odds - other if lower_first else other - odds
        odds += other
        said[key] = (odds + 1) // 2 if odds >= 0 else -((1 - odds) // 2)  # `ratio` to 2, without its call
    if position_bias and (taste := ratio(tastes, 2 * (len(both) + TASTE_PRIOR_PAIRS))):
        asked_once = said.keys() - {key for key, _, _ in both}
        for judgement in judgements:
            key = keys[judgement.first][judgement.second]
            if key in asked_once:
                said[key] += taste if judgement.first > judgement.second else -taste
    return Said(said, len(both), consistent)


@cache
def _keys(count: int) -> tuple[tuple[int, ...], ...]:
    """The key of a pair of `count` classes in `Said.odds`, by either class and then the other: looking it up is quicker than
    reckoning it."""
    return tuple(tuple(min(a, b) * count + max(a, b) for b in range(count)) for a in range(count))


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
    """`evidence_micro`, shifted to its place in a pair's sums, by log-odds up to twice the clamp (a taste may be taken off);
    negative ones count from the end, as Python's indexes do. Equal values are one object: the table stays in the cache."""
    parameters = FoldParameters(evidence="log_odds" if evidence == "log_odds" else "probability")
    reach = range(2 * LOG_ODDS_CLAMP_MILLI + 1)
    shared: dict[int, int] = {}
    values = [evidence_micro(odds, parameters) << _EVIDENCE_SHIFT for odds in (*reach, *(-odds for odds in reach[:0:-1]))]
    return tuple(shared.setdefault(value, value) for value in values)


LEAST_TRIMMED = 12
"""From so many judges of a pair on, its outermost judgements are left out. Of fewer, each has a twelfth of the weight or more."""

TRIMMED_PART = 20
"""One part in this many of a pair's weight is left out at each end: a judge of so much, however certain, then moves a pair no
further than its neighbours' opinions. Of twenty judges that differ by half a nat, one that rigs all other pairs moves a target's
place in 1.5 to 2 of 100 rounds instead of 8."""


class PairSums:
    """Of each judged pair a < b of `count` classes: the weighted evidence for a (weight * evidence), the weight, and how many
    judges; without the outermost judgements where there are many."""

    def __init__(self, count: int, parameters: FoldParameters) -> None:
        self._count = count
        self._evidence = _evidence_table(parameters.evidence)
        self._cast: list[tuple[int, int, Mapping[int, int], frozenset[int]]] = []
        self._sums: list[int] | defaultdict[int, int] = [0] * (count * count) if count <= MAX_COMMITTEE else defaultdict(int)

    def add(self, favourite: int, other: int, said: Mapping[int, int]) -> None:
        """Count one judge's ballot. Its weight for pairs that hold its favourite and for the others, in millionths."""
        evidence, sums, base = self._evidence, self._sums, (abs(other) << _WEIGHT_SHIFT) + 1
        if favourite == other:
            self._cast.append((favourite, other, said, frozenset()))
            for key, odds in said.items():
                sums[key] += other * evidence[odds] + base
            return
        chosen = favourites({divmod(key, self._count): odds for key, odds in said.items()})
        self._cast.append((favourite, other, said, chosen))
        special = (abs(favourite) << _WEIGHT_SHIFT) + 1
        for key, odds in said.items():
            if (key // self._count in chosen) != (key % self._count in chosen):
                sums[key] += favourite * evidence[odds] + special
            else:
                sums[key] += other * evidence[odds] + base

    def rows(self) -> list[PairSum]:
        """Every judged pair, in order."""
        count = self._count
        found: list[PairSum] = []
        for key, sums in enumerate(self._sums) if isinstance(self._sums, list) else sorted(self._sums.items()):
            if sums:
                total, weight = sums >> _EVIDENCE_SHIFT, (sums & _LOW) >> _WEIGHT_SHIFT
                if not weight:
                    centred = 0
                elif total < 0:  # `ratio`, without a call for each of hundreds of pairs
                    centred = -((weight - 2 * total) // (2 * weight))
                else:
                    centred = (2 * total + weight) // (2 * weight)
                judges = sums & _FEW
                if judges >= LEAST_TRIMMED and weight:
                    total = _trimmed_sum(self._said_of(key), weight)
                    centred = ratio(total, weight)
                found.append((key // count, key % count, total, weight, judges, centred))
        return found

    def _said_of(self, key: int) -> list[tuple[int, int]]:
        """Every judge's evidence of one pair, the least first, and the weight of each, positive."""
        a, b = divmod(key, self._count)
        said = []
        for favourite, other, odds, chosen in self._cast:
            if key in odds:
                weight = favourite if (a in chosen) != (b in chosen) else other
                evidence = self._evidence[odds[key]] >> _EVIDENCE_SHIFT
                said.append((evidence, weight) if weight >= 0 else (-evidence, -weight))
        return sorted(said)


def _trimmed_sum(said: Sequence[tuple[int, int]], weight: int) -> int:
    """The sum of weighed evidence of a pair, sorted, as if all judgements were like those that are left without both ends."""
    low, high = weight // TRIMMED_PART, weight - weight // TRIMMED_PART
    total = passed = 0
    for evidence, each in said:
        total += evidence * max(0, min(high, passed + each) - max(low, passed))
        passed += each
    return ratio(total * weight, high - low)


def ratio(numerator: int, denominator: int) -> int:
    """Nearest whole number, halves away from zero, so that f(-x) is exactly -f(x); the denominator is positive."""
    if numerator < 0:
        return -((denominator - 2 * numerator) // (2 * denominator))
    return (2 * numerator + denominator) // (2 * denominator)
