"""Many contributions to one result, by whole numbers and in any order: majority and rank. Decides the winner, checks nothing.

    S_c = vote_gain * sum of the weights of c's voters
        + judge_gain * (sum of |judge weights|) * mean over opponents o of C(c, o)
    C(c, o) = sum over judges of weight * (P(c beats o) - 1/2), over the sum of their |weights|
P is the logistic function of a judge's clamped log-odds (both orders averaged first, which cancels a taste for the first place);
a judge of negative weight counts by its opposite. Weights are log-odds, so scores are too, and the confidence is their softmax.
Averaging within a pair before summing keeps a class that fewer judges saw from being scaled down.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from protocol.round.classes import AnswerClass, tie_break, voices
from protocol.round.logistic import probability_milli, softmax_first_milli
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, FoldParameters, Judgement
from protocol.wire.codec import Message, encode
from protocol.wire.ids import Hash, HashField, sha256

Basis = Literal["unanimous", "votes", "judged"]
Seat = Annotated[int, msgspec.Meta(ge=0)]


class ClassRow(Message, frozen=True):
    """One class in the result. Weights and scores in millionths of a nat; `wins_milli` is how often it beats another class."""

    answer: HashField
    seats: tuple[Seat, ...]
    vote_micro: int
    wins_milli: int
    score_micro: int
    rank: int


class PairRow(Message, frozen=True):
    """What the judges together say of one pair: `wins_milli` is the weighted chance that `first` beats `second`."""

    first: int
    second: int
    judges: int
    wins_milli: int


class JudgeRow(Message, frozen=True):
    """How many pairs a judge was shown both ways round, and in how many of them it preferred the same answer."""

    seat: Seat
    pairs: int
    swapped: int
    consistent: int


class Result(Message, frozen=True):
    """What a round yields. Its canonical bytes are hashed and signed; every honest peer gets the same."""

    round: HashField
    strategy: str
    basis: Basis
    classes: tuple[ClassRow, ...]
    pairs: tuple[PairRow, ...]
    judges: tuple[JudgeRow, ...]
    aborted: tuple[Seat, ...]
    dropped: tuple[Seat, ...]
    winner: int
    winner_seat: Seat
    confidence_milli: int


@dataclass(frozen=True, slots=True)
class Voice:
    """A seat's weights in this round, in milli-nats, and the configuration it shares a voice with."""

    answer_weight_milli: int
    judge_weight_milli: int
    config_digest: bytes


@dataclass(frozen=True, slots=True)
class Contributions:
    """Everything that counts. `classes` as they were when judging began; seats in `dropped` are left out here."""

    round: Hash
    strategy: str
    fold: FoldParameters
    voices: Mapping[int, Voice]
    classes: tuple[AnswerClass, ...]
    ballots: Mapping[int, Sequence[Judgement]]
    aborted: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


def verdict_hash(result: Result) -> Hash:
    """The address of a result."""
    return sha256(b"swarmd/1/round/result", encode(result))


