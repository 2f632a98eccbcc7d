"""Real models' answers to multiple-choice questions, folded by the project's arms with weights from gold questions alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import mean

from bench.evaluation import tables
from protocol.round.calibration import confidence_milli, gain_milli
from protocol.round.fold import Contributions, Result, Voice, fold, leads_milli
from protocol.round.messages import FoldParameters
from protocol.round.tally import counted_classes
from protocol.round.weights import Known, Trials, answer_weights_milli, choose_arm, weigh
from protocol.wire.ids import Hash, sha256


@dataclass(frozen=True, slots=True)
class Question:
    """One question: its address, the right letter, and each member's letter ("" where none was parsed)."""

    round: Hash
    answer: str
    letters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Accuracies (0 to 1) on the questions of one seed that were not gold, and what was chosen."""

    majority: float
    best_single: float
    gold_best: float
    fuse: float
    chosen: float
    arm: str
    why: str
    gain_milli: int
    confidences: tuple[tuple[int, bool], ...]


NEEDED, OTHERS = ("question", "answer"), ("category", "options")
"""The columns that hold no model's letters."""


@dataclass(frozen=True, slots=True)
class Votes:
    """A file of votes: the models that it has answers of, and its rows."""

    file: Path
    models: tuple[str, ...]
    rows: Sequence[tuple[int, tables.Row]]

    def questions(self, members: Sequence[str]) -> list[Question]:
        """Every question, with the letters of `members` in their order; raises BadTable where none of them answered any."""
        found = [
            Question(sha256(b"bench/ranking", row["question"].encode()), row["answer"], tuple(row[model] for model in members))
            for _, row in self.rows
        ]
        if not any(any(question.letters) for question in found):
            raise tables.BadTable(f"{self.file.name} has no letter of {', '.join(members)}")
        return found


def read(file: Path) -> Votes:
    """The file; raises BadTable where no figure can come from it."""
    columns, rows = tables.read(file, NEEDED)
    unanswered = next((line for line, row in rows if not row["answer"]), None)
    if unanswered is not None:
        raise tables.BadTable(f"line {unanswered} of {file.name} has no right letter in its column 'answer'")
    models = tuple(name for name in columns if name not in (*NEEDED, *OTHERS))
    if not models:
        raise tables.BadTable(f"{file.name} has no column of a model's letters")
    return Votes(file, models, rows)


def split(questions: Sequence[Question], gold: int, seed: int) -> Split:
    """Draw `gold` questions by `seed`, weigh members by them, and fold all others."""
    order = Random(seed).sample(range(len(questions)), len(questions))
    shown, hidden = [questions[i] for i in order[:gold]], [questions[i] for i in order[gold:]]
    members = len(questions[0].letters)
    records = tally(shown, members)
    weights = answer_weights_milli(records)
    choice = choose_arm(weigh([Known(record, Trials()) for record in records]), prose=False, known=gold > 0)
    gain = gain_milli([trial for place in range(gold) if (trial := left_out(shown, place, members)) is not None], "fuse")
    equal = (1000,) * members
    hits: dict[str, list[bool]] = {"majority": [], "gold_best": [], "fuse": []}
    sure = []
    for question in hidden:
        results = {
            "majority": verdict(question, equal, "fuse"),
            "gold_best": verdict(question, weights, "best"),
            "fuse": verdict(question, weights, "fuse"),
        }
        for name, found in results.items():
            hits[name].append(is_right(question, found))
        fused = results["fuse"]
        if fused is not None:
            sure.append((confidence_milli(leads_milli(fused), gain), hits["fuse"][-1]))
    accuracy = {name: mean(values) for name, values in hits.items()}
    singles = [mean(question.letters[m] == question.answer for question in hidden) for m in range(members)]
    chosen = accuracy["gold_best" if choice.arm == "best" else "fuse"]
    return Split(
        accuracy["majority"],
        max(singles),
        accuracy["gold_best"],
        accuracy["fuse"],
        chosen,
        choice.arm,
        choice.why,
        gain,
        tuple(sure),
    )


def tally(questions: Sequence[Question], members: int) -> list[Trials]:
    """Each member's record; a letter that was not parsed is wrong."""
    right = [sum(question.letters[member] == question.answer for question in questions) for member in range(members)]
    return [Trials(1000 * count, 1000 * (len(questions) - count)) for count in right]


def left_out(shown: Sequence[Question], place: int, members: int) -> tuple[tuple[int, ...], bool] | None:
    """How the fold does on one gold question with weights from all the others."""
    question = shown[place]
    result = verdict(question, answer_weights_milli(tally([*shown[:place], *shown[place + 1 :]], members)), "fuse")
    return None if result is None else (leads_milli(result), is_right(question, result))


def verdict(question: Question, weights: Sequence[int], arm: str) -> Result | None:
    """The project's fold of one question; None where no member gave a letter."""
    answers = {seat: letter for seat, letter in enumerate(question.letters) if letter}
    if not answers:
        return None
    table = {seat: Voice(weights[seat], 0, seat.to_bytes(4, "big")) for seat in answers}
    parameters = FoldParameters(arm="best" if arm == "best" else "fuse")
    classes = counted_classes(question.round, answers, table, parameters)
    return fold(Contributions(question.round, "majority", parameters, table, classes, {}))


def is_right(question: Question, result: Result | None) -> bool:
    """Whether the winner's letter is the right one."""
    return result is not None and question.letters[result.winner_seat] == question.answer
