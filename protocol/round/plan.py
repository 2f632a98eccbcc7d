"""Which pairs of classes a judge compares, in which order. Decides the questions, never their wording or their weight.

Everyone can repeat a judge's plan, so a ballot that judges other pairs, or picks the order it likes, does not count.
"""

from collections.abc import Sequence
from itertools import combinations

from protocol.round.classes import AnswerClass
from protocol.round.messages import MAX_JUDGED_CLASSES, FoldParameters
from protocol.wire.ids import Hash, PeerId, sha256

SWAPPED_SHARE = 4
"""One pair in four is asked both ways round: measured on 8000 real judgements, swapping every pair buys no more than asking new
pairs, and a quarter is enough to measure how consistent a judge is."""


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
    """The (first, second) classes that `judge` (its id and seat) is shown, in order; may be empty.

    At most `pairs_per_judge` distinct pairs and a quarter of them swapped. Where there are more pairs than that, each judge's
    seed takes others, so together they cover all.
    """
    peer_id, seat = judge
    own = {index for index, found in enumerate(classes) if found.seats == (seat,) and not fold.own_pairs}
    pairs = [pair for pair in combinations(range(contenders(classes, fold)), 2) if not own & set(pair)]
    seed = sha256(b"swarmd/1/round/plan", round_id, peer_id.encode())

    def ticket(pair: tuple[int, int]) -> Hash:
        return sha256(seed, bytes(pair))

    chosen = sorted(pairs, key=ticket)[: fold.pairs_per_judge]
    shown = [pair if ticket(pair)[-1] & 1 else pair[::-1] for pair in chosen]
    swapped = [pair[::-1] for pair in shown[: -(-len(shown) // SWAPPED_SHARE)]]
    return tuple(shown + swapped)
