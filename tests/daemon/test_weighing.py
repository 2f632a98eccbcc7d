"""What a round's header says of blocks: who is one voice with whom."""

import pytest

from daemon.weighing import Weighing
from protocol.job import Job, Role, Turn
from protocol.round.messages import Candidate
from protocol.round.weights import Trials
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
