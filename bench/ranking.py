"""Do the project's folds choose better than a vote, on real answers and judgements that nobody here made?

\b
    python -m bench.ranking votes [--swarm S1] [--models A,B,...] [--gold 10,20,50] [--seeds 20] [--json] [--check]
    python -m bench.ranking judgments [--gold 0,10] [--collude 0,1,2,3] [--seeds 20] [--json] [--check]
    python -m bench.ranking pairs [--gold 0,10] [--seeds 20] [--json]

Each seed draws gold questions; weights, arm and confidence come from those alone, all others are the test. --check exits 1 with a
line for each figure that misses its target; files or numbers that no figure can come from are exit 2 and one sentence.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.evaluation import judgments as judged
from bench.evaluation import pairs as paired
from bench.evaluation import reliability
from bench.evaluation import votes as voted
from bench.evaluation.swarms import LEFT_OUT, SWARMS, TOLERANCE
from bench.evaluation.tables import BadTable
from bench.study import recording
from bench.study.analysis import Study
from bench.study.plan import read_plan

DATA = Path(__file__).parent / "data"
VOTES = DATA / "mmlu_pro_votes.csv.gz"
JUDGMENTS, HUMANS = DATA / "prd_judgments.csv.gz", DATA / "prd_humans.csv.gz"
RECORDINGS = Path(__file__).parent / "study" / "recordings"
RECORDED_RUNS = (1, 2, 3)

WORKERS = 2
TARGET_GOLD = 50
COLLUDING_SLACK = 2.0
"""Points of uniform Bradley-Terry without collusion that 3 of 5 colluders may cost after 10 gold questions."""


def _numbers(_: click.Context, __: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 10,20,50") from None


file_option = partial(click.option, type=click.Path(exists=True, dir_okay=False, path_type=Path))
json_option = click.option("--json", "json_", is_flag=True, help="Print every figure.")
check_option = click.option("--check", is_flag=True, help="Exit 1 if a target is missed.")
seeds_option = click.option("--seeds", default=20, type=click.IntRange(1, 1000), help="Draws of gold questions.")


class _Group(click.Group):
    """A file that no figure can come from is wrong usage."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BadTable as error:
            raise click.UsageError(str(error)) from None


@click.group(cls=_Group, help=__doc__)
def main() -> None:
    pass


@main.command()
@file_option("--file", default=VOTES, help="Questions and each model's letter, as bench/data/README.md describes.")
@click.option("--models", default="", help="One swarm by its models' names; without it S1 to S4 are run.")
@click.option("--swarm", type=click.Choice([*SWARMS, "S4"]), help="One of the four swarms.")
@click.option("--gold", callback=_numbers, default="10,20,50", help="Gold questions.")
@seeds_option
@json_option
@check_option
def votes(  # noqa: PLR0913 - the command's options
    file: Path, models: str, swarm: str | None, gold: tuple[int, ...], seeds: int, json_: bool, check: bool
) -> None:
    """Fold real votes: the chosen arm against majority and the best single member."""
    given = voted.read(file)
    swarms = _swarms(given, models, swarm)
    for count in gold:
        if not 0 <= count < len(given.rows):
            raise click.UsageError(f"{count} gold questions of {len(given.rows)} leave nothing to test")
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(WORKERS) as pool:
        for name, members in swarms.items():
            questions = given.questions(members)
            for count in gold:
                splits = list(pool.map(partial(voted.split, questions, count), range(seeds)))
                rows.append(_vote_row(name, count, splits, len(questions)))
                if not json_:
                    click.echo(_vote_line(rows[-1], header=len(rows) == 1))
    _finish({"file": file.name, "seeds": seeds, "rows": rows}, _votes_short(rows), json_, check)


def _swarms(given: voted.Votes, models: str, swarm: str | None) -> dict[str, tuple[str, ...]]:
    """The members of each swarm that is asked for; raises UsageError where the file has not all of them."""
    named = tuple(filter(None, map(str.strip, models.split(","))))
    if named and swarm:
        raise click.UsageError("--models and --swarm both name a swarm; give one of them")
    swarms = {"given": named} if named else {**SWARMS, "S4": tuple(model for model in given.models if model != LEFT_OUT)}
    swarms = {name: members for name, members in swarms.items() if swarm in (None, name)}
    for member, count in Counter(named).items():
        if count > 1:
            raise click.UsageError(f"--models names {member!r} twice")
    missing = [member for members in swarms.values() for member in members if member not in given.models]
    if missing:
        has = f"{given.file.name} has no answers of {missing[0]!r}; it has those of {', '.join(given.models)}"
        raise click.UsageError(has if named else f"{has}. Name a swarm of these by --models")
    return swarms


