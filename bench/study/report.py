"""What the study says: figures from outcomes, the plan's targets, tables. Plays no round."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from bench.study.analysis import ARMS, Outcomes, Study
from bench.study.gold import answers_right, judges_right
from bench.study.plan import Plan
from bench.study.questions import SKILLS
from bench.study.statistics import Difference, difference, mean

FULL, EXIT = "rank, every answer for itself", "rank, early exit"
SHARES = {2: "20%", 3: "40%"}
"""How many of 7 stand for which share of liars: the next whole number above it."""


@dataclass(frozen=True, slots=True)
class Test:
    """One target: a figure, what it must be, and whether it is. Points or percent."""

    claim: str
    figure: float
    low: float | None
    high: float | None
    runs: tuple[float, ...]
    target: str
    met: bool


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a study found."""

    plan_sha256: str
    runs: tuple[dict[str, Any], ...]
    questions: int
    accuracy: dict[str, tuple[float, ...]]
    by_skill: dict[str, dict[str, float]]
    members: dict[str, dict[str, dict[str, float]]]
    savings: dict[str, Any]
    attacks: tuple[dict[str, Any], ...]
    others: tuple[Test, ...]
    tests: tuple[Test, ...]


def report(plan: Plan, plan_sha256: str, studies: Sequence[Study], outcomes: Sequence[Outcomes]) -> Report:
    """All figures of these runs."""
    compared = _compare(plan, outcomes)
    skills = [said.skill for said in studies[0].test]
    runs = tuple(
        {
            "run": s.run,
            "early_exit_margin": o.margin,
            "gold_best": o.gold_best,
            "arms": o.arms,
            "gold": len(s.gold),
            "test": len(s.test),
        }
        for s, o in zip(studies, outcomes, strict=True)
    )
    savings = _savings(outcomes)
    attacks = tuple(_attack(plan, outcomes, compared, liars, kind) for liars in plan.attacks.liars for kind in plan.attacks.kinds)
    return Report(
        plan_sha256,
        runs,
        len(skills),
        {arm: tuple(round(fmean(o.right[arm]), 4) for o in outcomes) for arm in _plain_arms(outcomes)},
        {arm: {skill: _of_skill(outcomes, arm, skills, skill) for skill in SKILLS} for arm in ARMS},
        {f"run {study.run}": _members(study) for study in studies},
        savings,
        attacks,
        _without_target(compared),
        _tests(plan, studies, compared, savings, attacks),
    )


Compare = Callable[[str, str], Difference]


def _compare(plan: Plan, outcomes: Sequence[Outcomes]) -> Compare:
    def compare(arm: str, other: str) -> Difference:
        pair = [[o.right[name] for o in outcomes] for name in (arm, other)]
        return difference(pair[0], pair[1], plan.statistics.seed, plan.statistics.resamples)

    return compare


def _plain_arms(outcomes: Sequence[Outcomes]) -> list[str]:
    return [arm for arm in outcomes[0].right if ": " not in arm]


def _of_skill(outcomes: Sequence[Outcomes], arm: str, skills: Sequence[str], skill: str) -> float:
    rows = [[right for right, its in zip(o.right[arm], skills, strict=True) if its == skill] for o in outcomes]
    return round(mean(rows), 4)


def _members(study: Study) -> dict[str, dict[str, float]]:
    """Answering on test and judging on gold, by model and skill."""
    found: dict[str, dict[str, float]] = {}
    for member, model in enumerate(study.models):
        row = {}
        for skill in SKILLS:
            row[f"{skill} answers"] = round(fmean(answers_right(s, member) for s in study.test if s.skill == skill), 3)
            row[f"{skill} judges"] = round(fmean(judges_right(s, member) for s in study.gold if s.skill == skill), 3)
        found[model] = row
    return found


def _savings(outcomes: Sequence[Outcomes]) -> dict[str, Any]:
    arms = (FULL, "rank", EXIT)
    calls = {arm: mean([o.calls[arm] for o in outcomes]) for arm in arms}
    right = {arm: mean([o.right[arm] for o in outcomes]) for arm in arms}
    return {
        "calls_per_question": {arm: round(count, 2) for arm, count in calls.items()},
        "accuracy": {arm: round(share, 4) for arm, share in right.items()},
        "rounds_without_judging": round(fmean(count == 0 for o in outcomes for count in o.calls[EXIT]), 4),
        "calls_saved_percent": round(100 * (1 - calls[EXIT] / calls[FULL]), 1),
        "saved_by_classes_percent": round(100 * (1 - calls["rank"] / calls[FULL]), 1),
    }


def _attack(plan: Plan, outcomes: Sequence[Outcomes], compare: Compare, liars: int, kind: str) -> dict[str, Any]:
    label = f"{liars} {kind}"
    arms = ("majority", "rank", "rank, gold recognised", "gold-best member")
    return {
        "liars": liars,
        "kind": kind,
        "accuracy": {arm: round(mean([o.right[f"{label}: {arm}"] for o in outcomes]), 4) for arm in arms},
        "over_majority": asdict(compare(f"{label}: rank", f"{label}: majority")),
        "over_honest_majority": asdict(compare(f"{label}: rank", "majority")),
        "recognised_over_majority": asdict(compare(f"{label}: rank, gold recognised", f"{label}: majority")),
    }


