"""What the judges of a round say together of each pair of classes: exact sums, the same in any order. Decides no winner.

A judge's two looks at a swapped pair are averaged, which cancels a taste for the first place; the taste so found is taken off the
pairs it saw one way round. A judge of negative weight counts by its opposite.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import compress
from math import floor
from operator import truediv
from typing import NamedTuple

from protocol.round.logistic import probability_milli
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, FoldParameters, Judgement
from protocol.wire.limits import MAX_COMMITTEE

Pair = tuple[int, int]

TASTE_PRIOR_PAIRS = 2
"""A judge is taken for unbiased as firmly as so many swapped pairs that show no bias would say."""

_MOST_JUDGES = 511
_WEIGHT_SHIFT = _MOST_JUDGES.bit_length()
"""A pair's judges are counted below the sum of their weights, in one number: one addition instead of two."""


_WHOLE = 1.5 * 2.0**52
"""Added and taken off again, it rounds a number below 2**51 to the nearest whole one, halves to the even one (IEEE 754)."""

Heard = tuple[int, int, int]
"""How many pairs a judge was asked, how many of them both ways round, and in how many of those it preferred the same answer."""


class PairTable(NamedTuple):
    """Each judged pair a < b, in order. Of each: a, b, the weighted evidence for a, the weight, the judges, and the evidence per
    weight in whole millionths. Of each class, over all of its pairs: the sums of both evidences, and how many they are."""

    first: Sequence[int]
    second: Sequence[int]
    evidence: Sequence[float]
    weight: Sequence[float]
    judges: Sequence[int]
    centred_micro: Sequence[float]
    lead: Sequence[float]
    wins_micro: Sequence[float]
    met: Sequence[int]


def preferences(judgements: Sequence[Judgement], position_bias: bool = False) -> dict[Pair, int]:
    """A judge's log-odds (milli-nats) that the lower-numbered class of each pair wins; the mean where it was asked both ways."""
    sums = PairSums(MAX_COMMITTEE, FoldParameters(position_bias=position_bias), most=False)
    sums.add(0, 0, judgements)
    return sums.preferences(0)


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
def _evidence_table(evidence: str) -> list[float]:
    """`evidence_micro` by log-odds up to twice the clamp (a taste may be taken off); negative ones count from the end, as indexes
    of Python do. Equal values are one object: the table stays in the processor's cache."""
    parameters = FoldParameters(evidence="log_odds" if evidence == "log_odds" else "probability")
    reach = range(2 * LOG_ODDS_CLAMP_MILLI + 1)
    shared: dict[int, float] = {}
    values = [evidence_micro(odds, parameters) for odds in (*reach, *(-odds for odds in reach[:0:-1]))]
    return [shared.setdefault(value, float(value)) for value in values]


@cache
def _numbering(count: int) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...], tuple[int, ...]]:
    """The number of each pair of `count` classes, by one class and then the other; and the lower and the higher class by number.
    Looking them up is quicker than reckoning them."""
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    numbers = {pair: number for number, pair in enumerate(pairs)}
    return (
        tuple(tuple(numbers.get((min(a, b), max(a, b)), -1) for b in range(count)) for a in range(count)),
        tuple(a for a, _ in pairs),
        tuple(b for _, b in pairs),
    )


LEAST_TRIMMED = 12
"""From so many judges of a pair on, its outermost judgements are left out. Of fewer, each has a twelfth of the weight or more."""

TRIMMED_PART = 20
"""One part in this many of a pair's weight is left out at each end: a judge of so much, however certain, then moves a pair no
further than its neighbours' opinions. Of twenty judges that differ by half a nat, one that rigs all other pairs moves a target's
place in 1.5 to 2 of 100 rounds instead of 8."""


_Said = list[int | None] | defaultdict[int, int | None]
"""What a judge said, by number of the pair: log-odds for the lower class, the mean where it was asked both ways."""


_NOTHING: frozenset[int] = frozenset()

_FEW = 8
"""Pairs that nobody judged are few where they are one in so many, or fewer."""


