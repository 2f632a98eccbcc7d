"""What a vote, a judgement and a ticket in the draw count for, from what gold says of each candidate. Pure, whole numbers.

Agreement with other peers never enters: measured, it ranks the best judge last and hands a round to whoever colludes.

A share of right answers is the candidate's own record, drawn towards the mean of all candidates by as many trials as the records'
own spread calls for (empirical Bayes): alike candidates stay alike, and one that stands out is believed.

Log-odds would be right for votes if errors were independent; real ones are shared, and many weak votes for one answer say less
than their number. A vote counts the geometric mean of two rules that allow for that. One is `odds ** 2.5`: the power runs from a
majority (0) to the best member alone (large). The other is Fisher's discriminant where any two members' errors correlate by
CORRELATION_MILLI: inverse covariance times lead over chance. Fifty questions do not tell one pair's correlation from another's,
and each rule alone loses somewhere that the other does not (docs/decisions.md).

A judgement counts its log-odds times their ratio to the best judge's: a judge at chance counts nothing, one below it by its
opposite.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Literal, Protocol

from protocol.round.logistic import exp_fixed, log_milli
from protocol.round.messages import WEIGHT_CLAMP_MILLI

POWER_MILLI = 2_500

CORRELATION_MILLI = 250
"""Of any two members' errors, in thousandths. Real ones have 340 to 430 on average; less cuts fewer votes to nothing."""

PRIOR_TRIALS_OF_LEAD = 30
"""PRIOR_TRIALS of the records that the discriminant takes: it is led astray by chance more easily than the power."""

WRONG_WAYS = 3
"""How many wrong answers there are in effect: two models that are both wrong agree in 32 to 44 of 100 cases (measured)."""

NEWCOMER_TRIALS = 5
"""With fewer weighed trials than these a candidate is a newcomer."""

NEWCOMER_SEATS = 10
"""All newcomers together have at most one part in this many of the draw's tickets: enough for them to be seen at work."""

NEWCOMER_SHARE = 25
"""And one part in this many of the weight of votes. Of judging they have none: any weight, however small, breaks the ties of an
even number of judges for whoever sends many keys, and half of what a rush of them cost was that (`sim-rounds`, R5)."""

LEAST_KNOWN = 3
"""Newcomers are held back once so many candidates are known: one known peer alone must not decide for a young mesh."""

ENTRY_MILLI = 700
"""The share of gold pairs that a judge must get right, to be more than a newcomer in judging."""

PRIOR_TRIALS = 10
"""How far a record is drawn to the mean where the records' spread is not known better."""

PRIOR_STRENGTH = 2
"""How many candidates' worth of evidence PRIOR_TRIALS is."""

_MICRO = 1_000_000
_LEAST = 20_000
_SCALE = 1_000

Arm = Literal["best", "fuse", "rank", "majority"]


class Evidence(Protocol):
    """Weighed trials, in thousandths of one."""

    @property
    def right_milli(self) -> int: ...

    @property
    def wrong_milli(self) -> int: ...


def trials_milli(record: Evidence) -> int:
    """All trials of a record, in thousandths of one."""
    return record.right_milli + record.wrong_milli


