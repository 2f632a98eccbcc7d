"""Which pairs of classes a judge compares, in which order. Decides the questions, never their wording or their weight.

Everyone can repeat a judge's plan, so a ballot that judges other pairs, or picks the order it likes, does not count. An active
plan has two parts: what the judge says of the first decides which pairs are left that could decide.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

from protocol.round.ballots import preferences
from protocol.round.classes import AnswerClass
from protocol.round.fold import Voice
from protocol.round.logistic import probability_milli
from protocol.round.messages import MAX_JUDGED_CLASSES, FoldParameters, Judgement
from protocol.wire.ids import Hash, PeerId, sha256

SWAPPED_SHARE = 4
"""One pair in four is asked both ways round: measured on 8000 real judgements, swapping every pair buys no more than asking new
pairs, and a quarter is enough to measure how consistent a judge is."""

CLOSING_PAIRS = 2
"""Pairs that an active plan asks after its opening half: of the two classes in front, and of one of them with the third."""

_LOGISTIC_SLOPE_MILLI = 4_000
"""Log-odds are some four times a probability's distance from one half."""


def contenders(classes: Sequence[AnswerClass], fold: FoldParameters) -> int:
    """How many of the heaviest classes are judged: `judged_classes`, and further ones of exactly the last one's weight (where all
    answers differ, none may be left out by chance), while every pair of them still fits the judges' bound of 9 classes."""
    count = min(len(classes), fold.judged_classes)
    while count < min(len(classes), MAX_JUDGED_CLASSES) and classes[count].weight_micro == classes[count - 1].weight_micro:
        count += 1
    return count


def judge_plan(
    round_id: Hash, judge: tuple[PeerId, int], classes: Sequence[AnswerClass], fold: FoldParameters
) -> tuple[tuple[int, int], ...]:
    """The (first, second) classes that `judge` (its id and seat) is shown first, in order; may be empty.

    At most `pairs_per_judge` distinct pairs, or half of them where the plan is active, and a quarter of them swapped. Where there
    are more pairs than that, each judge's seed takes others, so together they cover all.
    """
    pairs, seed = _pairs(judge, classes, fold), _seed(round_id, judge)
    most = min(fold.pairs_per_judge, len(pairs))
    chosen = sorted(pairs, key=lambda pair: _ticket(seed, pair))[: -(-most // 2) if fold.active else most]
    shown = [_shown(seed, pair) for pair in chosen]
    swapped = [pair[::-1] for pair in shown[: -(-len(shown) // SWAPPED_SHARE)]]
    return tuple(shown + swapped)


def closing_plan(
    round_id: Hash,
    judge: tuple[PeerId, int],
    opening: Sequence[Judgement],
    classes: Sequence[AnswerClass],
    fold: FoldParameters,
    voices: Mapping[int, Voice],
) -> tuple[tuple[int, int], ...]:
    """What an active plan goes on with: of the pairs not yet asked the first CLOSING_PAIRS among the three classes that would be
    in front if all judges said what this one said in its `opening`; none where the plan is not active."""
    if not fold.active:
        return ()
    asked = {tuple(sorted((judgement.first, judgement.second))) for judgement in opening}
    pairs = _pairs(judge, classes, fold)
    left = set(pairs) - asked
    standing = _standing(opening, classes, fold, voices)
    front = sorted({index for pair in pairs for index in pair}, key=lambda index: (-standing[index], index))[:3]
    wanted = [pair for pair in (tuple(sorted(pair)) for pair in combinations(front, 2)) if pair in left]
    return tuple(_shown(_seed(round_id, judge), (a, b)) for a, b in wanted[: min(CLOSING_PAIRS, fold.pairs_per_judge // 2)])


def _standing(
    opening: Sequence[Judgement], classes: Sequence[AnswerClass], fold: FoldParameters, voices: Mapping[int, Voice]
) -> list[int]:
    """Scores of the classes, in millionths of a nat, as the fold would have them if all judges agreed with `opening`."""
    if fold.arm == "rank" and all(len(found.seats) < 2 for found in classes):
        expected = [voices[found.seats[0]].strength_milli for found in classes]
        judging = _LOGISTIC_SLOPE_MILLI
    else:
        expected = [found.weight_micro // 1000 for found in classes]
        judging = sum(abs(voice.judge_weight_milli) for voice in voices.values())
    wins: list[list[int]] = [[] for _ in classes]
    for (a, b), odds in preferences(opening).items():
        wins[a].append(probability_milli(odds) - 500)
        wins[b].append(500 - probability_milli(odds))
    return [1000 * prior + judging * (sum(won) // len(won) if won else 0) for prior, won in zip(expected, wins, strict=True)]


def _pairs(judge: tuple[PeerId, int], classes: Sequence[AnswerClass], fold: FoldParameters) -> list[tuple[int, int]]:
    own = {index for index, found in enumerate(classes) if found.seats == (judge[1],) and not fold.own_pairs}
    return [pair for pair in combinations(range(contenders(classes, fold)), 2) if not own & set(pair)]


def _seed(round_id: Hash, judge: tuple[PeerId, int]) -> Hash:
    return sha256(b"swarmd/1/round/plan", round_id, judge[0].encode())


def _ticket(seed: Hash, pair: tuple[int, int]) -> Hash:
    return sha256(seed, bytes(pair))


def _shown(seed: Hash, pair: tuple[int, int]) -> tuple[int, int]:
    return pair if _ticket(seed, pair)[-1] & 1 else pair[::-1]
