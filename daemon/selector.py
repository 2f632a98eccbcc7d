"""Picks the peer for a job from offers, load and paths, and says why. Pure: the same inputs and rng give the same order."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from protocol.wire.ids import PeerId, short

_PATH_COST_S = {"local": 0.0, "direct": 0.0, "mapped": 0.0, "punched": 0.0, "relayed": 0.05, "unknown": 0.25}
"""Seconds added per kind of path: a relay shares its bandwidth, an unconnected peer costs a dial first."""

_UNKNOWN_RTT_S = 0.1
_QUEUE_COST_S = 1.0
"""Seconds that one request ahead of us per slot is expected to cost; only its order of magnitude matters here."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that could take the job. `path` is a key of the path cost table; `rtt` is in seconds, None where unknown."""

    peer: PeerId
    model: str
    slots: int
    busy: int
    path: str
    rtt: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate with its predicted wait in seconds and the sentence that explains it."""

    candidate: Candidate
    wait: float
    why: str


def rank_candidates(candidates: Sequence[Candidate], rng: Random) -> list[Choice]:
    """All candidates, the lowest predicted time to the first token first; equals in random order, so that load spreads."""
    choices = [_judge(candidate) for candidate in candidates]
    rng.shuffle(choices)
    return sorted(choices, key=lambda choice: round(choice.wait, 2))


def _judge(candidate: Candidate) -> Choice:
    ahead = max(0, candidate.busy - candidate.slots + 1)
    rtt = 0.0 if candidate.path == "local" else _UNKNOWN_RTT_S if candidate.rtt is None else candidate.rtt
    wait = rtt + _PATH_COST_S.get(candidate.path, 0.25) + _QUEUE_COST_S * ahead / max(1, candidate.slots)
    load = f"{candidate.busy} of {candidate.slots} slots busy"
    where = "this peer itself" if candidate.path == "local" else f"{candidate.path} path, {rtt * 1000:.0f} ms"
    return Choice(candidate, wait, f"{short(candidate.peer)}: {where}, {load}, first token expected after {wait:.2f} s")
