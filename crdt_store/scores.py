"""How good a peer is at something, computed when asked from the claims that are held. Pure; gives numbers, takes no decision.

Own observations come first. Two peers that hold the same claims may score a third one differently, on purpose: each trusts what
it saw itself, and others as far as they were right about what it saw itself. The same reader, claims and time give the
same numbers.
"""

from dataclasses import dataclass
from math import isqrt

from crdt_store.evidence import Cell, Ledger
from crdt_store.replica import Outcome
from protocol.wire.ids import PeerId

MILLI = 1_000


@dataclass(frozen=True, slots=True)
class Parameters:
    """`half_life_ms`: evidence this old weighs half. `window` is the number of trials that a full record has: newer ones push
    older ones out, so that a bad past can be outlived as fast as a fresh start, and never slower.
    """

    half_life_ms: int = 14 * 24 * 3_600_000
    window: int = 50
    prior_right: int = 1
    prior_wrong: int = 3
    """Trials that everybody starts with, in their disfavour: an unknown peer's mean is 0.25."""
    newcomer_milli: int = 20
    """The weight of a peer that nothing is known of, and the least of all weights: a new key weighs no more than an old one."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Weighed evidence in thousandths of a trial, at most a full window of it."""

    right_milli: int
    wrong_milli: int


@dataclass(frozen=True, slots=True)
class Score:
    """`mean_milli` with its 90% interval, 0 to 1000: the share of trials that go right. `weight_milli`, 20 to 1000, is what the
    peer has earned: the share of a full window of trials that it did right, where a trial that is missing counts as wrong.
    """

    mean_milli: int
    low_milli: int
    high_milli: int
    weight_milli: int


class Scores:
    """Scores of every peer as `me` sees them."""

    def __init__(self, me: PeerId, parameters: Parameters | None = None) -> None:
        self._me = me
        self.parameters = parameters or Parameters()
        self._step_ms = max(1, self.parameters.half_life_ms // 56)
        self.ledger = Ledger(self._step_ms)

    def observe(self, outcome: Outcome) -> None:
        """Take what the replica did with a claim or a proof."""
        self.ledger.observe(outcome)

    def tally(self, subject: PeerId, skill: str, now_ms: int) -> Tally:
        """The weighed evidence of what `subject` did right and wrong in `skill`."""
        cell = self.ledger.cell(subject, skill)
        return Tally(0, 0) if cell is None else self._weigh(cell, now_ms)

    def score(self, subject: PeerId, skill: str, now_ms: int) -> Score:
        """What to expect of `subject` in `skill`."""
        tally = self.tally(subject, skill, now_ms)
        right = tally.right_milli + self.parameters.prior_right * MILLI
        total = right + tally.wrong_milli + self.parameters.prior_wrong * MILLI
        mean = right * MILLI // total
        spread = isqrt(1645**2 * mean * (MILLI - mean) // (total + MILLI)) // 31
        weight = tally.right_milli // self.parameters.window
        return Score(mean, max(0, mean - spread), min(MILLI, mean + spread), max(self.parameters.newcomer_milli, weight))

    def _weigh(self, cell: Cell, now_ms: int) -> Tally:
        right = wrong = 0
        now = self.ledger.step_of(now_ms)
        limit = self.parameters.window * MILLI
        for step in reversed(cell.order):
            if step > now:
                continue
            decay = MILLI * MILLI // (MILLI + (now - step) * MILLI // 56)
            for issuer, (good, bad) in cell.steps[step].items():
                share = decay if issuer == self._me else decay // 10
                right += good * share
                wrong += bad * share
            if right + wrong >= limit:
                return Tally(right * limit // (right + wrong), wrong * limit // (right + wrong))
        return Tally(right, wrong)
