"""Many contributions to one result, the same bits in any order. Decides the winner, checks nothing.

Arm `fuse` (a majority is its case without judges):
    S_c = vote_gain * sum of the weights of c's voters
        + judge_gain * (sum of |judge weights|) * mean over opponents o of C(c, o)
    C(c, o) = sum over judges of weight * (P(c beats o) - 1/2), over the sum of their |weights|
P is the logistic function of a judge's clamped log-odds (both orders averaged first, which cancels a taste for the first place);
a judge of negative weight counts by its opposite. Weights are log-odds, so scores are too, and the confidence is the softmax of
their leads, scaled by the gain under which it was right on gold.
Averaging within a pair before summing keeps a class that fewer judges saw from being scaled down. Where twelve judges or more
saw one, a twentieth of the weight at each end of their opinions is left out.

Arm `rank`: where no two answers are equal, ridge Bradley-Terry over the judges' evidence, in which each answer is drawn to what
is expected of its author; votes are left out. Else as `fuse`.
Arm `best`: the answer of the member of most answer weight.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from math import floor
from typing import Annotated, Literal

import msgspec

from protocol.round.ballots import Heard, PairSums, PairTable, ratio
from protocol.round.bradley_terry import Matches, strengths_milli
from protocol.round.calibration import confidence_milli
from protocol.round.classes import AnswerClass, tie_break, voices
from protocol.round.messages import Candidate, FoldParameters, Judgement
from protocol.round.weights import WRONG_WAYS
from protocol.wire.codec import Message, encode
from protocol.wire.ids import Hash, HashField, sha256

Basis = Literal["unanimous", "votes", "judged", "ranked", "best"]
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
    """A seat's weights in this round, in milli-nats, and the configuration (or block) it shares a voice with."""

    answer_weight_milli: int
    judge_weight_milli: int
    config_digest: bytes
    favourite_weight_milli: int | None = None
    strength_milli: int = 0

    @classmethod
    def of(cls, candidate: Candidate) -> "Voice":
        """What a header says of a candidate."""
        shared = sha256(b"swarmd/1/round/block", bytes([candidate.block])) if candidate.block else candidate.config_digest
        return cls(
            candidate.answer_weight_milli,
            candidate.judge_weight_milli,
            shared,
            candidate.favourite_weight_milli,
            candidate.strength_milli,
        )


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


def votes_micro(table: Mapping[int, Voice], seats: Iterable[int], one_voice: bool) -> dict[int, int]:
    """What the vote of each of `seats` counts for, in millionths."""
    milli = {seat: table[seat].answer_weight_milli for seat in seats}
    return voices(milli, {seat: table[seat].config_digest for seat in milli}, one_voice)


def verdict_hash(result: Result) -> Hash:
    """The address of a result."""
    return sha256(b"swarmd/1/round/result", encode(result))


def fold(given: Contributions) -> Result:
    """The result, whatever the order in which contributions came. Needs at least one class with a seat that is not dropped."""
    dropped = set(given.dropped)
    count = len(given.classes)
    members = [found.seats for found in given.classes]
    if dropped:
        members = [tuple([seat for seat in seats if seat not in dropped]) for seats in members]
    votes = _votes(given, {seat for seats in members for seat in seats})
    judged, judge_total, heard = _judged(given, [seat for seat in sorted(given.ballots) if seat not in dropped])
    standing = [index for index, seats in enumerate(members) if seats]
    vote_micro = [sum(map(votes.__getitem__, seats)) for seats in members]
    wins = _mean_wins(count, standing, judged)
    ranked = given.fold.arm == "rank" and bool(judged.first) and all(len(seats) < 2 for seats in members)
    scores = _ranked(given, judged, judge_total, len(heard)) if ranked else _scores(given, vote_micro, wins, judge_total)
    order = _ordered(given, standing, scores)
    places = [count] * count
    for place, index in enumerate(order, 1):
        places[index] = place
    winner, basis = order[0], _basis(given, bool(judged.first), ranked)
    leads = _leads([scores[index] for index in order], basis)
    texts = [found.address for found in given.classes]
    return Result(
        round=given.round,
        strategy=given.strategy,
        basis=basis,
        classes=tuple(map(ClassRow, texts, members, vote_micro, _wins_milli(wins), scores, places)),
        pairs=tuple(map(PairRow, judged.first, judged.second, judged.judges, _wins_milli(judged.centred_micro))),
        judges=tuple([JudgeRow(seat, *said) for seat, said in heard.items()]),
        aborted=tuple(sorted(given.aborted)),
        dropped=tuple(sorted(given.dropped)),
        winner=winner,
        winner_seat=members[winner][0],
        confidence_milli=confidence_milli(leads, given.fold.confidence_gain_milli),
    )


def leads_milli(result: Result) -> tuple[int, ...]:
    """What the winner leads by, in milli-nats: over each other class, and over each wrong answer that nobody gave."""
    standing = [row.score_micro for index, row in enumerate(result.classes) if row.seats and index != result.winner]
    return _leads([result.classes[result.winner].score_micro, *standing], result.basis)


