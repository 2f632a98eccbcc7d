"""How far to believe what each issuer says of others: by how it agreed with what we saw ourselves, and by nothing else.

No issuer is believed because others believe it, so a ring that vouches for itself gains nothing here. One step of trust only:
what we saw, and who described it as we saw it. Pure and incremental.
"""

from crdt_store.evidence import MILLI, TOLERANCE_MILLI, Ledger, Sums, deviation
from protocol.wire.ids import PeerId

STRANGER_MILLI = 50
"""The weight of a witness that never spoke of what we saw, and the least of all: a liar gains nothing by a new key."""

FAMILIAR_TRIALS = 20
"""Shared trials after which a witness that agreed weighs half; and the most that one subject and skill can add to them."""

_LIE_MILLI = 150
"""A mean difference beyond chance that costs a witness everything."""


class Witnesses:
    """Weights of issuers, in thousandths, kept up to date from what the ledger says was touched."""

    def __init__(self, me: PeerId, ledger: Ledger) -> None:
        self._me = me
        self._ledger = ledger
        self._terms: dict[tuple[PeerId, str], dict[PeerId, tuple[int, int]]] = {}
        self._sums: dict[PeerId, list[int]] = {}
        self._weights: dict[PeerId, int] = {}
        self.total = 0
        """The weights of all that are no strangers."""
        self._excluded: set[PeerId] = set()
        self.stamp = 0
        """Changes whenever a weight does."""

    def weight(self, issuer: PeerId) -> int:
        """50 to 1000, for an issuer other than ourselves; 0 for one that signed two histories. Call `settle` first."""
        return self._weights.get(issuer, STRANGER_MILLI)

    def freeze(self, issuer: PeerId) -> None:
        """Believe nothing of an issuer that the ledger has just frozen."""
        self._weigh(issuer)

    def exclude(self, issuer: PeerId) -> None:
        """Believe nothing of an issuer that a private mesh has removed, whenever it said it."""
        self._excluded.add(issuer)
        self._weigh(issuer)

    def shared(self, issuer: PeerId) -> tuple[int, int]:
        """Trials that the issuer and we both know of, and the mean difference beyond chance in milli."""
        trials, excess = self._sums.get(issuer, (0, 0))
        return trials, excess // trials if trials else 0

    def settle(self) -> None:
        """Take in what changed since the last time: constant work for a claim of another, work per issuer for one of ours."""
        touched = self._ledger.touched
        changed: dict[PeerId, None] = {}
        for subject, skill, issuer in touched:
            key = (subject, skill)
            cell = self._ledger.cell(subject, skill)
            totals = {} if cell is None else cell.totals
            own = totals.get(self._me)
            if issuer == self._me:
                names = dict.fromkeys([*totals, *self._terms.get(key, ())])
            elif own is not None or key in self._terms:
                names = {issuer: None}
            else:
                continue
            for name in names:
                if name not in (self._me, subject):
                    self._set(key, name, _term(own, totals.get(name)))
                    changed[name] = None
        touched.clear()
        for name in changed:
            self._weigh(name)

    def _set(self, key: tuple[PeerId, str], issuer: PeerId, term: tuple[int, int]) -> None:
        terms = self._terms.setdefault(key, {})
        before = terms.pop(issuer, (0, 0))
        if term != (0, 0):
            terms[issuer] = term
        if not terms:
            del self._terms[key]
        sums = self._sums.setdefault(issuer, [0, 0])
        sums[0] += term[0] - before[0]
        sums[1] += term[1] - before[1]
        if sums == [0, 0]:
            del self._sums[issuer]

    def _weigh(self, issuer: PeerId) -> None:
        trials, error = self.shared(issuer)
        honest = max(0, _LIE_MILLI - error)
        weight = MILLI * trials * honest // ((trials + FAMILIAR_TRIALS) * _LIE_MILLI)
        weight = max(STRANGER_MILLI, weight // STRANGER_MILLI * STRANGER_MILLI)  # coarse, so that a claim seldom moves all scores
        if issuer in self._ledger.frozen or issuer in self._excluded:
            weight = 0
        before = self._weights.pop(issuer, STRANGER_MILLI)
        if weight != STRANGER_MILLI:
            self._weights[issuer] = weight
        if weight != before:
            self.stamp += 1
            self.total += weight * (weight > STRANGER_MILLI) - before * (before > STRANGER_MILLI)


def _term(own: Sums | None, other: Sums | None) -> tuple[int, int]:
    """Shared trials of one subject and skill, and their excess of difference: (trials, trials times milli)."""
    if own is None or other is None:
        return 0, 0
    gap, sigma = deviation(own, other)
    trials = min(sum(own), sum(other), FAMILIAR_TRIALS)
    return trials, trials * max(0, gap - 2 * sigma - TOLERANCE_MILLI)
