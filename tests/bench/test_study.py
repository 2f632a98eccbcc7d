"""The study of real models: its questions and recordings, the lies it plays, and that rounds are played by the round's code."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import pytest
from click.testing import CliRunner

from bench import zoo
from bench.study import gold as golden
from bench.study.analysis import Study
from bench.study.attacks import Kind, attacked, coalition
from bench.study.constants import wins, with_constant
from bench.study.plan import read_plan
from bench.study.questions import FINITE, SKILLS, questions
from bench.study.recording import Recording, Said, read, write
from bench.study.report import as_json, as_text, report, shortfalls
from bench.study.rounds import Committee, play, play_undeduplicated, round_of
from bench.study.statistics import difference
from models.recipe import skills
from protocol.round.fold import Voice
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, AnswerKind, FoldParameters
from protocol.wire.ids import PeerId

PLAN, _ = read_plan()
FILES = sorted(zoo.RECORDINGS.glob("*.json.gz"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def shipped() -> Recording:
    return read(zoo.RECORDINGS / "run-1.json.gz")


def committee(margin: int = 0) -> Committee:
    voices = {seat: Voice(1000, 1000, bytes([seat]) * 32) for seat in range(7)}
    return Committee(
        tuple(range(7)), tuple(PeerId(f"p{seat}") for seat in range(7)), voices, FoldParameters(early_exit_margin=margin)
    )


def toy(answers: tuple[int, ...], right: str = "b") -> Said:
    """Three answers a, b, c; every judge prefers the later letter by a nat, whichever is shown first."""
    odds = [(first > second) * 2000 - 1000 for first in range(3) for second in range(3) if first != second]
    return Said("rev x", right, False, ("a", "b", "c"), answers, 0, tuple((value,) * 7 for value in odds))


def test_no_question_was_trained_on_and_none_is_asked_twice() -> None:
    asked = questions(PLAN.questions.seed, PLAN.questions.gold_per_skill, PLAN.questions.test)
    assert asked == questions(PLAN.questions.seed, PLAN.questions.gold_per_skill, PLAN.questions.test)
    assert len({question.prompt for question in asked}) == len(asked)
    assert all(skills.held_out(question.prompt) for question in asked)
    assert all(question.rival != question.right == skills.solve(question.prompt) for question in asked)
    gold = [question for question in asked if question.gold]
    assert len(asked) - len(gold) == PLAN.questions.test >= PLAN.targets.least_test
    assert {skill: sum(q.skill == skill for q in gold) for skill in SKILLS} == dict.fromkeys(
        SKILLS, PLAN.questions.gold_per_skill
    )


def test_of_the_finite_skills_every_held_out_question_is_asked() -> None:
    asked = {q.prompt for q in questions(PLAN.questions.seed, PLAN.questions.gold_per_skill, PLAN.questions.test)}
    rng = Random(3)
    for skill in FINITE:
        assert {skills.draw(rng, skill, test=True).prompt for _ in range(300)} <= asked


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer than the held-out ones"):
        questions(1, 50, 500)


def test_the_recordings_are_those_that_were_published() -> None:
    listed = dict(reversed(line.split("  ")) for line in (zoo.RECORDINGS / "SHA256SUMS").read_text().splitlines())
    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES}


@each_file
def test_a_recording_answers_the_questions_of_the_plan(path: Path) -> None:
    found = read(path)
    asked = questions(PLAN.questions.seed, PLAN.questions.gold_per_skill, PLAN.questions.test)
    assert [(said.prompt, said.right, said.gold) for said in found.said] == [(q.prompt, q.right, q.gold) for q in asked]
    assert len(found.models) == len(set(found.sha256)) == 7
    for said in found.said:
        assert len(said.log_odds_milli) == len(said.texts) * (len(said.texts) - 1)
        assert all(len(row) == 7 and max(map(abs, row)) <= LOG_ODDS_CLAMP_MILLI for row in said.log_odds_milli)
        assert len(said.answers) == 7
        assert all(-1 <= place < len(said.texts) for place in said.answers)
        assert said.texts[said.lure] != said.right


def test_run_1_is_the_shipped_models(shipped: Recording) -> None:
    catalog = json.loads((zoo.ROOT / "models" / "catalog.json").read_text())
    assert dict(zip(shipped.models, shipped.sha256, strict=True)) == {entry["name"]: entry["sha256"] for entry in catalog}


def test_a_recording_survives_its_file(shipped: Recording, tmp_path: Path) -> None:
    few = msgspec.structs.replace(shipped, said=shipped.said[:3])
    write(tmp_path / "a.json.gz", few)
    write(tmp_path / "b.json.gz", few)
    assert read(tmp_path / "a.json.gz") == few
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_who_agrees_is_not_judged() -> None:
    said = toy((1,) * 7)
    played = play(round_of(1, said), said, committee(), "rank")
    assert played is not None
    assert (played.answer, played.calls, played.result.basis) == ("b", 0, "unanimous")


def test_judges_can_overrule_votes_and_majority_never_asks_them() -> None:
    said = toy((0, 0, 0, 1, 1, 2, 2))
    votes = play(round_of(1, said), said, committee(), "majority")
    judged = play(round_of(1, said), said, committee(), "rank")
    assert votes is not None
    assert judged is not None
    assert (votes.answer, votes.calls) == ("a", 0)
    assert (judged.answer, judged.result.basis) == ("c", "judged")
    # three pairs and one of them swapped, for each judge: nobody's answer stands alone, so all judge all
    assert judged.calls == 7 * 4


def test_an_early_exit_asks_nobody_and_a_member_without_an_answer_sits_out() -> None:
    said = toy((0, 0, 0, 0, 0, 1, -1))
    early = play(round_of(1, said), said, committee(margin=4), "rank")
    assert early is not None
    assert (early.answer, early.calls) == ("a", 0)
    late = play(round_of(1, said), said, committee(margin=5), "rank")
    assert late is not None
    assert {judge.seat for judge in late.result.judges} == {0, 1, 2, 3, 4, 5}


def test_without_classes_every_answer_stands_for_itself() -> None:
    said = toy((0, 0, 0, 1, 1, 2, 2))
    played = play_undeduplicated(round_of(1, said), said, committee())
    assert played is not None
    assert len(played.result.classes) == 7
    # of the 21 pairs of answers each judge is shown the 15 without its own, and a quarter of them swapped
    assert played.calls == 7 * (15 + 4)


@pytest.mark.parametrize(("kind", "winner"), [("exact", "C"), ("choice", "B")])
def test_answers_are_equal_by_the_kind_that_a_header_says(kind: AnswerKind, winner: str) -> None:
    said = msgspec.structs.replace(toy((0, 0, 1, 1, 2, 2, 2)), texts=("B", "B.", "C"))
    played = play(round_of(1, said), said, replace(committee(), fold=FoldParameters(answers=kind)), "majority")
    assert played is not None
    assert played.answer == winner


def test_nobody_answers() -> None:
    said = toy((-1,) * 7)
    assert play(round_of(1, said), said, committee(), "rank") is None
    assert play_undeduplicated(round_of(1, said), said, committee()) is None


@pytest.mark.parametrize("kind", ["inverted", "pushing", "colluding"])
def test_honest_members_say_what_they_said(shipped: Recording, kind: Kind) -> None:
    liars = frozenset({1, 4})
    for said in shipped.said[::97]:
        lied = attacked(said, liars, kind)
        for member in set(range(7)) - liars:
            assert lied.answers[member] == said.answers[member]
            assert [row[member] for row in lied.log_odds_milli] == [row[member] for row in said.log_odds_milli]


def test_liars_lie() -> None:
    said, liars = toy((1, 1, 1, 1, 1, 2, 2)), frozenset({0})
    assert [row[0] for row in attacked(said, liars, "inverted").log_odds_milli] == [-row[0] for row in said.log_odds_milli]
    pushed = attacked(said, liars, "pushing")
    assert pushed.answers == said.answers
    assert {pair: odds[0] for pair, odds in pushed.pairs().items()} == {
        (0, 1): 8000, (0, 2): 8000, (1, 0): -8000, (2, 0): -8000, (1, 2): -1000, (2, 1): 1000,
    }  # fmt: skip
    assert attacked(said, liars, "colluding").answers == (0, 1, 1, 1, 1, 2, 2)


def test_a_constant_is_judged_against_every_text_and_loses_where_all_judges_are_against_it(shipped: Recording) -> None:
    said = next(one for one in shipped.said if not one.gold)

    def asked(tasks: Sequence[tuple[int, str, str, str, str]]) -> list[int]:
        assert {prompt for _, prompt, *_ in tasks} == {said.prompt}
        return [8000 if first == "?" else -8000 for *_, first, _ in tasks]

    told = with_constant(said, "?", 3, asked)
    assert told.texts[told.answers[3]] == "?"
    assert told.answers[:3] + told.answers[4:] == said.answers[:3] + said.answers[4:]
    assert {pair: odds for pair, odds in told.pairs().items() if len(said.texts) not in pair} == said.pairs()
    assert {odds for pair, row in told.pairs().items() if pair[0] == len(said.texts) for odds in row} == {8000}
    same = dict.fromkeys(SKILLS, "?")
    assert wins(shipped, [said], same, lambda tasks: [-8000 if t[3] == "?" else 8000 for t in tasks], covert=True) == [False]
    assert wins(shipped, [said], dict.fromkeys(SKILLS, said.right), asked, covert=True) == [], "it is the answer there"


def test_every_member_lies_equally_often() -> None:
    groups = [coalition(1, f"add {number}", 7, 3) for number in range(2000)]
    assert all(len(group) == 3 for group in groups)
    counts = [sum(member in group for group in groups) for member in range(7)]
    assert max(abs(count - 2000 * 3 / 7) for count in counts) < 4 * (2000 * 3 / 7 * 4 / 7) ** 0.5


def test_tallies_count_gold_and_hold_no_more_than_a_window(shipped: Recording) -> None:
    gold = [said for said in shipped.said if said.gold]
    found = golden.records([*gold, *gold], 7)
    for skill, record in found.items():
        its = [said for said in gold if said.skill == skill]
        for member, tally in enumerate(record.answering):
            assert tally.right_milli + tally.wrong_milli == 50_000
            assert tally.right_milli == 1000 * sum(golden.answers_right(said, member) for said in its)


def test_a_liar_s_gold_shows_it(shipped: Recording) -> None:
    gold = [said for said in shipped.said if said.gold]
    lied = golden.records([attacked(said, frozenset({3}), "colluding") for said in gold], 7)
    assert all(record.answering[3].right_milli == record.judging[3].right_milli == 0 for record in lied.values())


def test_paired_differences() -> None:
    ours, theirs = [[1.0] * 60 + [0.0] * 40] * 2, [[1.0] * 50 + [0.0] * 50] * 2
    gap = difference(ours, theirs, seed=1, resamples=400)
    assert gap.points == pytest.approx(10)
    assert gap.runs == pytest.approx((10, 10))
    assert 3 < gap.low < 7 < 13 < gap.high < 18
    assert gap == difference(ours, theirs, seed=1, resamples=400)
    same = difference(ours, ours, seed=1, resamples=50)
    assert (same.points, same.low, same.high) == (0, 0, 0)


def test_the_whole_analysis_on_a_few_questions(shipped: Recording) -> None:
    gold = [said for said in shipped.said if said.gold]
    gold, few = gold[::8], [msgspec.structs.replace(said, gold=False) for said in gold[1::16]]
    plan = msgspec.structs.replace(PLAN, runs=(1,), statistics=msgspec.structs.replace(PLAN.statistics, resamples=100))
    study = Study(plan, msgspec.structs.replace(shipped, said=(*gold, *few)))
    outcomes = study.outcomes()
    found = report(plan, "0" * 64, [study], [outcomes])
    ceiling = outcomes.right["any member right"]
    for arm, row in outcomes.right.items():
        assert len(row) == len(few)
        if ": " not in arm:
            assert all(right <= most for right, most in zip(row, ceiling, strict=True)), arm
    assert all(
        early in (0, whole) for early, whole in zip(outcomes.calls["rank, early exit"], outcomes.calls["rank"], strict=True)
    )
    assert any("test questions" in line for line in shortfalls(found))
    assert "MISSED" in as_text(found)
    assert json.loads(json.dumps(as_json(found)))["questions"] == len(few)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    missing = CliRunner().invoke(zoo.main, ["--recordings", str(tmp_path)])
    assert missing.exit_code == 1
    assert "no recording of run 1" in missing.output
    (tmp_path / "run-1.json.gz").write_bytes(b"not gzip")
    broken = CliRunner().invoke(zoo.main, ["--recordings", str(tmp_path)])
    assert broken.exit_code == 1
    assert "is no recording" in broken.output
    unshipped = CliRunner().invoke(zoo.main, ["--record", "2", "--recordings", str(tmp_path)])
    assert unshipped.exit_code == 2
    assert "--models" in unshipped.output
