"""What a round shows of its members when the right answer to its question is known: who answered and judged right, who erred with
whom, and how sure the round was of what.

A gold round is a round like any other, so no member can tell that its ballots will be marked. Nothing else of the round enters:
agreement with other members is never evidence (research: it ranks the best judge last). Our own member is left out of everything:
in a gold round it says what we made it say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.probes.answers import Known, is_right
from protocol.round.ballots import Pair, favourites, preferences
from protocol.round.blocks import RIGHT, SILENT, Errors
from protocol.round.calibration import Trial
from protocol.round.classes import AnswerClass
from protocol.round.fold import Contributions, Voice, fold, leads_milli
from protocol.round.messages import Judgement
from protocol.round.transcript import Replayed
from protocol.skills import favoured, judging
from protocol.wire.ids import PeerId

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Mark:
    """How many probes of `skill` a peer got right and wrong."""

    peer: PeerId
    skill: str
    right: int
    wrong: int


def marks_of_round(replayed: Replayed, known: Known, skill: str) -> list[Mark]:
    """Marks of each member but the requester: for its own answer, and for each pair that it judged. Where a ballot has others
    too, pairs that hold what the judge puts first are marked apart, because a bought judge lies there and nowhere else.

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
        first = _favourites(replayed, row.seat)
        verdicts: dict[bool, list[bool]] = {False: [], True: []}
        for pair, preferred in _telling(replayed, row.seat, right).items():
            verdicts[_holds(pair, first)].append(preferred)
        if verdicts[False]:
            marks.append(_mark(peer, judging(skill), verdicts[False]))
        if verdicts[True]:
            marks.append(_mark(peer, favoured(skill) if verdicts[False] else judging(skill), verdicts[True]))
    return marks


def errors_of_round(replayed: Replayed, known: Known) -> Errors:
    """Who erred with whom: in its answer, and in judging pairs that hold what it puts first."""
    right = [is_right(known, answer) for answer in replayed.answers]
    rows = [row for row in replayed.members if row.peer_id != replayed.requester]
    answers = "".join(
        SILENT if row.class_index is None else RIGHT if right[row.class_index] else _LETTERS[row.class_index % len(_LETTERS)]
        for row in rows
    )
    told: dict[Pair, dict[int, bool]] = {}
    for row in rows:
        first = _favourites(replayed, row.seat)
        for pair, preferred in _telling(replayed, row.seat, right).items():
            if _holds(pair, first):
                told.setdefault(pair, {})[row.seat] = preferred
    pairs = [
        "".join(SILENT if row.seat not in said else RIGHT if said[row.seat] else "x" for row in rows)
        for _, said in sorted(told.items())
    ]
    return Errors(tuple(row.peer_id for row in rows), answers, tuple(pairs))


def trials_of_round(replayed: Replayed, known: Known) -> dict[str, Trial]:
    """By arm, the leads of the winner and whether it was right: by a majority, and by this round's own arm if it was none."""
    classes = [
        AnswerClass(answer, answer, tuple(row.seat for row in replayed.members if row.class_index == place), 0)
        for place, answer in enumerate(replayed.answers)
    ]
    left_out = tuple(row.seat for row in replayed.members if row.dropped or row.peer_id == replayed.requester)
    if all(set(found.seats) <= set(left_out) for found in classes):
        return {}
    candidates = {one.peer_id: one for one in replayed.header.candidates}
    weighed = {row.seat: Voice.of(candidates[row.peer_id]) for row in replayed.members}
    alike = {seat: Voice(1000, 1000, voice.config_digest) for seat, voice in weighed.items()}
    parameters = replayed.header.fold

    def trial(strategy: str, voices: Mapping[int, Voice], ballots: Mapping[int, Sequence[Judgement]]) -> Trial:
        given = Contributions(replayed.round, strategy, parameters, voices, tuple(classes), ballots, dropped=left_out)
        result = fold(given)
        return leads_milli(result), is_right(known, replayed.answers[result.winner])

    found = {"majority": trial("majority", alike, {})}
    if replayed.header.strategy != "majority":
        found[parameters.arm] = trial("rank", weighed, replayed.ballots)
    return found


def unanimous(replayed: Replayed, least: int, configurations: Mapping[str, bytes]) -> str | None:
    """The answer on which `least` members of different configurations agree, and nobody disagrees; None for any other round.

    Members of one configuration are one voice: they err alike.
    """
    if len(replayed.answers) != 1:
        return None
    voices = {configurations[row.peer_id] for row in replayed.members if row.revealed}
    return replayed.answers[0] if len(voices) >= least else None


def _telling(replayed: Replayed, seat: int, right: list[bool]) -> dict[Pair, bool]:
    """By pair of which one answer is right, whether this seat prefers it."""
    found = preferences(replayed.ballots.get(seat, ()), replayed.header.fold.position_bias)
    return {(a, b): odds > 0 if right[a] else odds < 0 for (a, b), odds in found.items() if right[a] != right[b]}


def _favourites(replayed: Replayed, seat: int) -> frozenset[int]:
    return favourites(preferences(replayed.ballots.get(seat, ()), replayed.header.fold.position_bias))


def _holds(pair: Pair, first: frozenset[int]) -> bool:
    return (pair[0] in first) != (pair[1] in first)


def _mark(peer: PeerId, skill: str, verdicts: list[bool]) -> Mark:
    return Mark(peer, skill, sum(verdicts), len(verdicts) - sum(verdicts))
