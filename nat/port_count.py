"""Which ports a NAT that counts will hand out next, from those of mappings just made. Pure; sends nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

ENOUGH = 3
"""Mappings that show a step. Random ports look like one once in 4,000 times by three of them, and in ten million by four."""

FARTHEST = 16
"""Steps between two mappings made one after the other: connections of others in the household count, too."""

AHEAD = 24
"""Ports to look at. Both NATs together may have counted 23 further between the measurement and the punch."""


@dataclass(frozen=True, slots=True)
class PortCount:
    """The port that should come next, and what is added each time (never 0)."""

    following: int
    step: int

    def ahead(self) -> tuple[int, ...]:
        """The next ports, in order."""
        return tuple((self.following + index * self.step) % 65536 or 1 for index in range(AHEAD))


def count_of(ports: Sequence[int]) -> PortCount | None:
    """The count behind the outside ports of mappings made one right after the other; None where they do not follow one."""
    gaps = [later - earlier for earlier, later in pairwise(ports)]
    if len(ports) < ENOUGH or 0 in gaps or len({gap > 0 for gap in gaps}) != 1:
        return None
    # What others take in between adds whole steps.
    step = gcd(*gaps) * (1 if gaps[0] > 0 else -1)
    if max(gap // step for gap in gaps) > FARTHEST:
        return None
    # No NAT hands out port 0, which says on the wire that the next one is not known.
    return PortCount((ports[-1] + step) % 65536 or step % 65536, step)
