"""How sure a fold may be: the gain on its scores under which its confidence was right on gold. Pure, whole numbers."""

from collections.abc import Sequence
from typing import Annotated

import msgspec

from protocol.round.logistic import log_milli, softmax_first_milli

GAINS_MILLI = (200, 300, 400, 500, 600, 700, 850, 1000, 1200, 1400, 1700, 2000)

PRIOR_TRIALS = 8
"""Gold questions' worth of belief in a gain of 1000: a few right answers in a row must not make a fold certain."""

Trial = tuple[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], bool]
"""The winner's leads over the other classes (milli-nats, at a gain of 1000), and whether the winner was right."""


RANKED_PRIOR_MILLI, RANKED_PRIOR_TRIALS = 1400, 30
"""The same for arm `rank`: its ridge draws strengths together, so their leads say too little. At a gain of 1000 it said 64% of
verdicts on real prose and was right in 79%; a few questions are too few to learn that from."""


def prior_of(arm: str) -> tuple[int, int]:
    """The gain that an arm is taken to need before gold says anything, and as how many trials that counts."""
    return (RANKED_PRIOR_MILLI, RANKED_PRIOR_TRIALS) if arm == "rank" else (1000, PRIOR_TRIALS)


def gain_milli(trials: Sequence[Trial], arm: str) -> int:
    """The gain of GAINS_MILLI of least log loss on an arm's `trials`; its prior's without any. Weights must not have seen their
    trial."""
    expected, strength = prior_of(arm)

    def loss(gain: int) -> int:
        pull = strength * log_milli(max(gain, expected), min(gain, expected)) ** 2 // 1000
        return pull + sum(_loss_milli(confidence_milli(leads, gain), right) for leads, right in trials)

    return min(GAINS_MILLI, key=lambda gain: (loss(gain), abs(gain - expected)))


def confidence_milli(leads: Sequence[int], gain: int) -> int:
    """Thousandths of probability that the winner is right, its leads scaled by `gain`."""
    return softmax_first_milli([lead * gain // 1000 for lead in leads])


def _loss_milli(confidence: int, right: bool) -> int:
    said = confidence if right else 1000 - confidence
    return log_milli(1000, min(990, max(10, said)))
