"""Picks the peer for a job from offers, load, paths and own measurements, and says why. Pure: same inputs and rng, same order."""

from collections.abc import Sequence
from random import Random
from typing import Literal

import msgspec

from dht.standing import IDLE, Load
from protocol.wire.ids import PeerId, short

_PATH_COST_S = {"local": 0.0, "direct": 0.0, "mapped": 0.0, "punched": 0.0, "relayed": 0.05, "unknown": 0.25}
"""Seconds added per kind of path: a relay shares its bandwidth, an unconnected peer costs a dial first."""

_UNKNOWN_RTT_S = 0.1
_QUEUE_COST_S = 1.0
"""Seconds that a request ahead of us holds a slot where its peer does not say; only the order of magnitude matters here."""

_SHARE_COST_S = 0.05
"""Seconds added where all slots but ours are busy: they share one engine, so an idle one is a little sooner."""

Source = Literal["measured", "offered", "unknown"]


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A peer that could take the job. `path` is a key of the path cost table; `rtt` is in seconds, None where unknown.

    `config_digest` is hex, "" where unknown. `load` is what the peer says of itself. `features`: what its offer says that its
    engine has, empty where it says nothing. `first_token_s`: the mean that our own recent calls saw, None where there were none.
    `score_milli`: its score in the question's topic, None where nobody asked for it.
    """

    peer: PeerId
    model: str
    slots: int
    path: str
    rtt: float | None = None
    config_digest: str = ""
    load: Load = IDLE
    features: frozenset[str] = frozenset()
    first_token_s: float | None = None
    score_milli: int | None = None

    @property
    def busy(self) -> int:
        """Requests that run or wait there."""
        return self.load.busy


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """The expected seconds to the first token, by their parts; `total` is their sum.

    `reach`: the round trip and the kind of path. `queue`: the requests ahead of ours. `share`: others at work beside ours.
    `engine`: from there to the first token, from our own calls ("measured"), else as the peer says ("offered").
    """

    reach: float
    queue: float
    share: float
    engine: float
    source: Source

    @property
    def total(self) -> float:
        return self.reach + self.queue + self.share + self.engine


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A candidate with its predicted wait in seconds. What explains it is worked out when asked for: of a thousand few are."""

    candidate: Candidate
    wait: float

    @property
    def parts(self) -> Prediction:
        """What the wait consists of."""
        return predict(self.candidate)

    @property
    def why(self) -> str:
        """The sentence that explains it."""
        candidate, parts = self.candidate, self.parts
        rtt = "round trip unknown" if candidate.rtt is None else f"{candidate.rtt * 1000:.0f} ms"
        where = "this peer itself" if candidate.path == "local" else f"{candidate.path} path, {rtt}"
        busy = f"{candidate.busy} of {candidate.slots} slots busy"
        queue = f", {parts.queue:.2f} s of queue" if parts.queue else ""
        seen = ""
        if candidate.first_token_s is not None:
            seen = f", {candidate.first_token_s:.2f} s measured lately"
        elif parts.source == "offered":
            seen = f", {parts.engine:.2f} s by its own word"
        expected = f"first token expected after {parts.total:.2f} s"
        return f"{short(candidate.peer)}: {where}, {busy}{queue}{seen}, {expected}"


def rank_candidates(candidates: Sequence[Candidate], rng: Random) -> list[Choice]:
    """All candidates, the lowest predicted time to the first token first; equals in random order, so that load spreads."""
    choices = [Choice(candidate, predict(candidate).total) for candidate in candidates]
    rng.shuffle(choices)
    return sorted(choices, key=lambda choice: round(choice.wait, 2))


def predict(candidate: Candidate) -> Prediction:
    """When its first token would come. A peer's word on itself counts until our own calls say otherwise."""
    load, slots = candidate.load, max(1, candidate.slots)
    rtt = 0.0 if candidate.path == "local" else _UNKNOWN_RTT_S if candidate.rtt is None else candidate.rtt
    reach = rtt + _PATH_COST_S.get(candidate.path, 0.25)
    ahead = max(0, load.busy - candidate.slots + 1)
    held = load.slot_ms / 1000 if load.slot_ms else _QUEUE_COST_S
    source: Source = "measured" if candidate.first_token_s is not None else "offered" if load.first_token_ms else "unknown"
    # What was measured holds the path as it was then; a path that became longer since is believed at once.
    engine = load.first_token_ms / 1000 if candidate.first_token_s is None else max(0.0, candidate.first_token_s - reach)
    return Prediction(reach, held * ahead / slots, _SHARE_COST_S * min(1.0, load.busy / slots), engine, source)
