"""What two sets of logs differ in, for a few bytes per difference. Pure arithmetic; knows neither claims nor peers.

A rateless invertible Bloom lookup table (Yang, Gilad, Alizadeh, "Practical Rateless Set Reconciliation", SIGCOMM 2024): cell i is
the XOR of every item that maps to it, each item to cell i with probability 1/(1 + i/2). Two prefixes of equal length, XORed, hold
the difference alone, and about 1.35 to 1.72 cells per differing item recover it; one who cannot yet asks for more cells.
The paper's index formula is kept, in integers.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from math import isqrt

ITEM_BYTES = 13
CHECK_BYTES = 3
CELL_BYTES = ITEM_BYTES + CHECK_BYTES

MAX_CELLS = 4_096
"""About 2,700 differing items in 64 KiB; whoever differs in more lists all that he holds."""

_MULTIPLIER = 0xDA942042E4DD58B5
_MASK = (1 << 64) - 1
_CHECK = (1 << (8 * CHECK_BYTES)) - 1


def _seed(item: int) -> int:
    return int.from_bytes(blake2b(item.to_bytes(ITEM_BYTES, "big"), digest_size=8, person=b"swarmd/1/item").digest(), "big")


def _next(state: int, index: int) -> tuple[int, int]:
    state = state * _MULTIPLIER & _MASK
    root = isqrt(state + 1)
    return state, index + ((2 * index + 3) * ((1 << 32) - root) + 2 * root - 1) // (2 * root)


class Sketch:
    """The cells of a set that changes: `toggle` puts an item in or takes it out; the cells asked for so far follow."""

    def __init__(self) -> None:
        self._cells: list[int] = []
        self._reach: dict[int, tuple[int, int]] = {}
        """By item: its generator's state and the first cell that is not computed yet."""

    def __len__(self) -> int:
        return len(self._reach)

    def __contains__(self, item: int) -> bool:
        return item in self._reach

    def __iter__(self) -> Iterator[int]:
        return iter(self._reach)

    def toggle(self, item: int) -> None:
        """Put `item` in, or take it out where it is in."""
        held = self._reach.pop(item, None)
        reached = _spread(self._cells, item)
        if held is None:
            self._reach[item] = reached

    def cells(self, count: int) -> Sequence[int]:
        """The first `count` cells: the XOR of items, each followed by its check."""
        have = len(self._cells)
        if count > have:
            cells = self._cells
            cells.extend([0] * (count - have))
            for item, (state, index) in self._reach.items():
                if index < count:
                    symbol = item << (8 * CHECK_BYTES) | _seed(item) & _CHECK
                    while index < count:
                        cells[index] ^= symbol
                        state, index = _next(state, index)
                    self._reach[item] = state, index
        return self._cells[:count]


def _spread(cells: list[int], item: int) -> tuple[int, int]:
    state = _seed(item)
    symbol = item << (8 * CHECK_BYTES) | state & _CHECK
    index = 0
    while index < len(cells):
        cells[index] ^= symbol
        state, index = _next(state, index)
    return state, index


def pack(cells: Iterable[int]) -> bytes:
    """Cells as they travel, CELL_BYTES each."""
    return b"".join(cell.to_bytes(CELL_BYTES, "big") for cell in cells)


def unpack(packed: bytes) -> list[int]:
    """The reverse of `pack`; a last piece that is no whole cell is dropped."""
    return [int.from_bytes(packed[i : i + CELL_BYTES], "big") for i in range(0, len(packed) - CELL_BYTES + 1, CELL_BYTES)]


def difference(ours: Sequence[int], theirs: Sequence[int]) -> set[int] | None:
    """The items in exactly one of two sets, from equally many cells of both; None where these cells are too few.

    Cells from a liar end it as soon as any others do: each item is taken out once.
    """
    cells = [a ^ b for a, b in zip(ours, theirs, strict=True)]
    found: set[int] = set()
    ready = list(range(len(cells)))
    while ready:
        cell = cells[ready.pop()]
        item = cell >> (8 * CHECK_BYTES)
        if cell == 0 or item in found or _seed(item) & _CHECK != cell & _CHECK:
            continue
        found.add(item)
        ready.extend(_take_out(cells, item))
    return None if any(cells) else found


def _take_out(cells: list[int], item: int) -> list[int]:
    state = _seed(item)
    symbol = item << (8 * CHECK_BYTES) | state & _CHECK
    index, touched = 0, []
    while index < len(cells):
        cells[index] ^= symbol
        touched.append(index)
        state, index = _next(state, index)
    return touched
