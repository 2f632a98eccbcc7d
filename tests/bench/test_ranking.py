"""Real judges' verdicts through the project's fold: what gold questions are worth where colluders are the majority."""

from bench.evaluation import judgments
from bench.ranking import HUMANS, JUDGMENTS


def test_gold_holds_a_majority_of_colluders_off() -> None:
    given = judgments.read_set(JUDGMENTS, HUMANS)
    found = judgments.split(given, 10, 3, seed=1)
    assert found.ours.agreement > found.uniform.agreement + 0.05
    assert found.ours.top > found.uniform.top + 0.2
    assert found.pushed < 0.35
    blind = judgments.split(given, 0, 3, seed=1)
    assert blind.ours == blind.uniform, "without gold nothing is known of anybody"
