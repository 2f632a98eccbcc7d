"""How good a peer is at something, computed when asked from the claims that are held. Pure; gives numbers, takes no decision.

Own observations come first. Two peers that hold the same claims may score a third one differently, on purpose: each trusts what
it saw itself, and others as far as they were right about what it saw itself. The same reader, claims and time give the
same numbers.
"""

from dataclasses import dataclass
from math import isqrt

from crdt_store.evidence import MILLI, Ledger
from crdt_store.outcomes import Forked, Outcome
from crdt_store.testimony import DECAY_STEPS, Bench, Weighed, weigh
from crdt_store.witnesses import Witnesses
from protocol.wire.ids import PeerId

MAX_CACHED = 65_536
"""Weighed records kept for the next reader; all are forgotten when there are more."""

MAX_KIN = 8
"""Other skills looked at for one that lacks evidence."""

_Z90_MILLI = 1_645


@dataclass(frozen=True, slots=True)
class Parameters:
    """`half_life_ms`: evidence this old weighs half. `window`: trials of a full record; newer ones push older ones out, so that
    a bad past is outlived no slower than a new key earns its dues.
    """

    half_life_ms: int = 14 * 24 * 3_600_000
    window: int = 50
    prior_right: int = 1
    prior_wrong: int = 3
    """Trials that everybody starts with, in their disfavour: an unknown peer's mean is 0.25."""
    borrowed_milli: int = 500
    """Milli trials that a peer's record in its other skills stands in for, where there is less evidence of this one: an eighth of
    the prior."""
    newcomer_milli: int = 20
    """The weight of a peer that nothing is known of, and the least of all weights: a new key weighs no more than an old one."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Weighed evidence in thousandths of a trial; together at most a window and a tenth of one."""

    right_milli: int
    wrong_milli: int


@dataclass(frozen=True, slots=True)
class Score:
    """`mean_milli` with its 90% interval, 0 to 1000: the share of trials that go right. `weight_milli`, 20 to 1000, is what the
    peer has earned: the share of a full window of trials that it did right, where a trial that is missing counts as wrong. It is
    0 for a peer that signed two histories, which needs a new key.
    """

    mean_milli: int
    low_milli: int
    high_milli: int
    weight_milli: int


@dataclass(frozen=True, slots=True)
class _Cached:
    stamps: tuple[int, int]
    weighed: Weighed


class Scores:
    """Scores of every peer as `me` sees them. `observe` is constant work for a claim of another; a read works on what changed."""

    def __init__(self, me: PeerId, parameters: Parameters | None = None) -> None:
        self.me = me
        self.parameters = parameters or Parameters()
        self.ledger = Ledger(max(1, self.parameters.half_life_ms // DECAY_STEPS))
        self.witnesses = Witnesses(me, self.ledger)
        self._cache: dict[tuple[PeerId, str, int], _Cached] = {}

    def observe(self, outcome: Outcome) -> None:
        """Take what the replica did with a claim or a proof."""
        self.ledger.observe(outcome)
        if isinstance(outcome, Forked):
            self.witnesses.freeze(outcome.fork.issuer)

    def tally(self, subject: PeerId, skill: str, now_ms: int) -> Tally:
        """The weighed evidence of what `subject` did right and wrong in `skill`; what it did in other skills is not in it."""
        weighed = self.weighed(subject, skill, now_ms)
        return Tally(0, 0) if weighed is None else Tally(weighed.right, weighed.wrong)

    def score(self, subject: PeerId, skill: str, now_ms: int) -> Score:
        """What to expect of `subject` in `skill`."""
        p = self.parameters
        tally = self.tally(subject, skill, now_ms)
        seen = tally.right_milli + tally.wrong_milli
        kin_right, kin_wrong = self._borrowed(subject, skill, now_ms, p.borrowed_milli - seen)
        right = tally.right_milli + kin_right + p.prior_right * MILLI
        total = right + tally.wrong_milli + kin_wrong + p.prior_wrong * MILLI
        mean = right * MILLI // total
        spread = _Z90_MILLI * isqrt(mean * (MILLI - mean) * MILLI // (total + MILLI)) // MILLI
        weight = (tally.right_milli + kin_right) * MILLI // max(p.window * MILLI, seen)
        weight = 0 if subject in self.ledger.frozen else max(p.newcomer_milli, weight)
        return Score(mean, max(0, mean - spread), min(MILLI, mean + spread), weight)

    def weighed(self, subject: PeerId, skill: str, now_ms: int) -> Weighed | None:
        """The evidence behind a tally, witness by witness; None where there is none."""
        if self.ledger.touched:
            self.witnesses.settle()
        cell = self.ledger.cell(subject, skill)
        if cell is None:
            return None
        stamps = (cell.stamp, self.witnesses.stamp)
        step = self.ledger.step_of(now_ms)
        cached = self._cache.get((subject, skill, step))
        if cached is None or cached.stamps != stamps:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            bench = Bench(self.me, self.witnesses.weight, self.witnesses.total)
            cached = _Cached(stamps, weigh(cell, bench, step, self.parameters.window))
            self._cache[subject, skill, step] = cached
        return cached.weighed

    def _borrowed(self, subject: PeerId, skill: str, now_ms: int, lacking: int) -> tuple[int, int]:
        """What the records in skills of the same kind lend to one that lacks evidence: milli trials right and wrong."""
        if lacking <= 0:
            return 0, 0
        tallies = [self.tally(subject, kin, now_ms) for kin in self.ledger.kin(subject, skill, MAX_KIN)]
        total = sum(tally.right_milli + tally.wrong_milli for tally in tallies)
        right = sum(tally.right_milli for tally in tallies)
        lent = min(total, lacking)
        return (lent * right // total, lent * (total - right) // total) if total else (0, 0)
