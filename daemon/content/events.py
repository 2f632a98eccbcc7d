"""A shared file, and what a pull tells of itself. Values alone, for the exchange and the local API both."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.wire.ids import Hash, PeerId


@dataclass(frozen=True, slots=True)
class SharedFile:
    """A file that is whole and shared."""

    address: Hash
    name: str
    path: Path
    size: int
    fetched: bool


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Where a pull stands; in bytes, `fetched` without what an earlier pull had left."""

    done: int
    size: int
    fetched: int
    sources: int


@dataclass(frozen=True, slots=True)
class PullResult:
    """The file is here. `by_peer` in bytes; `dropped`: peers that failed or lied, with the reason."""

    file: SharedFile
    fetched: int
    elapsed_s: float
    by_peer: Mapping[PeerId, int]
    dropped: Mapping[PeerId, str]


PullEvent = PullProgress | PullResult
Emit = Callable[[PullEvent], Awaitable[None]]