class PairSums:
    """Of each judged pair a < b of `count` classes: the weighted evidence for a (weight * evidence), the weight, and how many
    judges; without the outermost judgements where there are many.

    Evidence is summed in doubles, in half the time of integers. It is whole and stays below 2**53, as 511 judges of at most
    8,000,000 say at most 500,000 each: such sums are exact, in any order and on any machine. So are those of all pairs of a
    class, as 50 judges of 45 judgements stay below it by a thousandth; they are added in one order besides.
    """

    def __init__(self, count: int, parameters: FoldParameters, most: bool = True) -> None:
        """`most`: whether most pairs will be judged; of more than MAX_COMMITTEE classes, as nobody may ask for, few are."""
        self._numbers, self._first, self._second = _numbering(count)
        self._table = _evidence_table(parameters.evidence)
        self._position_bias = parameters.position_bias
        self._dense = most and count <= MAX_COMMITTEE
        self._casts: list[tuple[_Said, int, int, frozenset[int]]] = []
        pairs = len(self._first)
        self._evidence: list[float] | defaultdict[int, float] = [0.0] * pairs if self._dense else defaultdict(float)
        self._voices: list[float] | defaultdict[int, float] = [0.0] * pairs if self._dense else defaultdict(float)

    def add(self, favourite: int, other: int, judgements: Sequence[Judgement]) -> Heard:
        """Count one judge's ballot, in which each ordered pair is there once at most and log-odds are within the clamp. Its
        weights in millionths: for pairs that hold what it puts first, and for the others."""
        numbers, table, evidence, voices = self._numbers, self._table, self._evidence, self._voices
        position_bias = self._position_bias
        weight, voice = float(other), float((abs(other) << _WEIGHT_SHIFT) + 1)
        said: _Said = [None] * len(self._first) if self._dense else defaultdict(_nothing)
        twice: list[int] = []
        consistent = tastes = 0
        for judgement in judgements:
            a, b, odds = judgement.first, judgement.second, judgement.log_odds_milli
            number = numbers[a][b]
            if a > b:
                odds = -odds
            before = said[number]
            if before is None:
                said[number] = odds
                evidence[number] += weight * table[odds]
                voices[number] += voice
            else:
                twice.append(number)
                consistent += odds * before >= 0
                if position_bias:
                    tastes += odds - before if a < b else before - odds
                odds += before
                said[number] = mean = (odds + 1) // 2 if odds >= 0 else -((1 - odds) // 2)  # `ratio` to 2, without its call
                evidence[number] += weight * (table[mean] - table[before])
        if position_bias and (taste := ratio(tastes, 2 * (len(twice) + TASTE_PRIOR_PAIRS))):
            known = frozenset(twice)
            self._without_taste(taste, weight, said, [j for j in judgements if numbers[j.first][j.second] not in known])
        chosen = self._weigh_apart(favourite, other, said) if favourite != other else _NOTHING
        self._casts.append((said, favourite, other, chosen))
        return len(judgements) - len(twice), len(twice), consistent

    def preferences(self, judge: int) -> dict[Pair, int]:
        """The log-odds for the lower class of each pair, of the `judge`-th ballot that was added."""
        return {(self._first[number], self._second[number]): odds for number, odds in _told(self._casts[judge][0])}

    def table(self) -> PairTable:
        """Every judged pair, in order."""
        missing = self._few_missing()
        first, second, evidence, voices = self._columns(missing)
        weights = [*map(float, [each >> _WEIGHT_SHIFT for each in voices])]
        judges = [each & _MOST_JUDGES for each in voices]
        if judges and max(judges) >= LEAST_TRIMMED:
            for place in [place for place, count in enumerate(judges) if count >= LEAST_TRIMMED]:
                if weights[place]:
                    said = self._said_of(first[place], second[place])
                    evidence[place] = _trimmed_sum(said, evidence[place], weights[place])
        # A quotient below 500,000 is off by 2**-35 at most, and as weights are below 2**32 it is either a half itself, which is
        # exact, or further from one: what is rounded is what it would be of the whole numbers.
        try:
            centred = [quotient + _WHOLE - _WHOLE for quotient in map(truediv, evidence, weights)]
        except ZeroDivisionError:  # nobody who judged a pair counts: there is no evidence either
            divisors = [each or 1.0 for each in weights]
            centred = [quotient + _WHOLE - _WHOLE for quotient in map(truediv, evidence, divisors)]
        lead, wins = [0.0] * len(self._numbers), [0.0] * len(self._numbers)
        for a, b, ahead, win in zip(first, second, evidence, centred, strict=True):
            lead[a] += ahead
            lead[b] -= ahead
            wins[a] += win
            wins[b] -= win
        return PairTable(first, second, evidence, weights, judges, centred, lead, wins, self._met(first, second, missing))

    def _met(self, first: Sequence[int], second: Sequence[int], missing: Sequence[int] | None) -> list[int]:
        """How many others each class was judged against."""
        count = len(self._numbers)
        if missing is None:
            found = Counter(first) + Counter(second)
            return [found[index] for index in range(count)]
        met = [count - 1] * count
        for number in missing:
            met[self._first[number]] -= 1
            met[self._second[number]] -= 1
        return met

    def _columns(self, missing: Sequence[int] | None) -> tuple[list[int], list[int], list[float], list[int]]:
        """The lower class, the higher one, the evidence and the voices of each judged pair, in order."""
        voices = self._voices
        if missing is None:
            numbers = sorted(voices) if isinstance(voices, dict) else [*compress(range(len(voices)), voices)]
            first, second = ([column[number] for number in numbers] for column in (self._first, self._second))
            return first, second, [self._evidence[number] for number in numbers], [floor(voices[number]) for number in numbers]
        first, second, evidence, counted = [*self._first], [*self._second], [*self._evidence], [*map(floor, voices)]
        for number in reversed(missing):
            del first[number], second[number], evidence[number], counted[number]
        return first, second, evidence, counted

    def _few_missing(self) -> list[int] | None:
        """The numbers of the pairs that nobody judged, where few are: such tables are made by leaving these out."""
        voices, missing = self._voices, [-1]
        if isinstance(voices, dict) or (count := voices.count(0.0)) * _FEW > len(voices):
            return None
        for _ in range(count):
            missing.append(voices.index(0.0, missing[-1] + 1))
        return missing[1:]

    def _without_taste(self, taste: int, weight: float, said: _Said, asked_once: Iterable[Judgement]) -> None:
        """Take a judge's taste for the first place off the pairs that it saw one way round."""
        for judgement in asked_once:
            number = self._numbers[judgement.first][judgement.second]
            before = said[number] or 0
            said[number] = odds = before - taste if judgement.first < judgement.second else before + taste
            self._evidence[number] += weight * (self._table[odds] - self._table[before])

    def _weigh_apart(self, favourite: int, other: int, said: _Said) -> frozenset[int]:
        """Count the pairs that hold what the judge puts first, which is returned, at their own weight instead of the other."""
        told = [(self._first[number], self._second[number], number, odds) for number, odds in _told(said)]
        chosen = favourites({(a, b): odds for a, b, _, odds in told})
        more, voice = float(favourite - other), float((abs(favourite) - abs(other)) << _WEIGHT_SHIFT)
        for a, b, number, odds in told:
            if (a in chosen) != (b in chosen):
                self._evidence[number] += more * self._table[odds]
                self._voices[number] += voice
        return chosen

    def _said_of(self, a: int, b: int) -> list[tuple[float, int]]:
        """Every judge's evidence of one pair, the least first, and the weight of each, positive."""
        number, table, found = self._numbers[a][b], self._table, []
        for said, favourite, other, chosen in self._casts:
            if (odds := said[number]) is not None:
                weight = favourite if chosen and (a in chosen) != (b in chosen) else other
                found.append((table[odds], weight) if weight >= 0 else (-table[odds], -weight))
        return sorted(found)


