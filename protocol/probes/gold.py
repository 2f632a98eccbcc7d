"""What a round shows of its members when the right answer to its question is known: who answered right, and who judged right.

A gold round is a round like any other, so no member can tell that its ballots will be marked. Marks are counts, and nothing else
of the round enters: agreement with other members is never evidence (research: it ranks the best judge last).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.probes.answers import Known, is_right
from protocol.round.ballots import preferences
from protocol.round.transcript import Replayed
from protocol.skills import judging
from protocol.wire.ids import PeerId


@dataclass(frozen=True, slots=True)
class Mark:
    """How many probes of `skill` a peer got right and wrong."""

    peer: PeerId
    skill: str
    right: int
    wrong: int


def marks_of_round(replayed: Replayed, known: Known, skill: str) -> list[Mark]:
    """Marks of each member but the requester, who knew the answer: for its own answer, and for each pair that it judged.

    A pair counts where exactly one of the two answers is right. A judge that prefers neither has not found the right one: wrong.
    """
    right = [is_right(known, answer) for answer in replayed.answers]
    marks = []
    for row in replayed.members:
        peer = PeerId(row.peer_id)
        if peer == replayed.requester:
            continue
        if row.class_index is not None:
            marks.append(_mark(peer, skill, [right[row.class_index]]))
        found = preferences(replayed.ballots.get(row.seat, ()))
        telling = {pair: odds for pair, odds in found.items() if right[pair[0]] != right[pair[1]]}
        if telling:
            verdicts = [odds > 0 if right[first] else odds < 0 for (first, _), odds in telling.items()]
            marks.append(_mark(peer, judging(skill), verdicts))
    return marks


def unanimous(replayed: Replayed, least: int, configurations: Mapping[str, bytes]) -> str | None:
    """The answer on which `least` members of different configurations agree, and nobody disagrees; None for any other round.

    Members of one configuration are one voice: they err alike.
    """
    if len(replayed.answers) != 1:
        return None
    voices = {configurations[row.peer_id] for row in replayed.members if row.revealed}
    return replayed.answers[0] if len(voices) >= least else None


def _mark(peer: PeerId, skill: str, verdicts: list[bool]) -> Mark:
    return Mark(peer, skill, sum(verdicts), len(verdicts) - sum(verdicts))