def fold(given: Contributions) -> Result:
    """The result, whatever the order in which contributions came. Needs at least one class with a seat that is not dropped."""
    dropped = set(given.dropped)
    voters = {seat for found in given.classes for seat in found.seats} - dropped
    votes = _weights(given, voters, judging=False)
    ballots = {seat: given.ballots[seat] for seat in sorted(given.ballots) if seat not in dropped}
    pairs, judge_total = _pairs(given, ballots)
    standing = [index for index, found in enumerate(given.classes) if set(found.seats) & voters]
    vote_micro = [sum(votes[seat] for seat in found.seats if seat in voters) for found in given.classes]
    wins = [_mean_wins(index, standing, pairs) for index in range(len(given.classes))]
    gains = given.fold
    scores = [
        (gains.vote_gain_milli * vote + _ratio(gains.judge_gain_milli * judge_total * win, 1_000_000)) // 1000
        for vote, win in zip(vote_micro, wins, strict=True)
    ]
    order = sorted(standing, key=lambda index: (-scores[index], tie_break(given.round, given.classes[index].key)))
    ranks = {index: place + 1 for place, index in enumerate(order)}
    winner = order[0]
    rows = tuple(
        ClassRow(
            sha256(found.text.encode()),
            tuple(seat for seat in found.seats if seat in voters),
            vote_micro[index],
            500 + _ratio(wins[index], 1000),
            scores[index],
            ranks.get(index, len(given.classes)),
        )
        for index, found in enumerate(given.classes)
    )
    return Result(
        round=given.round,
        strategy=given.strategy,
        basis="unanimous" if len(given.classes) == 1 else "judged" if pairs else "votes",
        classes=rows,
        pairs=tuple(PairRow(a, b, judges, 500 + _ratio(centred, 1000)) for (a, b), (centred, judges) in sorted(pairs.items())),
        judges=tuple(_judge_row(seat, ballots[seat]) for seat in ballots),
        aborted=tuple(sorted(given.aborted)),
        dropped=tuple(sorted(given.dropped)),
        winner=winner,
        winner_seat=rows[winner].seats[0],
        confidence_milli=softmax_first_milli(tuple((scores[winner] - scores[index]) // 1000 for index in order[1:])),
    )


def _weights(given: Contributions, seats: set[int], judging: bool) -> dict[int, int]:
    chosen = {seat: given.voices[seat] for seat in seats}
    milli = {seat: voice.judge_weight_milli if judging else voice.answer_weight_milli for seat, voice in chosen.items()}
    return voices(milli, {seat: voice.config_digest for seat, voice in chosen.items()}, given.fold.one_voice)


Pair = tuple[int, int]


def _pairs(given: Contributions, ballots: Mapping[int, Sequence[Judgement]]) -> tuple[dict[Pair, Pair], int]:
    """For each judged pair a < b: (millionths of probability above one half that a beats b, judges); and their total weight."""
    weights = _weights(given, set(ballots), judging=True)
    sums: dict[Pair, tuple[int, int, int]] = {}
    for seat, judgements in ballots.items():
        for pair, log_odds in preferences(judgements).items():
            total, weight, judges = sums.get(pair, (0, 0, 0))
            evidence = _evidence_micro(log_odds, given.fold)
            sums[pair] = (total + weights[seat] * evidence, weight + abs(weights[seat]), judges + 1)
    means = {pair: (_ratio(total, weight) if weight else 0, judges) for pair, (total, weight, judges) in sums.items()}
    return means, sum(abs(weight) for weight in weights.values())


def preferences(judgements: Sequence[Judgement]) -> dict[tuple[int, int], int]:
    """A judge's log-odds (milli-nats) that the lower-numbered class of each pair wins; the mean where it was asked both ways."""
    asked: dict[tuple[int, int], list[int]] = {}
    for judgement in judgements:
        straight = judgement.first < judgement.second
        pair = (judgement.first, judgement.second) if straight else (judgement.second, judgement.first)
        asked.setdefault(pair, []).append(judgement.log_odds_milli if straight else -judgement.log_odds_milli)
    return {pair: _ratio(sum(values), len(values)) for pair, values in asked.items()}


def _evidence_micro(log_odds_milli: int, parameters: FoldParameters) -> int:
    """Between -500,000 and 500,000: probability above one half, or log-odds on the same range."""
    if parameters.evidence == "log_odds":
        return _ratio(log_odds_milli * 500_000, LOG_ODDS_CLAMP_MILLI)
    return (probability_milli(log_odds_milli) - 500) * 1000


def _mean_wins(index: int, standing: Sequence[int], pairs: Mapping[tuple[int, int], tuple[int, int]]) -> int:
    """The mean over the opponents it was judged against, centred, in millionths; 0 where it was not judged."""
    seen = [pairs[(index, other)][0] for other in standing if (index, other) in pairs]
    seen += [-pairs[(other, index)][0] for other in standing if (other, index) in pairs]
    return _ratio(sum(seen), len(seen)) if seen else 0


def _judge_row(seat: int, judgements: Sequence[Judgement]) -> JudgeRow:
    asked = {(judgement.first, judgement.second): judgement.log_odds_milli for judgement in judgements}
    both = [(odds, asked[pair[::-1]]) for pair, odds in asked.items() if pair[0] < pair[1] and pair[::-1] in asked]
    consistent = sum(odds * swapped <= 0 for odds, swapped in both)
    return JudgeRow(seat, len(asked) - len(both), len(both), consistent)


def _ratio(numerator: int, denominator: int) -> int:
    """Nearest whole number, halves away from zero, so that f(-x) is exactly -f(x); the denominator is positive."""
    magnitude = (2 * abs(numerator) + denominator) // (2 * denominator)
    return -magnitude if numerator < 0 else magnitude
