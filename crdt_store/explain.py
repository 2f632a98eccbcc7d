"""Says where a score comes from, claim by claim: who said what, when, how far it is believed, what it adds. Changes nothing."""

from dataclasses import dataclass

from crdt_store.claims import Claim, Kind, SignedClaim
from crdt_store.evidence import MILLI, trials_of
from crdt_store.replica import Replica
from crdt_store.scores import Scores
from crdt_store.testimony import OWN_WORTH, Weighed, Witnessed
from crdt_store.witnesses import STRANGER_MILLI
from protocol.wire.ids import PeerId

MAX_LINES = 1_000
"""Claims explained at once, the newest ones."""

MAX_READ = 5_000
"""Claims read to find them (10 microseconds each, 28 out of a checkpoint); of each log the newest."""


@dataclass(frozen=True, slots=True)
class Line:
    """One claim about the subject. `skill` is what it counts for, "" for nothing; `right` and `wrong` are its trials.

    `weight_milli` is what a fresh trial of this issuer weighs in trials of our own (1000 for ours). `adds_right_milli` and
    `adds_wrong_milli` are what the claim adds to the tally, after age, caps and limits.
    """

    entry: SignedClaim
    own: bool
    skill: str
    right: int
    wrong: int
    weight_milli: int
    adds_right_milli: int
    adds_wrong_milli: int
    note: str


def explain(replica: Replica, scores: Scores, subject: PeerId, skill: str | None, now_ms: int) -> tuple[Line, ...]:
    """Every claim about `subject` that counts for `skill` (None: for any, and those that prove nothing), the newest first."""
    entries = _about(replica, scores, subject)
    lines = []
    told: dict[str, dict[PeerId, Witnessed]] = {}
    for entry in entries:
        trials = trials_of(entry.claim)
        if skill is not None and (trials is None or trials[0] != skill):
            continue
        if trials is None:
            lines.append(_proves_nothing(entry, scores.me))
        else:
            if trials[0] not in told:
                weighed = scores.weighed(subject, trials[0], now_ms) or Weighed(0, 0, ())
                told[trials[0]] = {one.issuer: one for one in weighed.said}
            step = scores.ledger.step_of(entry.claim.time)
            one = told[trials[0]].get(PeerId(entry.claim.issuer))
            lines.append(_line(entry, trials, one, step, step > scores.ledger.step_of(now_ms), scores))
        if len(lines) >= MAX_LINES:
            break
    return tuple(lines)


def _about(replica: Replica, scores: Scores, subject: PeerId) -> list[SignedClaim]:
    """The newest claims about `subject` by their own time, as far as they are read."""
    mentions = list(scores.ledger.mentions(subject))
    each = max(1, MAX_READ // max(1, len(mentions)))
    places = [(issuer, epoch, seq) for issuer, epoch, seqs in mentions for seq in seqs[-each:]]
    found = (replica.entry(*place) for place in places[:MAX_READ])
    entries = [entry for entry in found if entry is not None]
    return sorted(entries, key=lambda entry: (-entry.claim.time, entry.claim.issuer, entry.claim.epoch, entry.claim.seq))


def _line(
    entry: SignedClaim, trials: tuple[str, int, int], one: Witnessed | None, step: int, ahead: bool, scores: Scores
) -> Line:
    skill, right, wrong = trials
    issuer = PeerId(entry.claim.issuer)
    own = issuer == scores.me
    weight = MILLI if own else scores.witnesses.weight(issuer) // OWN_WORTH
    taken = 0 if one is None else one.taken.get(step, 0)
    adds_right = adds_wrong = 0
    if one is not None and one.mass:
        adds_right = _part(one.counts_right, right * taken, one.right, (right + wrong) * taken, one.mass)
        adds_wrong = _part(one.counts_wrong, wrong * taken, one.wrong, (right + wrong) * taken, one.mass)
    return Line(entry, own, skill, right, wrong, weight, adds_right, adds_wrong, _note(own, issuer, one, taken, ahead, scores))


def _part(counts: int, mine: int, of: int, mass: int, of_mass: int) -> int:
    """A claim's part of what its issuer adds on one side; where the issuer said nothing on that side, by all that it said."""
    return counts * mine // of if of else counts * mass // of_mass


def _note(own: bool, issuer: PeerId, one: Witnessed | None, taken: int, ahead: bool, scores: Scores) -> str:
    if ahead:
        return "its time has not come yet"
    if scores.witnesses.weight(issuer) == 0 and not own:
        return "its issuer signed two histories"
    if one is not None and one.verdict == "contradicted":
        return "left out: contradicts the others beyond chance"
    if not taken:
        return "older than what fills a full record"
    if own:
        return "what we saw"
    shared, error = scores.witnesses.shared(issuer)
    if one is not None and one.weight <= STRANGER_MILLI:
        return "a stranger" if not shared else f"differed from us by {error} of 1000 on {shared} shared trials"
    agreed = f"agreed with us on {shared} shared trials"
    return f"pulled back to within chance; {agreed}" if one is not None and one.verdict else agreed


def _proves_nothing(entry: SignedClaim, me: PeerId) -> Line:
    return Line(entry, entry.claim.issuer == me, "", 0, 0, 0, 0, 0, _why_nothing(entry.claim))


def _why_nothing(claim: Claim) -> str:
    if claim.issuer == claim.subject:
        return "its own word"
    if claim.kind == Kind.ROUND_WON:
        return "to win a round is the swarm's opinion, and no evidence"
    return "says nothing of a skill"