def _leads(scores: Sequence[int], basis: Basis) -> tuple[int, ...]:
    """`scores` with the winner's first. An answer that nobody gave scores 0 and may be the right one: without it, a single voice
    would be certain. Where judges rank prose, the best of what there is, is asked for."""
    best = scores[0]
    unsaid = 0 if basis == "ranked" else max(1, WRONG_WAYS + 1 - len(scores))
    return (*[(best - score) // 1000 for score in scores[1:]], *(max(0, best // 1000),) * unsaid)


def _ordered(given: Contributions, standing: Sequence[int], scores: Sequence[int]) -> list[int]:
    """The classes by score, the best first; only those that tie need more."""
    score_of = scores.__getitem__

    def ties(index: int) -> Hash:
        return tie_break(given.round, given.classes[index].key)

    order = sorted(standing, key=score_of, reverse=True)
    if len({*map(score_of, order)}) == len(order):
        return order
    tied = [[*run] for _, run in groupby(order, score_of)]
    return [index for run in tied for index in (run if len(run) == 1 else sorted(run, key=ties))]


def _basis(given: Contributions, judged: bool, ranked: bool) -> Basis:
    if len(given.classes) == 1:
        return "unanimous"
    if given.fold.arm == "best":
        return "best"
    if not judged:
        return "votes"
    return "ranked" if ranked else "judged"


def _votes(given: Contributions, seats: set[int]) -> dict[int, int]:
    """What each vote counts for, in millionths; for arm `best` nothing but those of the most weight do."""
    counted = votes_micro(given.voices, seats, given.fold.one_voice)
    if given.fold.arm != "best":
        return counted
    most = max((given.voices[seat].answer_weight_milli for seat in seats), default=0)
    return {seat: count if given.voices[seat].answer_weight_milli == most else 0 for seat, count in counted.items()}


def _judged(given: Contributions, seats: Sequence[int]) -> tuple[PairTable, int, dict[int, Heard]]:
    """What the judges of `seats` say of each pair, the weight of all of them, and how many pairs each was asked."""
    chosen = {seat: given.voices[seat] for seat in seats}
    digests = {seat: voice.config_digest for seat, voice in chosen.items()}
    plain = {seat: voice.judge_weight_milli for seat, voice in chosen.items()}
    apart = {seat: weight for seat, voice in chosen.items() if (weight := voice.favourite_weight_milli) is not None}
    others = voices(plain, digests, given.fold.one_voice)
    favourites = voices(plain | apart, digests, given.fold.one_voice) if apart else others
    sums = PairSums(len(given.classes), given.fold)
    heard = {seat: sums.add(favourites[seat], others[seat], given.ballots[seat]) for seat in seats}
    return sums.table(), sum(map(max, map(abs, favourites.values()), map(abs, others.values()))), heard


def _scores(given: Contributions, vote_micro: Sequence[int], centred: Sequence[int], judge_total: int) -> list[int]:
    gains = given.fold
    if gains.arm == "best":
        return list(vote_micro)
    return [
        (gains.vote_gain_milli * vote + ratio(gains.judge_gain_milli * judge_total * win, 1_000_000)) // 1000
        for vote, win in zip(vote_micro, centred, strict=True)
    ]


def _ranked(given: Contributions, judged: PairTable, judge_total: int, judges: int) -> list[int]:
    """Bradley-Terry strengths in millionths of a nat, a judgement as heavy as the mean judge; what was not judged comes last."""
    means = [given.voices[found.seats[0]].strength_milli for found in given.classes]
    judgement = max(1, judge_total) / judges
    strengths = strengths_milli(means, Matches(judged.first, judged.second, judged.weight, judged.lead), judgement)
    lowest, gain = min(compress(strengths, judged.met)) - 1000, given.fold.judge_gain_milli
    return [(strength if met else lowest) * gain for strength, met in zip(strengths, judged.met, strict=True)]


def _wins_milli(centred_micro: Sequence[float]) -> list[int]:
    """Chances in thousandths for centred ones in millionths, rounded as by `ratio`."""
    return [floor(centred * 0.001 + (500.5001 if centred >= 0.0 else 500.4999)) for centred in centred_micro]


def _mean_wins(count: int, standing: Sequence[int], judged: PairTable) -> list[int]:
    """Of each class the mean over the opponents it was judged against, centred, in millionths; 0 where it was not judged."""
    sums, met = list(judged.wins_micro), list(judged.met)
    if len(standing) < count:  # what was said of a class without a seat counts for nobody else
        gone = set(range(count)).difference(standing)
        for a, b, centred in zip(judged.first, judged.second, judged.centred_micro, strict=True):
            if b in gone:
                sums[a] -= centred
                met[a] -= 1
            if a in gone:
                sums[b] += centred
                met[b] -= 1
    return [ratio(int(total), opponents) if opponents else 0 for total, opponents in zip(sums, met, strict=True)]
