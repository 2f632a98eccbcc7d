"""What gold questions say of each member: how often it answers and judges rightly, by skill; and the weights that follow.

A gold question counts once for answering, and once for judging: one pair, the right answer against the lure, in an order that a
hash picks. The weights are the project's own; nothing here may look at a test question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from bench.study.recording import Said
from crdt_store.scores import MILLI, Parameters, Tally
from protocol.round.fold import Voice
from protocol.wire.ids import sha256


@dataclass(frozen=True, slots=True)
class Record:
    """The tallies of all members in one skill."""

    answering: tuple[Tally, ...]
    judging: tuple[Tally, ...]


def records(gold: Sequence[Said], members: int) -> dict[str, Record]:
    """By skill, what these gold questions say."""
    return {skill: _record([said for said in gold if said.skill == skill], members) for skill in sorted({s.skill for s in gold})}


def answers_right(said: Said, member: int) -> bool:
    """Whether this member gave the right answer."""
    place = said.answers[member]
    return place >= 0 and said.texts[place] == said.right


def judges_right(said: Said, member: int) -> bool:
    """Whether this member prefers the right answer to a gold question to the lure."""
    right_first = sha256(b"bench/zoo/gold", said.prompt.encode())[0] % 2 == 0
    right, pairs = said.texts.index(said.right), said.pairs()
    odds = pairs[right, said.lure][member] if right_first else -pairs[said.lure, right][member]
    return odds > 0


def best_member(gold: Sequence[Said], members: int) -> int:
    """The member with most right answers; of equal ones the first."""
    return max(range(members), key=lambda member: sum(answers_right(said, member) for said in gold))


def _record(gold: Sequence[Said], members: int) -> Record:
    answering = tuple(_tally([answers_right(said, member) for said in gold]) for member in range(members))
    return Record(answering, tuple(_tally([judges_right(said, member) for said in gold]) for member in range(members)))


def _tally(points: Sequence[bool]) -> Tally:
    """Thousandths of a trial, as scores give them: no more than a full window."""
    count, limit = len(points), Parameters().window
    kept = min(count, limit)
    right = sum(points) * kept * MILLI // count if count else 0
    return Tally(right, kept * MILLI - right)


def voices_of(record: Record, digests: Sequence[bytes]) -> dict[int, Voice]:
    """What each member's vote and judgement count for in a skill, from the tallies alone."""
    answering, judging = _shrunk(record.answering), _shrunk(record.judging)
    return {
        member: Voice(_log_odds_milli(answering[member]), _log_odds_milli(judging[member]), digest)
        for member, digest in enumerate(digests)
    }


def _shrunk(tallies: Sequence[Tally]) -> list[float]:
    total = sum(t.right_milli + t.wrong_milli for t in tallies)
    mean = sum(t.right_milli for t in tallies) / total if total else 0.5
    return [(t.right_milli + 10_000 * mean) / (t.right_milli + t.wrong_milli + 10_000) for t in tallies]


def _log_odds_milli(share: float) -> int:
    bounded = min(0.95, max(0.05, share))
    return round(1000 * log(bounded / (1 - bounded)))
