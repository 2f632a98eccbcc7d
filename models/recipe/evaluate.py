"""Measures shipped GGUF files on the real engine: each model's answers and judgements, and what a committee of all makes of them.

It must not look at training state, and nothing in training may look at its questions: `add`, `rev`, `sort` and `bool` come
from the held-out part. The fusion of votes and judgements is fixed here and has no weights to tune.
"""

import argparse
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import exp, sqrt
from pathlib import Path
from random import Random
from typing import Any

from . import skills
from .engine import Engine
from .skills import SKILLS, TABLES, Question

SEED = 20261200
PER_SKILL = 200
SHORT_LIST = 4
"""A committee judges at most this many distinct answers, the ones with most votes: pairs grow with the square."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judge on one pair, both orders averaged. `margin` is the log-odds that `first` is better than `second`."""

    judge: int
    first: str
    second: str
    margin: float
    letter_mass: float


@dataclass(frozen=True, slots=True)
class Round:
    """One question put to all models: their answers in order, and every verdict on the short-listed pairs."""

    question: Question
    answers: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def short_list(self) -> list[str]:
        """Distinct answers, most votes first; an empty one cannot be judged and cannot win."""
        return [answer for answer, _ in Counter(filter(None, self.answers)).most_common(SHORT_LIST)]


def questions(per_skill: int, seed: int) -> list[Question]:
    """Distinct test questions, the same ones for the same arguments."""
    rng, found = Random(seed), dict[str, Question]()
    for place, skill in enumerate(SKILLS, start=1):
        while len(found) < place * per_skill:
            question = skills.draw(rng, skill, test=True)
            found.setdefault(question.prompt, question)
    return list(found.values())


def play(engines: Sequence[Engine], asked: Iterable[Question]) -> list[Round]:
    """All questions to all models, then all judgements."""
    with ThreadPoolExecutor(len(engines)) as pool:
        return [_play_one(pool, engines, question) for question in asked]


def _play_one(pool: ThreadPoolExecutor, engines: Sequence[Engine], question: Question) -> Round:
    answers = tuple(pool.map(lambda engine: engine.answer(question.prompt), engines))
    pairs = list(itertools.combinations(Round(question, answers, ()).short_list, 2))

    def judge(place: int) -> list[Verdict]:
        return [_verdict(engines[place], place, question.prompt, answers[place], pair) for pair in pairs]

    return Round(question, answers, tuple(itertools.chain.from_iterable(pool.map(judge, range(len(engines))))))


def _verdict(engine: Engine, judge: int, prompt: str, own: str, pair: tuple[str, str]) -> Verdict:
    first, second = pair
    straight, swapped = engine.letters(prompt, own, first, second), engine.letters(prompt, own, second, first)
    margin = (straight[0] - straight[1] + swapped[1] - swapped[0]) / 2
    mass = sum(map(exp, (*straight, *swapped))) / 2
    return Verdict(judge, first, second, margin, mass)


def majority(played: Round) -> float:
    """Chance that the most frequent answer is right, ties broken by lot."""
    votes = Counter(played.answers)
    leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
    return (played.question.answer in leaders) / len(leaders)


def fused(played: Round) -> float:
    """Whether votes plus soft judgements pick the right answer.

    Each member gives its own answer one vote, and each short-listed answer its mean probability of beating the others:
    both are worth at most one per member, so that no judge can outweigh the rest by claiming certainty.
    """
    short = played.short_list
    score = {answer: float(played.answers.count(answer)) for answer in short}
    for verdict in played.verdicts:
        chance = 1 / (1 + exp(-verdict.margin))
        score[verdict.first] += chance / (len(short) - 1)
        score[verdict.second] += (1 - chance) / (len(short) - 1)
    return float(bool(score) and max(score, key=score.__getitem__) == played.question.answer)


def judged_right(played: Round, judge: int) -> list[float]:
    """For each pair with exactly one right answer: 1 if the judge prefers it, 1/2 for a tie."""
    right = played.question.answer
    signed = [
        verdict.margin if verdict.first == right else -verdict.margin
        for verdict in played.verdicts
        if verdict.judge == judge and right in (verdict.first, verdict.second)
    ]
    return [0.5 if margin == 0 else float(margin > 0) for margin in signed]