def _told(said: _Said) -> list[tuple[int, int]]:
    """What was said, by number of the pair."""
    rows = enumerate(said) if isinstance(said, list) else said.items()
    return [(number, odds) for number, odds in rows if odds is not None]


def _nothing() -> None:
    return None


def _trimmed_sum(said: Sequence[tuple[float, int]], total: float, weight: float) -> float:
    """The sum of weighed evidence of a pair (`said`, the least first), as if all judgements were like those that are left without
    both ends."""
    whole = int(weight)
    cut = whole // TRIMMED_PART
    left = int(total - _outermost(said, cut) - _outermost(reversed(said), cut))
    return float(ratio(left * whole, whole - 2 * cut))


def _outermost(said: Iterable[tuple[float, int]], cut: int) -> float:
    """The weighed evidence of the first of `said`, as many as weigh `cut` together."""
    total = 0.0
    for evidence, each in said:
        if each >= cut:
            return total + evidence * cut
        total += evidence * each
        cut -= each
    return total


def ratio(numerator: int, denominator: int) -> int:
    """Nearest whole number, halves away from zero, so that f(-x) is exactly -f(x); the denominator is positive."""
    if numerator < 0:
        return -((denominator - 2 * numerator) // (2 * denominator))
    return (2 * numerator + denominator) // (2 * denominator)
