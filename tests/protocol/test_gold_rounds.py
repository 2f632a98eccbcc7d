"""What a round on a known question shows: marks, errors together, trials of confidence. The round is whole, and simulated."""

from dataclasses import replace

import pytest
from msgspec import structs

from protocol.probes.answers import Known
from protocol.probes.gold import errors_of_round, marks_of_round, trials_of_round
from protocol.round import events as ev
from protocol.round.messages import FoldParameters
from protocol.round.transcript import Replayed, replay
from tests.sim.round_network import Behaviour, RoundNetwork, Weather

TRUTH = Known("42", "number")
SAID = {1: "42", 2: "41", 3: "40", 4: "42", 5: "42"}


def judge(number: int, question: ev.PairQuestion) -> int:
    """Members 2 and 3 push "41"; the others know."""
    shown = question.turns[-1].content.split("\n")
    wanted = ("41", "42", "40") if number in (2, 3) else ("42", "41", "40")
    order = [wanted.index(line[2:]) for line in shown]
    return 8000 if order[0] < order[1] else -8000


@pytest.fixture(scope="module")
def replayed() -> Replayed:
    network = RoundNetwork(3, 5, Weather(), Behaviour(answer=lambda number: SAID[number], judge=judge))
    network.run(network.header(fold=FoldParameters(own_pairs=True)))
    return replay(network.closed[(network.requester, "requester")].transcript)


def numbers(replayed: Replayed) -> dict[str, int]:
    """The member's number in SAID, by its id."""
    network = RoundNetwork(3, 5, Weather(), Behaviour())
    return {peer: network.ids.index(peer) for peer in (row.peer_id for row in replayed.members)}


def test_pairs_with_a_judges_favourite_are_marked_apart(replayed: Replayed) -> None:
    named = numbers(replayed)
    marks = {(named[mark.peer], mark.skill): (mark.right, mark.wrong) for mark in marks_of_round(replayed, TRUTH, "add")}
    assert [marks[number, "add"] for number in (1, 2, 3, 4, 5)] == [(1, 0), (0, 1), (0, 1), (1, 0), (1, 0)]
    assert marks[2, "judge.first.add"] == (0, 1), "41 before 42 is where it lies"
    assert marks[2, "judge.add"] == (1, 0), "42 before 40 it says rightly"
    assert marks[1, "judge.add"] == (2, 0), "both telling pairs hold its favourite: nothing to tell apart"
    assert (1, "judge.first.add") not in marks


def test_errors_are_those_of_answers_and_of_pairs_with_the_favourite(replayed: Replayed) -> None:
    errors = errors_of_round(replayed, TRUTH)
    place = {numbers(replayed)[name]: index for index, name in enumerate(errors.members)}
    assert errors.answers[place[2]] != errors.answers[place[3]], "two different wrong answers"
    assert errors.answers[place[1]] == "."
    assert ("x", "x") in [(pair[place[2]], pair[place[3]]) for pair in errors.pairs]


def test_trials_are_of_the_rounds_arm_and_of_a_majority(replayed: Replayed) -> None:
    trials = trials_of_round(replayed, TRUTH)
    assert {arm: right for arm, (_, right) in trials.items()} == {"fuse": True, "majority": True}
    assert trials["majority"][0] == (2000, 2000, 3000), "3 votes lead 1 and 1; and one answer that nobody gave"


def test_a_majority_is_no_trial_of_another_arm_and_its_blocks_are_one_voice() -> None:
    network = RoundNetwork(3, 5, Weather(), Behaviour(answer=lambda number: SAID[number]))
    header = network.header(strategy="majority")
    pair = {network.ids[1], network.ids[4]}
    placed = tuple(structs.replace(one, block=1) if one.peer_id in pair else one for one in header.candidates)
    network.run(structs.replace(header, candidates=placed))
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    assert trials_of_round(replayed, TRUTH) == {"majority": ((1000, 1000, 2000), True)}, "2 voices lead 1 and 1"


def test_who_was_dropped_is_no_part_of_a_trial(replayed: Replayed) -> None:
    rows = tuple(replace(row, dropped=numbers(replayed)[row.peer_id] in (1, 4)) for row in replayed.members)
    trials = trials_of_round(replace(replayed, members=rows), TRUTH)
    assert trials["majority"][0] == (0, 0, 1000), "without two of three, each answer has one vote"


def test_our_own_member_is_left_out() -> None:
    network = RoundNetwork(3, 3, Weather(), Behaviour(answer=lambda number: ("42", "42", "41", "40")[number]), True)
    network.run(network.header())
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    assert network.requester not in errors_of_round(replayed, TRUTH).members
    assert trials_of_round(replayed, TRUTH)["majority"][0] == (0, 0, 1000), "without ours, each answer has one vote"