def _vote_row(name: str, gold: int, splits: Sequence[voted.Split], questions: int) -> dict[str, Any]:
    percent = {
        field: round(100 * mean(getattr(one, field) for one in splits), 2)
        for field in ("majority", "best_single", "gold_best", "fuse", "chosen")
    }
    better = max(percent["majority"], percent["best_single"])
    arms = Counter(one.arm for one in splits)
    said = reliability.table([pair for one in splits for pair in one.confidences])
    return {
        "swarm": name,
        "gold": gold,
        "test": questions - gold,
        **percent,
        "chosen_less_better": round(percent["chosen"] - better, 2),
        "worst_seed": round(min(100 * (one.chosen - max(one.majority, one.best_single)) for one in splits), 2),
        "arms": dict(arms),
        "why": {one.arm: one.why for one in splits},
        "calibration_error": round(reliability.error(said), 2),
        "reliability": said,
        "mean_confidence": round(mean([c for one in splits for c, _ in one.confidences] or [0]) / 10, 2),
        "mean_gain_milli": round(mean(one.gain_milli for one in splits)),
    }


def _vote_line(row: dict[str, Any], header: bool) -> str:
    names = ("swarm", "gold", "majority", "best_single", "gold_best", "fuse", "chosen", "chosen_less_better", "calibration_error")
    line = "".join(f"{row[name]!s:>{max(8, len(name) + 2)}}" for name in names)
    title = "".join(f"{name:>{max(8, len(name) + 2)}}" for name in names)
    arms = ", ".join(f"{arm} {count}x" for arm, count in row["arms"].items())
    return (f"{title}  arm\n" if header else "") + f"{line}  {arms}\n{_reliability_line(row)}"


def _reliability_line(row: dict[str, Any]) -> str:
    parts = (f"{one['said']:.0f} {one['right']:.0f} ({one['count']})" for one in row["reliability"])
    return f"  said and right, percent: {'; '.join(parts)}"


def _votes_short(rows: Sequence[dict[str, Any]]) -> list[str]:
    short = []
    for row in rows:
        allowed = TOLERANCE.get(row["swarm"])
        if allowed is None or row["gold"] != TARGET_GOLD:
            continue
        if row["chosen_less_better"] < -allowed:
            short.append(
                f"{row['swarm']}: {row['chosen_less_better']} points beside the better of both where -{allowed} is allowed"
            )
        if row["swarm"] == "S1" and row["chosen_less_better"] <= 0:
            short.append("S1: the chosen arm is not above both majority and the best single member")
    return short


@main.command()
@file_option("--judgments", default=JUDGMENTS, help="Verdicts of models, as bench/data/README.md describes.")
@file_option("--humans", default=HUMANS, help="Verdicts of people on the same answers.")
@click.option("--gold", callback=_numbers, default="0,10", help="Gold questions.")
@click.option("--collude", callback=_numbers, default="0,1,2,3", help="Judges that push one answer.")
@seeds_option
@json_option
@check_option
def judgments(  # noqa: PLR0913 - the command's options
    judgments: Path, humans: Path, gold: tuple[int, ...], collude: tuple[int, ...], seeds: int, json_: bool, check: bool
) -> None:
    """Rank real prose by real judges: agreement with people and how often people's top answer wins, also under collusion."""
    given = judged.read_set(judgments, humans)
    _check_size(given, gold, collude)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(WORKERS) as pool:
        for count in gold:
            for liars in collude:
                splits = list(pool.map(partial(judged.split, given, count, liars), range(seeds)))
                rows.append(_judgment_row(count, liars, splits))
                if not json_:
                    click.echo(_judgment_line(rows[-1], header=len(rows) == 1))
    selves = judged.preferences_of_self(given)
    if not json_:
        parts = (f"{row['judge']} {row['own_milli']} {row['others_milli']}" for row in selves)
        click.echo(f"chance in thousandths that a judge, and that others, give its own answers: {'; '.join(parts)}")
    report = {"file": judgments.name, "humans": humans.name, "seeds": seeds, "rows": rows, "self_preference": selves}
    _finish(report, _judgments_short(rows), json_, check)


def _check_size(given: judged.Set, gold: Sequence[int], collude: Sequence[int] = ()) -> None:
    questions, judges = len(given.ballots), len(given.judges)
    for count in gold:
        if not 0 <= count < questions:
            raise click.UsageError(f"there are {questions} questions: {count} gold ones leave none to test")
    for liars in collude:
        if not 0 <= liars <= judges:
            raise click.UsageError(f"there are {judges} judges: {liars} of them cannot collude")


