"""How many peers the mesh has, from how close together they stand. Decides how large the region of a key is; asks nobody."""

from collections import deque
from collections.abc import Sequence
from statistics import median

from dht.keyspace import BITS
from dht.table import Table

SAMPLES = 8
"""Looked-up places remembered; an attacker who crowds one place moves one sample, and the median not at all."""

OWN = 20
"""Entries of our own table that make an estimate too, always of this moment."""

FEW = 4
"""Of fewer estimates the least counts: peers crowded next to us or to a key only ever make the mesh look larger, and its regions
smaller; too large a region costs questions alone."""


class Density:
    """The estimate of one peer."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def note(self, place: int, nearest: Sequence[int]) -> None:
        """The peers that answered nearest to a place stand at `nearest`, in order of distance; fewer than four say nothing.

        The k-th of N random places is at k / N of the key space, so k over its share estimates N.
        """
        if len(nearest) >= 4:
            self._samples.append(_estimate(place, nearest))

    def peers(self) -> int:
        """The estimate; 0 while hardly anybody is known."""
        near = [contact.place for contact in self._table.closest(self._table.me, OWN)]
        estimates = [*self._samples, *([_estimate(self._table.me, near)] if len(near) >= 4 else [])]
        if len(estimates) < FEW:
            return round(min(estimates, default=0))
        return round(median(estimates))

    def region_bits(self, members: int) -> int:
        """How many bits a peer shares with a key in whose region `members` to twice as many peers stand; 0: all of them."""
        return max(0, (self.peers() // max(1, members)).bit_length() - 1)


def _estimate(place: int, nearest: Sequence[int]) -> float:
    return (len(nearest) - 1) / (((place ^ nearest[-1]) + 1) / (1 << BITS))
