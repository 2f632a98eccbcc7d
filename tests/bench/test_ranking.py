"""Real judges' verdicts through the project's fold: what gold questions are worth where colluders are the majority."""

import pytest
from click.testing import CliRunner

from bench.evaluation import judgments
from bench.ranking import HUMANS, JUDGMENTS, main


def test_gold_holds_a_majority_of_colluders_off() -> None:
    given = judgments.read_set(JUDGMENTS, HUMANS)
    found = judgments.split(given, 10, 3, seed=1)
    assert found.ours.agreement > found.uniform.agreement + 0.05
    assert found.ours.top > found.uniform.top + 0.2
    assert found.pushed < 0.35
    blind = judgments.split(given, 0, 3, seed=1)
    assert blind.ours == blind.uniform, "without gold nothing is known of anybody"


@pytest.mark.parametrize("command", ["judgments", "pairs"])
def test_gold_that_leaves_no_question_to_test_is_wrong_usage(command: str) -> None:
    ended = CliRunner().invoke(main, [command, "--gold", "40"])
    assert (ended.exit_code, "there are 40 questions" in ended.output) == (2, True)
