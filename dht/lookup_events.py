"""What goes into a lookup and what comes out of it. Holds values alone; `lookup` decides."""

from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from dht.contacts import Contact
from protocol.wire.ids import PeerId


@dataclass(frozen=True, slots=True)
class LookupConfig:
    """Counts, and seconds where said.

    `paths` disjoint paths (S/Kademlia advises 4 to 8), each with `parallel` questions at once, each asking the `width` nearest
    that it knows. `answers` on `answer_paths` paths are enough; 0: none ever is, the closest peers are what is wanted. With
    `nearest` only those of the so many nearest known peers count, because others may hold an older or a shorter list. `region`:
    how many peers a key's region should have at least; `elders`: how many that stand elsewhere are asked as well. `queries` and
    `hops` bound what liars can cost. A question unanswered for `slow` seconds no longer holds its path up. `reply` contacts of
    one answer are read.
    """

    paths: int = 4
    parallel: int = 2
    width: int = 20
    answers: int = 0
    answer_paths: int = 2
    nearest: int = 0
    region: int = 20
    elders: int = 6
    queries: int = 200
    hops: int = 20
    slow: float = 0.5
    reply: int = 20


class Verdict(StrEnum):
    """What a lookup came to; that something is not there is not the same as that nobody could be asked."""

    FOUND = "found"
    ABSENT = "absent"
    """The peers that must have it answered on agreeing paths, and do not."""
    FAILED = "failed"


# Events


@dataclass(frozen=True, slots=True)
class Begin:
    """Ask `starts` first: the closest in the table, or whoever is connected.

    `elders` stand elsewhere, and are known for long or drawn. `silent` did not answer lately, and are asked last.
    """

    starts: tuple[Contact, ...]
    elders: tuple[Contact, ...] = ()
    silent: Container[PeerId] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """`peer` answered and named `closer`. `useful`: it gave a valid value, or a provider; what that is the caller decides."""

    peer: PeerId
    closer: tuple[Contact, ...]
    useful: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """`peer` gave no answer, or none that may be believed."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Tick:
    """The time asked for by WakeAt has come."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The time for this lookup is over: what is known stands."""


Event = Begin | Answered | Failed | Tick | Stop


# Effects


@dataclass(frozen=True, slots=True)
class Ask:
    """Put the lookup's question to `contact`; with a `point` ask it for the peers nearest to that name instead (FIND_NODE)."""

    contact: Contact
    point: bytes | None = None


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a Tick at this time; replaces the earlier WakeAt."""

    time: float


@dataclass(frozen=True, slots=True)
class Step:
    """One question of a lookup, for people. `bits` that the peer shares with the target; `seconds` is None while unanswered."""

    path: int
    hop: int
    peer: PeerId
    bits: int
    outcome: str
    seconds: float | None
    useful: bool


@dataclass(frozen=True, slots=True)
class Done:
    """The end. `closest`: the nearest that answered, nearest first; `region`: all that answered in the key's region.

    `hops` to the nearest peer, or to the first useful answer where one was wanted. `agreeing` of `paths` paths know the nearest.
    """

    verdict: Verdict
    reason: str
    closest: tuple[Contact, ...]
    region: tuple[Contact, ...]
    hops: int
    asked: int
    failed: int
    paths: int
    agreeing: int
    scanned: bool


Effect = Ask | WakeAt | Done
