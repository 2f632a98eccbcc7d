"""Self-preference: a judge's view of its own answer beside the others' view of the same one."""

from protocol.round.conduct import SelfPreference, self_preference
from protocol.round.messages import Judgement

CLASSES = {0: 0, 1: 1, 2: 2}


def test_a_judge_that_prefers_itself_is_shown_beside_the_others() -> None:
    ballots = {
        0: [Judgement(0, 1, 8000), Judgement(2, 0, -8000), Judgement(1, 2, 8000)],
        1: [Judgement(0, 2, 0)],
        2: [Judgement(1, 0, 8000), Judgement(1, 2, -8000)],
    }
    assert self_preference(0, ballots, CLASSES) == SelfPreference(2, 1000, (0 + 500) // 2)
    assert self_preference(1, ballots, CLASSES) is None, "it judged no pair with its own answer"
    assert self_preference(2, ballots, CLASSES) == SelfPreference(1, 1000, 0)


def test_those_of_the_same_answer_are_no_witnesses() -> None:
    ballots = {0: [Judgement(0, 1, 8000)], 3: [Judgement(0, 1, 8000)]}
    assert self_preference(0, ballots, {0: 0, 3: 0, 1: 1}) is None
