"""What ballots show of their judges: how far each prefers its own answer beyond what others see in it. Decides nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.round.ballots import preferences
from protocol.round.logistic import probability_milli
from protocol.round.messages import Judgement


@dataclass(frozen=True, slots=True)
class SelfPreference:
    """Over `pairs` that hold the judge's own answer and that others judged too: the mean chance (thousandths) that it gives its
    own answer, and that the others give that one. Others of the same answer are left out."""

    pairs: int
    own_milli: int
    others_milli: int


def self_preference(seat: int, ballots: Mapping[int, Sequence[Judgement]], class_of: Mapping[int, int]) -> SelfPreference | None:
    """None where the judge of this seat judged no pair with its own answer that another judge saw."""
    own = class_of.get(seat)
    told = {judge: preferences(said) for judge, said in ballots.items() if judge == seat or class_of.get(judge) != own}
    mine: list[int] = []
    theirs: list[int] = []
    for pair, odds in told.get(seat, {}).items():
        others = [said[pair] for judge, said in told.items() if judge != seat and pair in said]
        if own in pair and others:
            sign = 1 if pair[0] == own else -1
            mine.append(probability_milli(sign * odds))
            theirs.append(sum(probability_milli(sign * other) for other in others) // len(others))
    return SelfPreference(len(mine), sum(mine) // len(mine), sum(theirs) // len(theirs)) if mine else None
