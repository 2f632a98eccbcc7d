"""What each claim proves of its subject, kept as sums that grow and shrink with the replica. Weighs nothing and trusts nobody.

A trial is one thing that the subject did right or wrong. Sums are kept by subject, skill, step of time and issuer, so that a
claim is added or taken out in constant time, and what is taken out (a retired epoch, a fork) leaves no trace.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field

from crdt_store.claims import Claim, Kind
from crdt_store.replica import Forked, Inserted, Outcome
from protocol.wire.ids import PeerId

SERVICE = "service"
"""The skill that calls, rounds and verified outputs are evidence of: doing what was accepted. No probe counts for it."""

GENERAL = "general"
"""The skill of a probe that names none."""

JUDGING = "judge."
"""In front of a skill: judging answers to its questions (protocol/skills.py says the same)."""

MAX_COUNT = 1_000
"""Trials in one claim."""

REFUTED_TRIALS = 10
"""Wrong trials that one refuted output counts for. An honest peer is refuted once in a hundred checks, which leaves it at 0.9."""

_COUNTED = {Kind.PROBE_PASSED, Kind.PROBE_FAILED, Kind.CALLS_SERVED, Kind.CALLS_FAILED}
_RIGHT = {Kind.CALL_SERVED, Kind.CALLS_SERVED, Kind.ROUND_TOOK_PART, Kind.OUTPUT_VERIFIED, Kind.PROBE_PASSED}
_WRONG = {Kind.CALL_FAILED, Kind.CALLS_FAILED, Kind.ROUND_ABORTED, Kind.OUTPUT_REFUTED, Kind.PROBE_FAILED}

Trials = tuple[str, int, int]
"""A skill, how often right, how often wrong."""


def trials_of(claim: Claim) -> Trials | None:
    """What a claim proves; None where it proves nothing of a skill.

    To have won a round proves nothing: agreement with the swarm is what the swarm's colluders give each other. Nor does what a
    peer says of itself.
    """
    if claim.issuer == claim.subject or claim.kind not in _RIGHT | _WRONG:
        return None
    count = 1
    if claim.kind in _COUNTED:
        if not 1 <= claim.value <= MAX_COUNT:
            return None
        count = claim.value
    elif claim.kind == Kind.OUTPUT_REFUTED:
        count = REFUTED_TRIALS
    skill = SERVICE
    if claim.kind in (Kind.PROBE_PASSED, Kind.PROBE_FAILED):
        skill = claim.skill or GENERAL
        if skill == SERVICE:
            return None
    return (skill, count, 0) if claim.kind in _RIGHT else (skill, 0, count)


def family_of(skill: str) -> str | None:
    """The name under which a skill's trials are summed with those of its kin; None for service, which has none."""
    if skill == SERVICE:
        return None
    return "*judge" if skill.startswith(JUDGING) else "*answer"  # "*" cannot be in a claim's skill


@dataclass(slots=True)
class Cell:
    """The evidence about one subject and skill: by step of time, by issuer, [right, wrong]. `stamp` changes with it."""

    steps: dict[int, dict[PeerId, list[int]]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    """Ascending, as the keys of `steps`."""
    totals: dict[PeerId, list[int]] = field(default_factory=dict)
    """By issuer over all steps: [right, wrong]."""
    stamp: int = 0


Key = tuple[PeerId, str]
"""Subject and skill."""


class Ledger:
    """Sums of all claims that a replica holds. Feed it every outcome of the replica, in any order that the replica allows."""

    def __init__(self, step_ms: int) -> None:
        """`step_ms`: claims of one such span of time are as old as each other."""
        self._step_ms = step_ms
        self._cells: dict[Key, Cell] = {}
        self._logs: dict[PeerId, dict[int, dict[tuple[PeerId, str, int], list[int]]]] = {}
        self._skills: dict[PeerId, dict[str, None]] = {}
        self.frozen: dict[PeerId, int] = {}
        """Issuers that signed two histories, and the epoch from which nothing of theirs stands."""
        self.touched: dict[tuple[PeerId, str, PeerId], None] = {}
        """(subject, skill, issuer) of every sum that changed since a reader cleared it."""

    def observe(self, outcome: Outcome) -> None:
        """Take what the replica did with a claim or a proof."""
        if isinstance(outcome, Inserted):
            self._add(outcome.entry.claim)
            issuer = PeerId(outcome.entry.claim.issuer)
            for epoch in outcome.retired:
                self._drop(issuer, epoch)
        elif isinstance(outcome, Forked):
            fork = outcome.fork
            self.frozen[fork.issuer] = fork.epoch
            for epoch in [held for held in self._logs.get(fork.issuer, {}) if held >= fork.epoch]:
                self._drop(fork.issuer, epoch)

    def cell(self, subject: PeerId, skill: str) -> Cell | None:
        """The evidence about one subject and skill, or of one family of skills."""
        return self._cells.get((subject, skill))

    def subjects(self) -> tuple[PeerId, ...]:
        """Every peer that something is known of, sorted."""
        return tuple(sorted(self._skills))

    def skills(self, subject: PeerId) -> tuple[str, ...]:
        """Every skill that something is known of for a subject, sorted."""
        return tuple(sorted(self._skills.get(subject, ())))

    def step_of(self, time_ms: int) -> int:
        """The step of time in which `time_ms` (unix milliseconds) lies."""
        return time_ms // self._step_ms

    def _add(self, claim: Claim) -> None:
        trials = trials_of(claim)
        if trials is None:
            return
        skill, right, wrong = trials
        issuer, subject, step = PeerId(claim.issuer), PeerId(claim.subject), self.step_of(claim.time)
        self._move(issuer, (subject, skill, step), right, wrong)
        log = self._logs.setdefault(issuer, {}).setdefault(claim.epoch, {})
        sums = log.setdefault((subject, skill, step), [0, 0])
        sums[0] += right
        sums[1] += wrong

    def _drop(self, issuer: PeerId, epoch: int) -> None:
        for place, (right, wrong) in self._logs.get(issuer, {}).pop(epoch, {}).items():
            self._move(issuer, place, -right, -wrong)

    def _move(self, issuer: PeerId, place: tuple[PeerId, str, int], right: int, wrong: int) -> None:
        subject, skill, step = place
        family = family_of(skill)
        for name in (skill,) if family is None else (skill, family):
            cell = self._cells.get((subject, name))
            if cell is None:
                cell = self._cells[subject, name] = Cell()
                if name == skill:
                    self._skills.setdefault(subject, {})[skill] = None
            _move(cell, step, issuer, right, wrong)
            if not cell.totals:
                del self._cells[subject, name]
                self._skills.get(subject, {}).pop(name, None)
        self.touched[subject, skill, issuer] = None
        if subject in self._skills and not self._skills[subject]:
            del self._skills[subject]


def _move(cell: Cell, step: int, issuer: PeerId, right: int, wrong: int) -> None:
    at = cell.steps.get(step)
    if at is None:
        at = cell.steps[step] = {}
        insort(cell.order, step)
    for sums, name in ((at, issuer), (cell.totals, issuer)):
        pair = sums.setdefault(name, [0, 0])
        pair[0] += right
        pair[1] += wrong
        if pair == [0, 0]:
            del sums[name]
    if not at:
        del cell.steps[step]
        del cell.order[bisect_left(cell.order, step)]
    cell.stamp += 1
