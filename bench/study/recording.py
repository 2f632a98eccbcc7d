"""What seven models said: their answers, and every judge's log-odds of every ordered pair of answers. Decides no winner.

`record` asks the real engine; `read` takes what it gave from a file, so that anyone can repeat the analysis without an engine.
Judging is asked and read as in a round: protocol/round/judging.py.
"""

import gzip
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import msgspec

from bench.study.questions import Asked
from models.recipe.engine import Engine
from protocol.job import Job, Role, Turn
from protocol.round.judging import judge_turns, log_odds_milli

T = TypeVar("T")

WAITING_PER_ENGINE = 4
"""As many as an engine has slots: one waits while another is computed."""


class Said(msgspec.Struct, frozen=True, array_like=True):
    """One question. `texts` are the distinct answers, sorted; then those that nobody gave: the lure and, of gold, the right one.

    `answers` is the text of each member, by index; -1 for a member that gave none. `log_odds_milli` has, for each ordered pair of
    texts in the order of itertools.permutations, one number per member: that the text shown first is better.
    """

    prompt: str
    right: str
    gold: bool
    texts: tuple[str, ...]
    answers: tuple[int, ...]
    lure: int
    """The text that colluders push: the wrong answer most members gave, or a near miss where nobody erred."""
    log_odds_milli: tuple[tuple[int, ...], ...]

    @property
    def skill(self) -> str:
        return self.prompt.partition(" ")[0]

    def pairs(self) -> Mapping[tuple[int, int], tuple[int, ...]]:
        """The judges' log-odds by (text shown first, text shown second)."""
        return dict(zip(itertools.permutations(range(len(self.texts)), 2), self.log_odds_milli, strict=True))


class Recording(msgspec.Struct, frozen=True):
    """Everything one training run's models said."""

    run: int
    engine: str
    models: tuple[str, ...]
    sha256: tuple[str, ...]
    """Of each model's file."""
    said: tuple[Said, ...]


def record(run: int, engine: str, files: Mapping[str, Path], asked: Sequence[Asked], note: Callable[[str], None]) -> Recording:
    """Load the models and put all questions to them, then all pairs to all judges; `note` hears of progress."""
    engines = [Engine(path) for path in files.values()]
    with ThreadPoolExecutor(WAITING_PER_ENGINE * len(engines)) as pool:
        places = range(len(engines))
        given = list(pool.map(lambda ask: engines[ask[1]].answer(ask[0].prompt).strip(), itertools.product(asked, places)))
        note(f"run {run}: {len(given)} answers")
        rows = [_unjudged(*pair) for pair in zip(asked, _batched(given, len(places)), strict=True)]
        judgements = pool.map(lambda task: _judge(engines[task[1]], *task), [task for row in rows for task in _tasks(row)])
        said = tuple(_judged(row, judgements) for row in _noting(rows, run, note))
    hashes = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in files.values())
    return Recording(run, engine, tuple(files), hashes, said)


def _unjudged(question: Asked, answers: Sequence[str]) -> Said:
    wrong = Counter(answer for answer in answers if answer not in ("", question.right))
    lure = min(wrong, key=lambda answer: (-wrong[answer], answer)) if wrong else question.rival
    given = sorted({answer for answer in answers if answer})
    texts = (*given, *(text for text in (lure, question.right)[: 1 + question.gold] if text not in given))
    places = tuple(texts.index(answer) if answer else -1 for answer in answers)
    return Said(question.prompt, question.right, question.gold, texts, places, texts.index(lure), ())


Task = tuple[Said, int, int, int]


def _tasks(row: Said) -> list[Task]:
    """(question, judge, first, second), the judges of one pair side by side."""
    pairs = itertools.permutations(range(len(row.texts)), 2)
    return [(row, judge, first, second) for first, second in pairs for judge in range(len(row.answers))]


def _judged(row: Said, judgements: Iterator[int]) -> Said:
    """`row` with its share of the judgements, which come in the order of its tasks."""
    its = list(itertools.islice(judgements, len(_tasks(row))))
    return msgspec.structs.replace(row, log_odds_milli=_batched(its, len(row.answers)))


def _judge(engine: Engine, row: Said, judge: int, first: int, second: int) -> int:
    own = row.texts[row.answers[judge]] if row.answers[judge] >= 0 else ""
    job = Job((Turn(Role.USER, row.prompt),))
    turns = judge_turns("compact", job, own, (row.texts[first], row.texts[second]), b"")
    return log_odds_milli(engine.choose([{"role": str(turn.role), "content": turn.content} for turn in turns]))


def _batched(values: Sequence[T], size: int) -> tuple[tuple[T, ...], ...]:
    return tuple(tuple(values[start : start + size]) for start in range(0, len(values), size))


def _noting(rows: Sequence[Said], run: int, note: Callable[[str], None]) -> Iterator[Said]:
    for place, row in enumerate(rows, start=1):
        yield row
        if place % 200 == 0 or place == len(rows):
            note(f"run {run}: {place} of {len(rows)} questions judged")


def write(path: Path, recording: Recording) -> None:
    """Compact JSON, gzipped without a time, so that equal recordings are equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(msgspec.json.encode(recording), 9, mtime=0))


def read(path: Path) -> Recording:
    """A recording; msgspec.ValidationError where the file is none."""
    return msgspec.json.decode(gzip.decompress(path.read_bytes()), type=Recording)
