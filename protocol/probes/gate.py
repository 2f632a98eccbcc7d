"""Who may judge: a lower bound on a judge's accuracy from its right and wrong gold judgements. Pure, and in whole numbers.

Called by `protocol/round/weights.py` for each candidate's `judge.TOPIC` tally, before its judging weight is worked out.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Literal

MILLI = 1_000

Standing = Literal["newcomer", "admitted", "refused"]


@dataclass(frozen=True, slots=True)
class Gate:
    """A judge is admitted where its accuracy is at least `floor_milli` by a one-sided Wilson bound of `z_milli` standard errors.

    842 is 80% confidence, 1282 is 90%, 1645 is 95%. With less than `least_milli` thousandths of a trial it is a newcomer, whatever
    they say, and is weighed as one; the same while its interval holds the floor: neither is known to be good, nor bad.
    """

    floor_milli: int = 700
    z_milli: int = 842
    least_milli: int = 5_000


def wilson_milli(right_milli: int, wrong_milli: int, z_milli: int) -> tuple[int, int]:
    """Bounds of a share, in thousandths, from weighed trials in thousandths (Wilson 1927): 0 and 1000 where there are none."""
    trials = right_milli + wrong_milli
    if trials <= 0:
        return 0, MILLI
    # (2np + z^2 -+ z sqrt(z^2 + 4npq)) / 2(n + z^2), each term in millionths.
    square = z_milli * z_milli
    centre = 2 * right_milli * MILLI + square
    half = z_milli * isqrt(square + 4 * right_milli * wrong_milli * MILLI // trials)
    whole = 2 * (trials * MILLI + square)
    return max(0, (centre - half) * MILLI // whole), min(MILLI, (centre + half) * MILLI // whole)


def standing(right_milli: int, wrong_milli: int, gate: Gate = Gate()) -> Standing:  # noqa: B008 - frozen
    """Whether a judge of this tally is admitted, refused, or not known well enough yet."""
    if right_milli + wrong_milli < gate.least_milli:
        return "newcomer"
    low, high = wilson_milli(right_milli, wrong_milli, gate.z_milli)
    if low >= gate.floor_milli:
        return "admitted"
    return "refused" if high < gate.floor_milli else "newcomer"
