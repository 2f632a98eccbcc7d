"""Plays a round of protocol/round on what the models said: classes, early exit, each judge's own plan, and the fold.

Nothing here decides a winner: it only hands recorded answers and judgements to the code that members of a real round run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import structs

from bench.study.recording import Said
from protocol.round.classes import AnswerClass, settled
from protocol.round.fold import Contributions, Result, Voice, fold
from protocol.round.messages import MAX_JUDGED_CLASSES, FoldParameters, Judgement
from protocol.round.plan import closing_plan, judge_plan
from protocol.round.tally import counted_classes
from protocol.wire.ids import Hash, PeerId, sha256

Strategy = Literal["rank", "majority"]

MAX_PAIRS = 36


@dataclass(frozen=True, slots=True)
class Committee:
    """Who sits, by seat: the member of the recording, its peer id, and what its vote and judgement count for."""

    members: tuple[int, ...]
    peers: tuple[PeerId, ...]
    voices: Mapping[int, Voice]
    fold: FoldParameters


@dataclass(frozen=True, slots=True)
class Played:
    """What a round came to. `calls` is how often a model was asked to judge."""

    answer: str
    calls: int
    result: Result

    def right(self, said: Said) -> bool:
        """Whether the winner is the right answer, to the letter."""
        return self.answer == said.right


def round_of(run: int, said: Said) -> Hash:
    """A round's id, which seeds plans and ties: one for each question and run."""
    return sha256(b"bench/zoo", run.to_bytes(4, "big"), said.prompt.encode())


def play(round_id: Hash, said: Said, committee: Committee, strategy: Strategy) -> Played | None:
    """A whole round; None where no member gave an answer."""
    answers = _answers(said, committee)
    if not answers:
        return None
    classes = counted_classes(round_id, answers, committee.voices, committee.fold)
    asks_judges = strategy == "rank" and committee.fold.arm != "best"
    judged = asks_judges and not settled(classes, committee.fold.early_exit_margin)
    return _fold(round_id, said, committee, strategy, classes, judged)


def play_undeduplicated(round_id: Hash, said: Said, committee: Committee) -> Played | None:
    """The same without its savings: each answer stands for itself, and every judge compares every pair that is not its own."""
    answers = _answers(said, committee)
    if not answers:
        return None
    rules = structs.replace(committee.fold, early_exit_margin=0, judged_classes=MAX_JUDGED_CLASSES, pairs_per_judge=MAX_PAIRS)
    alone = tuple(
        AnswerClass(f"{seat}", text, (seat,), 1000 * committee.voices[seat].answer_weight_milli) for seat, text in answers.items()
    )
    whole = Committee(committee.members, committee.peers, committee.voices, rules)
    return _fold(round_id, said, whole, "rank", alone, judged=rules.arm != "best")


def _answers(said: Said, committee: Committee) -> dict[int, str]:
    """By seat; a member without an answer takes no part, as in a real round."""
    given = {seat: said.answers[member] for seat, member in enumerate(committee.members)}
    return {seat: said.texts[text] for seat, text in given.items() if text >= 0}


def _fold(
    round_id: Hash, said: Said, committee: Committee, strategy: Strategy, classes: Sequence[AnswerClass], judged: bool
) -> Played:
    ballots = _ballots(round_id, said, committee, classes) if judged else {}
    given = Contributions(round_id, strategy, committee.fold, committee.voices, tuple(classes), ballots)
    result = fold(given)
    return Played(classes[result.winner].text, sum(map(len, ballots.values())), result)


def _ballots(
    round_id: Hash, said: Said, committee: Committee, classes: Sequence[AnswerClass]
) -> dict[int, tuple[Judgement, ...]]:
    heard = said.pairs()
    place = [said.texts.index(found.text) for found in classes]

    def judgement(seat: int, first: int, second: int) -> Judgement:
        pair = place[first], place[second]
        same = pair[0] == pair[1]  # equal answers, which only a round without classes compares: whoever is asked cannot say
        return Judgement(first, second, 0 if same else heard[pair][committee.members[seat]])

    ballots = {}
    for seat in _answers(said, committee):
        judge = (committee.peers[seat], seat)
        opening = tuple(judgement(seat, *pair) for pair in judge_plan(round_id, judge, classes, committee.fold))
        closing = closing_plan(round_id, judge, opening, classes, committee.fold, committee.voices)
        ballots[seat] = opening + tuple(judgement(seat, *pair) for pair in closing)
    return ballots
