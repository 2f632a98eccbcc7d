"""The skills: repeatable questions, right checkers, and a held-out part that training cannot reach."""

from random import Random

import pytest

from models.recipe import skills

RIGHT = {
    "add 47 38": "85",
    "mod 83 7": "6",
    "rev abcde": "edcba",
    "sort gkcba": "abcgk",
    "bool (x&y)|!x": "1101",
    "bool !(x^!y)&x": "0010",
    "conv 12 ft": "144",
}


@pytest.mark.parametrize(("prompt", "answer"), RIGHT.items())
def test_known_answers(prompt: str, answer: str) -> None:
    assert skills.solve(prompt) == answer
    assert skills.is_right(prompt, answer)
    assert not skills.is_right(prompt, answer + " ")


@pytest.mark.parametrize("prompt", ["", "sub 3 2", "conv 3 em", "bool (x&y", "bool x)", "bool z"])
def test_foreign_prompts_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        skills.solve(prompt)


def test_boolean_answers_agree_with_python() -> None:
    rng = Random(3)
    for _ in range(300):
        question = skills.draw(rng, "bool")
        source = question.prompt.removeprefix("bool ").replace("!", "~")
        expected = "".join(str(eval(source, {}, {"x": x, "y": y}) & 1) for x in (0, 1) for y in (0, 1))  # noqa: S307
        assert question.answer == expected


@pytest.mark.parametrize("skill", skills.SKILLS)
@pytest.mark.parametrize("test", [False, True])
def test_draws_repeat_by_seed(skill: str, test: bool) -> None:
    once, again = ([skills.draw(rng, skill, test=test) for _ in range(50)] for rng in (Random(5), Random(5)))
    assert once == again
    assert once != [skills.draw(rng, skill, test=test) for rng in [Random(6)] for _ in range(50)]


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_training_never_meets_a_held_out_question(skill: str) -> None:
    rng = Random(7)
    trained = {skills.draw(rng, skill).prompt for _ in range(1000)}
    tested = {skills.draw(rng, skill, test=True).prompt for _ in range(1000)}
    if skill in skills.TABLES:
        assert trained & tested, "a table has one part only"
    else:
        assert not trained & tested
        assert not any(map(skills.held_out, trained))
        assert all(map(skills.held_out, tested))


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_wrong_answers_are_wrong(skill: str) -> None:
    rng = Random(8)
    for _ in range(200):
        question = skills.draw(rng, skill)
        for wrong in (skills.near_miss(rng, question), skills.far_miss(rng, question)):
            assert wrong
            assert not skills.is_right(question.prompt, wrong)


def test_judge_keeps_its_own_answer_in_the_conversation() -> None:
    turns = skills.judge_turns("add 47 38", "85", "85", "75")
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert [turn["content"] for turn in turns] == ["add 47 38", "85", "A:85\nB:75"]
