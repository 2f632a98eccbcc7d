"""What it costs, and changes, that judges go on with those pairs alone that could decide: on real verdicts, by real plans."""

from dataclasses import dataclass
from itertools import permutations
from random import Random

from msgspec import structs

from bench.evaluation import judgments as judged
from bench.evaluation.tables import BadTable
from protocol.round.classes import classes_of
from protocol.round.fold import Voice
from protocol.round.messages import FoldParameters, Judgement
from protocol.round.plan import closing_plan, judge_plan
from protocol.wire.ids import PeerId, sha256


@dataclass(frozen=True, slots=True)
class Asked:
    """How well verdicts match people's, and how often all judges of one question were asked together."""

    figures: judged.Figures
    calls: float


def check(given: judged.Set) -> None:
    """Raises BadTable where a judge did not say of some ordered pair what a plan may ask it."""
    for question, ballots in given.ballots.items():
        asked = set(permutations(given.authors[question], 2))
        for judge, cast in ballots.items():
            if lacking := asked - {(one.first, one.second) for one in cast}:
                first, second = (given.names[seat] for seat in min(lacking))
                raise BadTable(f"question {question}: {given.names[judge]} has no verdict on {first} before {second}")


def split(given: judged.Set, gold: int, seed: int) -> tuple[Asked, Asked]:
    """(whole plans, active ones) on the questions that are not gold, with weights from gold."""
    order = Random(seed).sample(sorted(given.ballots), len(given.ballots))
    weighed = judged.voices_of(given, given.ballots, order[:gold])
    whole, active = (_asked(given, order[gold:], weighed, seed, active) for active in (False, True))
    return whole, active


def _asked(given: judged.Set, questions: list[str], weighed: dict[int, Voice], seed: int, active: bool) -> Asked:
    parameters = structs.replace(judged.PARAMETERS, active=active)
    calls = 0
    scores = {}
    for question in questions:
        ballots = {judge: _ballot(given, question, judge, weighed, parameters, seed) for judge in sorted(given.ballots[question])}
        calls += sum(map(len, ballots.values()))
        scores[question] = judged.scores(judged.rank(question, given, ballots, weighed))
    return Asked(judged.figures(given, scores), calls / len(questions))


def _ballot(
    given: judged.Set, question: str, judge: int, weighed: dict[int, Voice], parameters: FoldParameters, seed: int
) -> tuple[Judgement, ...]:
    """What a judge said of the pairs that its plan asks, by author."""
    round_id = sha256(b"bench/ranking/pairs", seed.to_bytes(4, "big"), question.encode())
    seats = dict.fromkeys(given.authors[question], 1_000_000)
    classes = classes_of(round_id, {seat: given.names[seat] for seat in seats}, seats)
    heard = {(one.first, one.second): one.log_odds_milli for one in given.ballots[question][judge]}
    who = (PeerId(given.names[judge]), judge)

    def say(plan: tuple[tuple[int, int], ...]) -> tuple[Judgement, ...]:
        authors = [(classes[a].seats[0], classes[b].seats[0]) for a, b in plan]
        return tuple(Judgement(a, b, heard[pair]) for (a, b), pair in zip(plan, authors, strict=True))

    opening = say(judge_plan(round_id, who, classes, parameters))
    said = opening + say(closing_plan(round_id, who, opening, classes, parameters, weighed))
    return tuple(Judgement(classes[one.first].seats[0], classes[one.second].seats[0], one.log_odds_milli) for one in said)
