"""Decides whether an answer came from the model that its peer offers, from two models' log-probabilities of it. Asks nobody.

Per token, the claimed likeliest tokens are compared with those of a verifier of the same config digest that was made to say the
same text. The deviations feed Wald's sequential test, which goes on over several answers where one is too short.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from protocol.likelihood import FLOOR_MICRO, Weighed

Verdict = Literal["verified", "refuted"]

TOLERANCE_MICRO = 50_000
"""Mean deviation of the top 20 log-probabilities of one token, in millionths of a nat, at which nothing is learnt.

`python -m bench.verification` on the shipped models: tokens of one build on one kind of processor stay under 4,400 (99% of them
under 1,400) whatever its threads, batch or load; 8 bits for 16 show 8,000 to 200,000 and 4 bits 70,000 and more. One version
built for another processor was not at hand and has the same config digest: hence a tolerance far above what was seen.
"""

CAP_MICRO = 2_000_000
"""No single rival, and no token that the verifier would not have cut so, counts for more than 2 nats."""

STEP_LIMIT = 2.0
"""Most that one token moves the test, in nats of evidence: no single token decides."""

DECISION = math.log(999)
"""Wald's threshold for one wrong verdict in a thousand, both ways: ln((1 - a) / b) with a = b = 0.001."""

MAX_CARRIED = 4 * DECISION
"""What is carried from answer to answer stays where a change of model can still turn it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the tokens seen so far say: `sum` above zero speaks against the peer. Deviations in millionths of a nat."""

    sum: float = 0.0
    tokens: int = 0
    deviation_micro: int = 0

    @property
    def mean_micro(self) -> int:
        """Mean deviation of a token."""
        return self.deviation_micro // self.tokens if self.tokens else 0

    @property
    def verdict(self) -> Verdict | None:
        """None while the tokens are too few to tell."""
        if self.sum >= DECISION:
            return "refuted"
        return "verified" if self.sum <= -DECISION else None


def deviations(claimed: Sequence[Weighed], scored: Sequence[Weighed], *, greedy: bool) -> list[int]:
    """The deviation of each claimed token, in millionths of a nat; `greedy`: the job said to take the likeliest token always.

    A claimed token at whose place in the text the verifier has no such token counts CAP_MICRO: its model does not cut text so.
    Where the verifier stopped early nothing is said of the rest.
    """
    places, end = _by_place(scored)
    found, at = [], 0
    for token in claimed:
        if at >= end and token.token:
            break
        there = places.get((at, token.token))
        if there is not None:
            found.append(min(CAP_MICRO, _between(token, there) + (_regret(there) if greedy else 0)))
        elif token.token:
            found.append(CAP_MICRO)
        at += len(token.token)
    return found


def told(evidence: Evidence, found: Sequence[int], tolerance_micro: int = TOLERANCE_MICRO) -> Evidence:
    """`evidence` with the tokens of one more answer."""
    total = evidence.sum
    for deviation in found:
        step = math.log(max(deviation, 1) / tolerance_micro)
        total += max(-STEP_LIMIT, min(STEP_LIMIT, step))
    total = max(-MAX_CARRIED, min(MAX_CARRIED, total))
    return Evidence(total, evidence.tokens + len(found), evidence.deviation_micro + sum(found))


def tolerance_of(claimed_digest: str, scored_digest: str, fixed: Mapping[tuple[str, str], int], default: int) -> int:
    """The tolerance for a pair of config digests (hex), either way round."""
    return fixed.get((claimed_digest, scored_digest), fixed.get((scored_digest, claimed_digest), default))


def text_of(claimed: Sequence[Weighed]) -> tuple[str, tuple[Weighed, ...]]:
    """The longest text that whole tokens of `claimed` spell from the first on, and those tokens."""
    kept, text, octets, good = list(claimed), "", b"", 0
    for place, token in enumerate(kept, start=1):
        octets += token.token
        try:
            text, good = octets.decode(), place
        except UnicodeDecodeError:
            continue  # a character is spread over several tokens
    return text, tuple(kept[:good])


def _by_place(tokens: Sequence[Weighed]) -> tuple[dict[tuple[int, bytes], Weighed], int]:
    places, at = {}, 0
    for token in tokens:
        places[(at, token.token)] = token
        at += len(token.token)
    return places, at


def _between(one: Weighed, other: Weighed) -> int:
    """Mean difference over the tokens that either lists; one that the other does not list is at least as unlikely as its last."""
    left, right = _listed(one), _listed(other)
    last_left, last_right = max(left.values()), max(right.values())
    total = 0
    for token in left.keys() | right.keys():
        first, second = left.get(token), right.get(token)
        if first is None:
            difference = max(0, last_left - (second or 0))
        elif second is None:
            difference = max(0, last_right - first)
        else:
            difference = abs(first - second)
        total += min(CAP_MICRO, difference)
    return total // len(left.keys() | right.keys())


def _listed(token: Weighed) -> dict[bytes, int]:
    listed = {token.token: token.below_micro}
    for rival in token.rivals:
        listed[rival.token] = min(listed.get(rival.token, FLOOR_MICRO), rival.below_micro)
    return listed


def _regret(token: Weighed) -> int:
    """How much less likely a token is than the likeliest that the verifier saw there."""
    return max(0, token.below_micro - min((rival.below_micro for rival in token.rivals), default=token.below_micro))
