"""What a round's header says: who is one voice with whom, and from which lead in votes on nobody judges."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.weighing import Weighing
from protocol.job import Job, Role, Turn
from protocol.round.classes import settled
from protocol.round.expectation import JUDGED_ANYWAY, Seat, of_round
from protocol.round.fold import Contributions, Voice, fold
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, Candidate, Judgement
from protocol.round.tally import counted_classes
from protocol.round.weights import Trials
from protocol.wire.ids import sha256
from tests.daemon.conftest import ShownGold

JOB = Job((Turn(Role.USER, "12 + 30"),))


@pytest.mark.parametrize(
    ("blocks", "numbers"),
    [
        (("ac",), {"a": 1, "c": 1}),
        (("ax", "cd"), {"c": 1, "d": 1}),
        (("ab",), {}),
        (("abc",), {"a": 1, "b": 1, "c": 1}),
    ],
    ids=["two configurations", "one that is not invited", "one configuration is one voice as it is", "both"],
)
def test_a_block_is_of_invited_peers_of_several_configurations(blocks: tuple[str, ...], numbers: dict[str, int]) -> None:
    """Of a and b, which share a configuration with e, a block of their own would make two voices."""
    configurations = {"a": b"1", "b": b"1", "e": b"1", "c": b"2", "d": b"3"}
    candidates = [Candidate(peer, "m", digest * 32) for peer, digest in configurations.items()]
    planned = Weighing(gold=ShownGold(*blocks)).plan(candidates, JOB, "rank", 5)
    assert {one.peer_id: one.block for one in planned.candidates if one.block} == numbers


def test_members_that_are_one_voice_are_expected_to_be_right_as_often_as_one() -> None:
    """Five peers, each right in 8 of 10 cases: five voices are right more often than one, a block of them is not."""
    candidates = [Candidate(peer, "m", peer.encode() * 32) for peer in "abcde"]

    def expected(*blocks: str) -> float:
        weighing = Weighing(lambda peer, skill: Trials(80_000, 20_000), gold=ShownGold(*blocks))
        return weighing.plan(candidates, JOB, "rank", 5).round.right

    assert expected() > 0.85
    assert expected("abcde") < 0.8


ROUND = sha256(b"a round")
SHARES = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50)), min_size=3, max_size=7)


@given(SHARES, st.data())
def test_where_votes_settle_a_round_no_ballot_could_change_its_winner(
    shares: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Whatever gold says of members, as answerers and as judges of their favourites and of others."""

    def tally(peer: str, skill: str) -> Trials:
        place = 2 if skill.startswith("judge.first.") else 1 if skill.startswith("judge.") else 0
        right = shares[int(peer)][place]
        return Trials(1000 * right, 1000 * (50 - right))

    candidates = [Candidate(str(number), "m", bytes([number]) * 32) for number in range(len(shares))]
    planned = Weighing(tally, rng=Random(data.draw(st.integers(0, 5)))).plan(candidates, JOB, "rank", len(shares))
    voices = {seat: Voice.of(candidate) for seat, candidate in enumerate(planned.candidates)}
    answers = {seat: data.draw(st.sampled_from(["1", "2", "3"])) for seat in voices}
    classes = counted_classes(ROUND, answers, voices, planned.fold)
    if len(classes) < 2 or not settled(classes, planned.fold.early_exit_margin):
        return
    against = range(1, len(classes))
    for rival in against:
        for name in ("judge_weight_milli", "favourite_weight_milli"):
            signs = {seat: -1 if (getattr(voice, name) or voice.judge_weight_milli) < 0 else 1 for seat, voice in voices.items()}
            said = [(rival, 0, 1)] + [(rival, other, 1) for other in against if other != rival]
            ballots = {
                seat: [Judgement(a, b, sign * odds * LOG_ODDS_CLAMP_MILLI) for a, b, odds in said] for seat, sign in signs.items()
            }
            assert fold(Contributions(ROUND, "rank", planned.fold, voices, classes, ballots)).winner == 0


def test_known_voters_and_weak_judges_settle_rounds_but_for_a_part_that_is_judged_anyway() -> None:
    """Seven right in 9 of 10 cases, whose judging is hardly better than a coin: their lead is beyond the judges."""
    candidates = [Candidate(peer, "m", peer.encode() * 32) for peer in "abcdefg"]
    weighing = Weighing(lambda peer, skill: Trials(28_000, 22_000) if "judge" in skill else Trials(45_000, 5_000))
    margins = [weighing.plan(candidates, JOB, "rank", 7).fold.early_exit_margin for _ in range(100)]
    assert set(margins) == {0, 2}
    assert abs(margins.count(0) / 100 - JUDGED_ANYWAY) < 0.1
    assert {weighing.plan(candidates, JOB, "majority", 7).fold.early_exit_margin for _ in range(9)} == {0}
    prose = Job((Turn(Role.USER, "Tell me about Paris"),))
    assert {weighing.plan(candidates, prose, "rank", 7).fold.early_exit_margin for _ in range(9)} == {0}, (
        "votes are left out there"
    )


def test_a_round_that_votes_settle_is_expected_to_cost_fewer_judgements() -> None:
    strong, weak = (of_round([Seat(0.8, 0.7, 2000, judging)] * 7, judged=True, rng=Random(1)) for judging in (3000, 100))
    assert 7 < weak.cost < 10 < strong.cost < 16
