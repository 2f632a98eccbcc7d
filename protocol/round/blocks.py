"""Which members err together far beyond chance: blocks, each counted as one voice. Pure; decides no weight and reads no message.

Honest members err alike too, on whatever is hard: their errors correlate by 0.3 to 0.43 (real models, bench/data). A block errs
alike where it matters: five real judges on pairs that hold what both put first correlate by 0.42, with a deviation of 0.2 over
draws of ten questions; those that push one answer by 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import sqrt

import msgspec

LEAST_COMMON = 20
"""Marks that two members must share before anything is said of them."""

LEAST_ERRORS = 5
"""Errors that they must have made alike."""

HONEST = 0.7
"""Correlation of errors that is still taken for honest."""

SURE = 2.0
"""Standard errors by which a correlation must exceed HONEST."""

RIGHT, SILENT = ".", "-"


class Errors(msgspec.Struct, frozen=True):
    """What one question of known answer shows: a mark for each of `members`, in a string, for the answers and for each pair of
    answers that was judged. RIGHT; SILENT where it said nothing that tells; other letters are errors, equal letters equal ones.
    """

    members: tuple[str, ...]
    answers: str
    pairs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError where a mark is missing."""
        if any(len(marks) != len(self.members) for marks in (self.answers, *self.pairs)):
            raise ValueError("a mark for each member is needed")


def blocks(found: Iterable[Errors]) -> tuple[frozenset[str], ...]:
    """Members that err together, two or more each, in order of their least name."""
    answers: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    pairs: defaultdict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for errors in found:
        _count(answers, errors.members, (errors.answers,))
        _count(pairs, errors.members, errors.pairs)
    joined: dict[str, set[str]] = {}
    for table in (answers, pairs):
        for (one, other), counts in table.items():
            if is_beyond_chance(*counts):
                _join(joined, one, other)
    distinct = {id(group): group for group in joined.values()}.values()
    return tuple(sorted((frozenset(group) for group in distinct), key=min))


def is_beyond_chance(common: int, first: int, second: int, alike: int) -> bool:
    """Whether two members that share `common` marks, err in `first` and `second` of them, and err `alike`, are a block."""
    spread = first * (common - first) * second * (common - second)
    if common < LEAST_COMMON or alike < LEAST_ERRORS or not spread:
        return False
    correlation = (alike * common - first * second) / sqrt(spread)
    return (correlation - HONEST) * sqrt(common) > SURE * (1 - correlation**2)


def _count(table: Mapping[tuple[str, str], list[int]], members: Sequence[str], marks: Sequence[str]) -> None:
    for mark in marks:
        spoke = [(name, said) for name, said in zip(members, mark, strict=True) if said != SILENT]
        for (one, said), (other, heard) in combinations(sorted(spoke), 2):
            counts = table[one, other]
            counts[0] += 1
            counts[1] += said != RIGHT
            counts[2] += heard != RIGHT
            counts[3] += said == heard != RIGHT


def _join(joined: dict[str, set[str]], one: str, other: str) -> None:
    group = joined.get(one, {one}) | joined.get(other, {other})
    for name in group:
        joined[name] = group