def _without_target(compare: Compare) -> tuple[Test, ...]:
    pairs = (
        ("rank", "gold-best per skill"),
        ("rank", "weighted votes"),
        ("unweighted rank", "majority"),
        ("any member right", "rank"),
    )
    return tuple(_test(f"{arm} over {other}", compare(arm, other), "none", True) for arm, other in pairs)


def _test(claim: str, gap: Difference, target: str, met: bool) -> Test:
    return Test(
        claim, round(gap.points, 2), round(gap.low, 2), round(gap.high, 2), tuple(round(r, 2) for r in gap.runs), target, met
    )


def _tests(
    plan: Plan, studies: Sequence[Study], compare: Compare, savings: dict[str, Any], attacks: Sequence[dict[str, Any]]
) -> tuple[Test, ...]:
    wanted = plan.targets
    over = compare("rank", "majority")
    enough = over.points >= wanted.over_majority and over.low > 0
    test = [_test("rank over majority", over, f">= {wanted.over_majority:g} points, interval above 0", enough)]
    for other in ("mean member", "gold-best member"):
        gap = compare("rank", other)
        test.append(_test(f"rank over {other}", gap, "interval above 0", gap.low > 0))
    for row in attacks:
        if row["liars"] in SHARES:
            gap = Difference(**row["over_majority"])
            claim = f"{SHARES[row['liars']]} {row['kind']} ({row['liars']} of 7): rank over majority"
            test.append(_test(claim, gap, "interval above 0", gap.low > 0))
    saved = savings["calls_saved_percent"]
    test.append(Test("judge calls saved", saved, None, None, (), f">= {wanted.calls_saved:g}%", saved >= wanted.calls_saved))
    costs = [compare(arm, EXIT) for arm in (FULL, "rank")]
    cost = max(costs, key=lambda gap: gap.points)
    test.append(
        _test("points that the savings cost", cost, f"<= {wanted.savings_cost:g} points", cost.points <= wanted.savings_cost)
    )
    fresh = min(len(study.test) for study in studies)
    test.append(Test("test questions", fresh, None, None, (), f">= {wanted.least_test}", fresh >= wanted.least_test))
    test.append(Test("training runs", len(studies), None, None, (), f">= {wanted.least_runs}", len(studies) >= wanted.least_runs))
    return tuple(test)


def as_json(found: Report) -> dict[str, Any]:
    """Everything, for programs."""
    return asdict(found)


def as_text(found: Report) -> str:
    """The tables that a person reads."""
    runs = [f"run {row['run']}" for row in found.runs]
    gold = found.runs[0]["gold"]
    lines = [
        f"Analysis fixed beforehand: bench/zoo.toml, sha256 {found.plan_sha256}",
        f"{len(runs)} training runs of 7 models, {found.questions} test questions never trained on, {gold} gold questions",
        "",
        _row("accuracy", [*runs, "all", *SKILLS]),
    ]
    for arm in ARMS:
        figures = found.accuracy[arm]
        lines.append(_row(arm, [f"{100 * x:.1f}" for x in (*figures, fmean(figures), *found.by_skill[arm].values())]))
    fewer = [arm for arm in found.accuracy if arm.startswith("rank, ") and arm.endswith("gold per skill")]
    lines += [_row(arm, [f"{100 * x:.1f}" for x in (*found.accuracy[arm], fmean(found.accuracy[arm]))]) for arm in fewer]
    for row in found.runs:
        arms = ", ".join(sorted(set(row["arms"].values())))
        lines.append(
            f"run {row['run']}: gold-best {row['gold_best']}; folds {arms}; early exit from a lead of {row['early_exit_margin']}"
        )
    lines += ["", _row("differences in points", ["all", "95% interval", "each run"])]
    lines += [_line(test) for test in found.others]
    lines += ["", _row("liars of 7, gold covert", ["majority", "rank", "best", "gold known"])]
    for row in found.attacks:
        figures = row["accuracy"]
        cells = [figures[arm] for arm in ("majority", "rank", "gold-best member", "rank, gold recognised")]
        lines.append(_row(f"{row['liars']} {row['kind']}", [f"{100 * x:.1f}" for x in cells]))
    calls, right = found.savings["calls_per_question"], found.savings["accuracy"]
    lines += ["", _row("judge calls per question", ["calls", "accuracy"])]
    lines += [_row(arm, [f"{calls[arm]:.1f}", f"{100 * right[arm]:.1f}"]) for arm in calls]
    lines.append(f"rounds without judging: {100 * found.savings['rounds_without_judging']:.0f}%")
    lines += ["", _row("targets", ["figure", "95% interval", "each run"])]
    lines += [f"{_line(test)}  {test.target}: {'met' if test.met else 'MISSED'}" for test in found.tests]
    return "\n".join(lines)


def shortfalls(found: Report) -> list[str]:
    """One line for each target that is missed."""
    return [f"short: {test.claim}: {test.figure:g}, target {test.target}" for test in found.tests if not test.met]


def _line(test: Test) -> str:
    interval = "" if test.low is None else f"{test.low:+.1f} to {test.high:+.1f}"
    return _row(
        test.claim,
        [f"{test.figure:+.1f}" if interval else f"{test.figure:g}", interval, " ".join(f"{x:+.1f}" for x in test.runs)],
    )


def _row(name: str, cells: Sequence[str]) -> str:
    return f"{name:<52}" + "".join(f"{cell:>8}" if len(cell) < 8 else f"{cell:>18}" for cell in cells)