@dataclass(frozen=True, slots=True)
class Trials:
    """Evidence by itself."""

    right_milli: int = 0
    wrong_milli: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one candidate for one topic. `favourite` is its record in judging pairs that hold the answer it puts
    first, and `judging` in all others; where they are not told apart, `favourite` is None. `draw_milli` is what it has earned."""

    answering: Evidence
    judging: Evidence
    favourite: Evidence | None = None
    draw_milli: int = 1000


@dataclass(frozen=True, slots=True)
class RoundWeights:
    """A candidate's weights in a round's header, and whether it is a newcomer in answering and in judging."""

    answer_milli: int
    judge_milli: int
    favourite_milli: int | None
    strength_milli: int
    draw_milli: int
    new_answerer: bool
    new_judge: bool


def shares_micro(records: Sequence[Evidence], prior_trials: int = PRIOR_TRIALS) -> tuple[int, ...]:
    """The share of right answers to expect of each, in millionths, between 0.02 and 0.98; the mean where nothing is known.
    `prior_trials`: how far records are drawn to it before their spread says otherwise."""
    right = [record.right_milli for record in records]
    trials = [trials_milli(record) for record in records]
    total = sum(trials)
    mean = (sum(right) + _SCALE) * _MICRO // (total + 2 * _SCALE)
    drawn = _drawn_milli(right, trials, mean, prior_trials)
    shares = ((won * _MICRO + drawn * mean) // (count + drawn) for won, count in zip(right, trials, strict=True))
    return tuple(min(_MICRO - _LEAST, max(_LEAST, share)) for share in shares)


def _drawn_milli(right: Sequence[int], trials: Sequence[int], mean: int, prior_trials: int) -> int:
    """How many trials (thousandths) of the mean each record is mixed with: m (1 - m) / tau^2 - 1, tau^2 from the spread between
    the records less what chance alone spreads them (method of moments), with a prior of `prior_trials` as strong as
    PRIOR_STRENGTH candidates."""
    known = [(won, count) for won, count in zip(right, trials, strict=True) if count]
    if len(known) < 2:
        return prior_trials * _SCALE
    chance = mean * (_MICRO - mean)  # 10**-12
    total = sum(count for _, count in known)
    even = max(1, (total - sum(count * count for _, count in known) // total) // (len(known) - 1))  # trials each, in milli
    spread = sum(count * (won * _MICRO // count - mean) ** 2 for won, count in known) // (even * (len(known) - 1))
    excess = max(-chance * _SCALE // even, spread - chance * _SCALE // even)
    prior = chance // (prior_trials + 1)
    tau = (excess * (len(known) - 1) + PRIOR_STRENGTH * prior) // (len(known) - 1 + PRIOR_STRENGTH)
    tau = max(tau, 10**8)
    return max(_SCALE // 2, chance * _SCALE // tau - _SCALE)


def answer_weights_milli(records: Sequence[Evidence], seats: int | None = None) -> tuple[int, ...]:
    """What each vote counts for, in milli-nats, at least 1, in a committee of `seats` of these (all of them).

    Who is best by both rules has its log-odds against WRONG_WAYS wrong answers, and each other one its part of that. The rules
    draw records to their mean by different priors, so that of two that are nearly equal the other one may weigh more.
    """
    shares = shares_micro(records)
    best = max(shares)
    top = max(1, log_milli(best * WRONG_WAYS, _MICRO - best))
    powers = [10**36 // exp_fixed(_lead_milli(best, share)) for share in shares]
    parts = _discriminant(shares_micro(records, PRIOR_TRIALS_OF_LEAD), min(len(records), seats or len(records)))
    most = max(parts)
    alike = [10**18 if most <= 0 else max(0, part) * 10**18 // most for part in parts]
    return tuple(max(1, top * isqrt(power * part) // 10**18) for power, part in zip(powers, alike, strict=True))


def _discriminant(shares: Sequence[int], seats: int) -> list[int]:
    """Inverse covariance times lead over chance, where all errors correlate by CORRELATION_MILLI: each one's lead in standard
    deviations, less most of the mean such lead, over its standard deviation. Only ratios mean anything; below 0 a vote tells
    less than its error's likeness to the others' does."""
    chance = _MICRO // (WRONG_WAYS + 1)
    deviations = [isqrt(share * (_MICRO - share)) for share in shares]
    leads = [(share - chance) * _MICRO // deviation for share, deviation in zip(shares, deviations, strict=True)]
    shared = sum(leads) * seats * CORRELATION_MILLI // (len(leads) * (1000 + (seats - 1) * CORRELATION_MILLI))
    return [(lead - shared) * _MICRO // deviation for lead, deviation in zip(leads, deviations, strict=True)]


def _lead_milli(best: int, share: int) -> int:
    lead = log_milli(best * (_MICRO - share), share * (_MICRO - best))
    return min(50_000, lead * POWER_MILLI // 1000)


def strengths_milli(records: Sequence[Evidence]) -> tuple[int, ...]:
    """What is expected of each one's answers where answers are ranked: the log-odds of its share, in milli-nats; of a newcomer as
    much as of all in the mean."""
    return tuple(log_milli(share, _MICRO - share) for share in shares_micro(records))


def judge_weights_milli(records: Sequence[Evidence]) -> tuple[int, ...]:
    """What each judgement counts for, in milli-nats; negative for a judge that is wrong more often than chance. Where nothing is
    known of any, 1000 each."""
    if not any(map(trials_milli, records)):
        return (1000,) * len(records)
    odds = [log_milli(share, _MICRO - share) for share in shares_micro(records)]
    most = max(1, max(abs(value) for value in odds))
    weights = [_signed(value * abs(value), most) for value in odds]
    return tuple(max(-WEIGHT_CLAMP_MILLI, min(WEIGHT_CLAMP_MILLI, weight)) for weight in weights)


def _signed(numerator: int, denominator: int) -> int:
    return numerator // denominator if numerator >= 0 else -(-numerator // denominator)


def weigh(candidates: Sequence[Known], seats: int | None = None) -> tuple[RoundWeights, ...]:
    """All weights of one round with a committee of `seats` (of all), newcomers held to their part. Where everybody is new, all
    are alike."""
    new_answerers = [trials_milli(one.answering) < NEWCOMER_TRIALS * _SCALE for one in candidates]
    new_judges = [not (admitted(one.judging) or admitted(one.judging, one.favourite)) for one in candidates]
    answers = _capped(answer_weights_milli([one.answering for one in candidates], seats), new_answerers)
    count = len(candidates)
    favourites = [one.judging if one.favourite is None else with_own(one.favourite, one.judging) for one in candidates]
    judges = judge_weights_milli([*(one.judging for one in candidates), *favourites])
    judges = (*_admitted_alone(judges[:count], new_judges), *_admitted_alone(judges[count:], new_judges))
    strengths = strengths_milli([one.answering for one in candidates])
    draws = _draw_weights([one.draw_milli for one in candidates], new_answerers)
    return tuple(
        RoundWeights(
            answers[place],
            judges[place],
            None if one.favourite is None else judges[count + place],
            strengths[place],
            draws[place],
            new_answerers[place],
            new_judges[place],
        )
        for place, one in enumerate(candidates)
    )


def with_own(favourite: Evidence, judging: Evidence) -> Trials:
    """A record of pairs that hold a judge's favourite, and PRIOR_TRIALS of its other pairs: where little is known of the first,
    it is more like the judge's own than like all judges' in the mean."""
    lent = PRIOR_TRIALS * _SCALE
    of = max(lent, trials_milli(judging))
    right, wrong = (part * lent // of for part in (judging.right_milli, judging.wrong_milli))
    return Trials(favourite.right_milli + right, favourite.wrong_milli + wrong)


def admitted(judging: Evidence, favourite: Evidence | None = None) -> bool:
    """Whether a judge is more than a newcomer: right in ENTRY_MILLI of its gold pairs and surely better than chance."""
    records = [judging] if favourite is None else [judging, favourite]
    right = sum(record.right_milli for record in records)
    trials = sum(map(trials_milli, records))
    if trials < NEWCOMER_TRIALS * _SCALE or right * 1000 < ENTRY_MILLI * trials:
        return False
    # One-sided 95%: right/trials - 1/2 > 1.645 * sqrt(1/4 / trials), squared and in thousandths.
    return (2 * right - trials) ** 2 * 1000 > 2706 * trials * _SCALE


def _capped(weights: Sequence[int], new: Sequence[bool], part: int = NEWCOMER_SHARE) -> tuple[int, ...]:
    """`weights`, those of newcomers scaled down until they are one in `part` of all, where LEAST_KNOWN are known."""
    known = sum(abs(weight) for weight, is_new in zip(weights, new, strict=True) if not is_new)
    fresh = sum(abs(weight) for weight, is_new in zip(weights, new, strict=True) if is_new)
    if new.count(False) < LEAST_KNOWN or fresh * (part - 1) <= known:
        return tuple(weights)
    return tuple(
        _signed(weight * known, fresh * (part - 1)) if is_new else weight for weight, is_new in zip(weights, new, strict=True)
    )


def _admitted_alone(weights: Sequence[int], new: Sequence[bool]) -> tuple[int, ...]:
    """`weights`, none for those that are not admitted, where LEAST_KNOWN are. Their ballots go on being marked on gold."""
    if new.count(False) < LEAST_KNOWN:
        return tuple(weights)
    return tuple(0 if is_new else weight for weight, is_new in zip(weights, new, strict=True))


def _draw_weights(earned: Sequence[int], new: Sequence[bool]) -> tuple[int, ...]:
    """Tickets: what each has earned; those of newcomers shrunk to their part. At least 1, so large numbers are used."""
    tickets = [max(1, value) * 900 for value in earned]
    return tuple(min(_MICRO, max(1, weight)) for weight in _capped(tickets, new, NEWCOMER_SEATS))


@dataclass(frozen=True, slots=True)
class Choice:
    """The arm that a round folds by, and why, in one sentence."""

    arm: Arm
    why: str


def choose_arm(weighed: Sequence[RoundWeights], prose: bool, known: bool) -> Choice:
    """`best` where no vote of all others together could change the answer of the best; `rank` for topics of prose, whose answers
    are seldom equal; else `fuse`. `known`: whether gold says anything of anyone."""
    if prose:
        return Choice("rank", "answers in prose are seldom equal: where no two are, judges alone rank them")
    if not known:
        return Choice("fuse", "gold says nothing of these peers yet, so every vote and judgement counts alike")
    votes = sorted((one.answer_milli for one in weighed), reverse=True)
    judging = sum(abs(one.judge_milli) for one in weighed)
    if len(votes) > 1 and votes[0] > sum(votes[1:]) + judging // 2:
        return Choice(
            "best", "on gold one peer is so far ahead that all other votes and judgements together could not overrule it"
        )
    return Choice("fuse", "on gold no single peer is ahead of what the others say together, so votes and judgements are added up")