def report_model(rounds: Sequence[Round], place: int) -> dict[str, Any]:
    """One model on one skill."""
    right = [float(r.answers[place] == r.question.answer) for r in rounds]
    judged = [point for r in rounds for point in judged_right(r, place)]
    unsure = [point for r in rounds if r.answers[place] != r.question.answer for point in judged_right(r, place)]
    masses = [v.letter_mass for r in rounds for v in r.verdicts if v.judge == place]
    return {
        "generation": _share(right),
        "judging": _share(judged),
        "judging_when_own_wrong": _share(unsure),
        "letter_mass": round(statistics.fmean(masses), 4) if masses else None,
    }


def report_committee(rounds: Sequence[Round]) -> dict[str, Any]:
    single = [sum(a == r.question.answer for a in r.answers) / len(r.answers) for r in rounds]
    votes, both = [majority(r) for r in rounds], [fused(r) for r in rounds]
    gains = [b - v for b, v in zip(both, votes, strict=True)]
    return {
        "questions": len(rounds),
        "single": round(statistics.fmean(single), 4),
        "majority": round(statistics.fmean(votes), 4),
        "fused": round(statistics.fmean(both), 4),
        "gain": round(statistics.fmean(gains), 4),
        "gain_interval": round(1.96 * statistics.stdev(gains) / sqrt(len(gains)), 4),
        "any_right": round(statistics.fmean(r.question.answer in r.answers for r in rounds), 4),
    }


def report(names: Sequence[str], rounds: Sequence[Round]) -> dict[str, Any]:
    by_skill = {skill: [r for r in rounds if r.question.skill == skill] for skill in SKILLS}
    unseen = [r for r in rounds if r.question.skill not in TABLES]
    hard = [r for r in rounds if not skills.is_easy(r.question.prompt)]
    groups = by_skill | {"all": list(rounds), "unseen": unseen, "hard": hard}
    models = {name: {skill: report_model(part, place) for skill, part in by_skill.items()} for place, name in enumerate(names)}
    return {"models": models, "committee": {name: report_committee(part) for name, part in groups.items()}}


def measure(paths: Mapping[str, Path], per_skill: int, seed: int) -> dict[str, Any]:
    """The whole measurement of the named files."""
    rounds = play([Engine(path) for path in paths.values()], questions(per_skill, seed))
    return {"seed": seed, "per_skill": per_skill} | report(list(paths), rounds)


def _share(points: Sequence[float]) -> dict[str, Any]:
    """A share of `n` with its 95% Wilson interval."""
    n = len(points)
    if not n:
        return {"share": None, "n": 0, "low": None, "high": None}
    share, z = statistics.fmean(points), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    spread = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return {"share": round(share, 4), "n": n, "low": round(middle - spread, 4), "high": round(middle + spread, 4)}


def table(results: Mapping[str, Any]) -> str:
    """The figures as two Markdown tables."""
    lines = ["| model | " + " | ".join(SKILLS) + " |", "|---" * (len(SKILLS) + 1) + "|"]
    for name, row in results["models"].items():
        cells = (f"{_figure(row[skill]['generation'])} / {_figure(row[skill]['judging'])}" for skill in SKILLS)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| questions | N | mean single | majority | votes + judging | difference | any right |", "|---" * 7 + "|"]
    for name, row in results["committee"].items():
        gain = f"{row['gain']:+.3f} ± {row['gain_interval']:.3f}"
        cells = (f"{row[column]:.3f}" for column in ("single", "majority", "fused"))
        lines.append(f"| {name} | {row['questions']} | " + " | ".join(cells) + f" | {gain} | {row['any_right']:.3f} |")
    return "\n".join(lines)


def _figure(share: Mapping[str, Any]) -> str:
    return "-" if share["share"] is None else f"{share['share']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the GGUF files of a folder that has a catalog.json.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parents[1])
    parser.add_argument("--per-skill", type=int, default=PER_SKILL)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--json", action="store_true", help="print everything measured, not only the tables")
    options = parser.parse_args()
    catalog = json.loads((options.folder / "catalog.json").read_text())
    paths = {entry["name"]: options.folder / entry["file"] for entry in catalog}
    results = measure(paths, options.per_skill, options.seed)
    print(json.dumps(results, indent=1) if options.json else table(results))


if __name__ == "__main__":
    main()
