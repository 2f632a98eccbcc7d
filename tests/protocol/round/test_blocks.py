"""Blocks: who is taken for one voice, and who is not although it errs like others."""

import pytest

from protocol.round.blocks import LEAST_COMMON, LEAST_ERRORS, Errors, blocks, is_beyond_chance
from tests.sim.round_network import seeded


def rounds(seed: int, count: int, together: int = 0, honest: int = 3, shared: float = 0.0) -> list[Errors]:
    """Members "b0".. err alike always; the others err in 3 of 10 pairs, a share of that together (as on hard questions)."""
    chance = seeded(seed)
    names = [*(f"b{n}" for n in range(together)), *(f"h{n}" for n in range(honest))]
    found = []
    for _ in range(count):
        pushed, hard = chance.random() < 0.4, chance.random() < 0.3
        marks = ["x" if pushed else "."] * together
        marks += ["x" if (hard if chance.random() < shared else chance.random() < 0.3) else "." for _ in range(honest)]
        found.append(Errors(tuple(names), "-" * len(names), ("".join(marks),)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_those_that_push_one_answer_are_one_block_also_as_a_majority(seed: int) -> None:
    assert blocks(rounds(seed, 40, together=3, honest=2)) == (frozenset({"b0", "b1", "b2"}),)


@pytest.mark.parametrize("seed", range(5))
def test_honest_members_that_find_the_same_things_hard_are_none(seed: int) -> None:
    """A share of 0.65 of what they say together is a correlation of their errors of 0.42, as measured on real judges."""
    assert blocks(rounds(seed, 60, honest=5, shared=0.65)) == ()


def test_equal_wrong_answers_tell_and_different_ones_do_not() -> None:
    same = [Errors(("p", "q"), "aa" if place % 3 == 0 else "..") for place in range(30)]
    apart = [Errors(("p", "q"), "ab" if place % 3 == 0 else "..") for place in range(30)]
    assert blocks(same) == (frozenset("pq"),)
    assert blocks(apart) == ()


def test_blocks_are_joined_and_silence_says_nothing() -> None:
    def both(first: str, second: str, place: int) -> Errors:
        return Errors((first, second, "w"), ("aa-" if place % 3 == 0 else "..-"))

    found = [both(*pair, place) for pair in (("p", "q"), ("q", "r")) for place in range(30)]
    assert blocks(found) == (frozenset("pqr"),)


@pytest.mark.parametrize(
    ("common", "first", "second", "alike", "expected"),
    [
        (LEAST_COMMON, LEAST_ERRORS, LEAST_ERRORS, LEAST_ERRORS, True),
        (LEAST_COMMON - 1, LEAST_ERRORS, LEAST_ERRORS, LEAST_ERRORS, False),
        (LEAST_COMMON, LEAST_ERRORS - 1, LEAST_ERRORS - 1, LEAST_ERRORS - 1, False),
        (100, 30, 30, 18, False),
        (100, 30, 30, 29, True),
        (40, 40, 40, 40, False),
        (40, 0, 10, 0, False),
    ],
)
def test_what_is_beyond_chance(common: int, first: int, second: int, alike: int, expected: bool) -> None:
    assert is_beyond_chance(common, first, second, alike) is expected
