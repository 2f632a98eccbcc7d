"""Picks the peer for a job from offers, load, paths and own measurements, and says why. Pure: same inputs and rng, same order."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from protocol.wire.ids import PeerId, short

_PATH_COST_S = {"local": 0.0, "direct": 0.0, "mapped": 0.0, "punched": 0.0, "relayed": 0.05, "unknown": 0.25}
"""Seconds added per kind of path: a relay shares its bandwidth, an unconnected peer costs a dial first."""

_UNKNOWN_RTT_S = 0.1
_QUEUE_COST_S = 1.0
"""Seconds that one request ahead of us per slot is expected to cost; only its order of magnitude matters here."""

_SHARE_COST_S = 0.05
"""Seconds added where all slots but ours are busy: they share one engine, so an idle one is a little sooner."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that could take the job. `path` is a key of the path cost table; `rtt` is in seconds, None where unknown.

    `config_digest` is hex, "" where unknown. `first_token_s`: the mean that our own recent calls saw, None where there were none.
    """

    peer: PeerId
    model: str
    slots: int
    busy: int
    path: str
    rtt: float | None = None
    config_digest: str = ""
    first_token_s: float | None = None


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
    slots = max(1, candidate.slots)
    ahead = max(0, candidate.busy - candidate.slots + 1)
    load = _QUEUE_COST_S * ahead / slots + _SHARE_COST_S * min(1.0, candidate.busy / slots)
    rtt = 0.0 if candidate.path == "local" else _UNKNOWN_RTT_S if candidate.rtt is None else candidate.rtt
    reach = rtt + _PATH_COST_S.get(candidate.path, 0.25)
    # What was measured holds the path as it was then; a path that became longer since is believed at once.
    wait = load + (reach if candidate.first_token_s is None else max(reach, candidate.first_token_s))
    busy = f"{candidate.busy} of {candidate.slots} slots busy"
    where = "this peer itself" if candidate.path == "local" else f"{candidate.path} path, {rtt * 1000:.0f} ms"
    seen = "" if candidate.first_token_s is None else f", {candidate.first_token_s:.2f} s measured lately"
    return Choice(candidate, wait, f"{short(candidate.peer)}: {where}, {busy}{seen}, first token expected after {wait:.2f} s")
