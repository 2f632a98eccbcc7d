"""What gold questions say of each member: how often it answers and judges rightly, by skill; and the weights that follow.

A gold question counts once for answering, and once for judging: one pair, the right answer against the lure, in an order that a
hash picks. The weights are the project's own; nothing here may look at a test question.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.study.recording import Said
from crdt_store.scores import Parameters, Tally
from protocol.round.fold import Voice
from protocol.round.weights import Arm, Known, choose_arm, weigh
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
    right = sum(points) * kept * 1000 // count if count else 0
    return Tally(right, kept * 1000 - right)


@dataclass(frozen=True, slots=True)
class Weights:
    """What follows for rounds of one skill: each member's voice, and the arm."""

    voices: Mapping[int, Voice]
    arm: Arm


def weights_of(record: Record, digests: Sequence[bytes]) -> Weights:
    """By protocol/round/weights.py, as a requester fills its header."""
    pairs = zip(record.answering, record.judging, strict=True)
    weighed = weigh([Known(answering, judging) for answering, judging in pairs])
    voices = {
        member: Voice(one.answer_milli, one.judge_milli, digests[member], one.favourite_milli)
        for member, one in enumerate(weighed)
    }
    return Weights(voices, choose_arm(weighed, prose=False, known=True).arm)