def _judgment_row(gold: int, liars: int, splits: Sequence[judged.Split]) -> dict[str, Any]:
    def percent(side: str, field: str) -> float:
        return round(100 * mean(getattr(getattr(one, side), field) for one in splits), 2)

    said = reliability.table([pair for one in splits for pair in one.confidences])
    return {
        "gold": gold,
        "colluding": liars,
        "agreement": percent("ours", "agreement"),
        "agreement_votes": percent("ours", "votes"),
        "top": percent("ours", "top"),
        "uniform_agreement": percent("uniform", "agreement"),
        "uniform_agreement_votes": percent("uniform", "votes"),
        "uniform_top": percent("uniform", "top"),
        "authors_agreement": percent("authors", "agreement"),
        "authors_top": percent("authors", "top"),
        "target_wins": round(100 * mean(one.pushed for one in splits), 2),
        "colluders_found": round(100 * mean(one.found for one in splits), 1),
        "honest_wronged": round(100 * mean(one.wronged for one in splits), 1),
        "calibration_error": round(reliability.error(said), 2),
        "reliability": said,
    }


def _judgment_line(row: dict[str, Any], header: bool) -> str:
    shown = {name: value for name, value in row.items() if name != "reliability"}
    line = "".join(f"{value!s:>{max(8, len(name) + 2)}}" for name, value in shown.items())
    title = "".join(f"{name:>{max(8, len(name) + 2)}}" for name in shown)
    return (f"{title}\n" if header else "") + f"{line}\n{_reliability_line(row)}"


def _judgments_short(rows: Sequence[dict[str, Any]]) -> list[str]:
    short = []
    honest = {row["gold"]: row for row in rows if not row["colluding"]}
    for row in rows:
        if row["colluding"] not in (0, 3) or (row["colluding"] and row["gold"] != 10):
            continue
        base = honest.get(row["gold"])
        slack = COLLUDING_SLACK if row["colluding"] else 0.0
        short += [
            f"{row['colluding']} colluding, {row['gold']} gold: {name} {row[name]} where uniform Bradley-Terry without "
            f"collusion has {base[f'uniform_{name}']} and {slack} less is allowed"
            for name in ("agreement", "top")
            if base is not None and row[name] < base[f"uniform_{name}"] - slack
        ]
    return short


@main.command()
@file_option("--judgments", default=JUDGMENTS, help="Verdicts of models, as bench/data/README.md describes.")
@file_option("--humans", default=HUMANS, help="Verdicts of people on the same answers.")
@click.option("--gold", callback=_numbers, default="0,10", help="Gold questions.")
@seeds_option
@json_option
def pairs(judgments: Path, humans: Path, gold: tuple[int, ...], seeds: int, json_: bool) -> None:
    """Ask judges all pairs of their plans, or after half of these only what could decide: calls and accuracy of both."""
    given = judged.read_set(judgments, humans)
    paired.check(given)
    _check_size(given, gold)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(WORKERS) as pool:
        for count in gold:
            splits = list(pool.map(partial(paired.split, given, count), range(seeds)))
            rows += [
                _pair_row("prose", count, name, [one[side] for one in splits]) for side, name in enumerate(("whole", "active"))
            ]
        found = list(pool.map(_recorded_plans, RECORDED_RUNS))
    for name in ("whole", "active"):
        shares = [one[name] for one in found]
        right, calls = round(100 * mean(right for right, _ in shares), 2), round(mean(calls for _, calls in shares), 2)
        rows.append({"set": "zoo", "gold": 50, "plan": name, "calls": calls, "right": right})
    for row in rows if not json_ else ():
        click.echo("  ".join(f"{name} {value}" for name, value in row.items()))
    _finish({"seeds": seeds, "rows": rows}, [], json_, check=False)


def _pair_row(name: str, gold: int, plan: str, asked: Sequence[paired.Asked]) -> dict[str, Any]:
    agreement, top = (round(100 * mean(getattr(one.figures, field) for one in asked), 2) for field in ("agreement", "top"))
    calls = round(mean(one.calls for one in asked), 1)
    return {"set": name, "gold": gold, "plan": plan, "calls": calls, "agreement": agreement, "top": top}


def _recorded_plans(run: int) -> dict[str, tuple[float, float]]:
    plan, _ = read_plan()
    return Study(plan, recording.read(RECORDINGS / f"run-{run}.json.gz")).pair_plans()


def _finish(report: dict[str, Any], short: list[str], json_: bool, check: bool) -> None:
    if json_:
        click.echo(json.dumps(report | {"short": short}, indent=1))
    for line in short:
        click.echo(line, err=True)
    if check and short:
        sys.exit(1)


if __name__ == "__main__":
    main()
