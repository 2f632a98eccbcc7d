"""What gossip costs and how fast it is among 1,000 simulated peers: the daemon's own mesh and score machines, a virtual clock.

`python -m bench.gossip_scale [--peers N ...] [--json] [--check]`; one seed is one history (`--seed`). Each peer dials five,
links take 25 ms give or take a tenth. Targets: all delivered, the slowest of a hundred below a second, at 1,000 peers.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass

from tests.sim.gossip_world import World, quantile

DEGREE = 10
WARM_UP = 10.0
SPEAKING = 30.0
MESSAGES_PER_SECOND = 2.0
P99_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds and counts of one run. `copies`: how often a message was sent for each peer that had to hear it."""

    peers: int
    messages: int
    delivered: float
    median: float
    p99: float
    longest: float
    copies: float
    below_zero: int
    """Honest pairs of which one holds the other for a freeloader."""
    took: float


def play(peers: int, seed: int) -> Figures:
    """One mesh of honest peers, talking for half a minute."""
    began = time.monotonic()
    world = World(seed)
    world.random_links([world.add() for _ in range(peers)], DEGREE)
    end = WARM_UP + SPEAKING
    every = peers / MESSAGES_PER_SECOND
    for peer in world.peers:
        world.publish_now_and_then(peer, every, end)
    world.run(end + 5)
    lags, lost = world.lags(WARM_UP, end)
    total = len(lags) + lost
    said = sum(WARM_UP <= message.born < end for message in world.published)
    wrong = sum(peer.scores.score(other, world.now) < 0 for peer in world.peers for other in peer.neighbours)
    return Figures(
        peers, said, len(lags) / total if total else 0.0, quantile(lags, 0.5), quantile(lags, 0.99), lags[-1] if lags else 0.0,
        world.copies / max(1, len(world.published) * (peers - 1)), wrong, time.monotonic() - began,
    )  # fmt: skip


def main() -> int:
    """Run, print, and with --check exit with 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="*", default=[100, 1_000])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    found = [play(peers, given.seed) for peers in given.peers]
    if given.json:
        print(json.dumps([asdict(figures) for figures in found]))
    else:
        print("peers  messages  delivered  median    p99       longest   copies  below zero  took")
        for one in found:
            print(
                f"{one.peers:<6} {one.messages:<9} {one.delivered:<10.2%} {one.median * 1000:<6.0f}ms  {one.p99 * 1000:<6.0f}ms  "
                f"{one.longest * 1000:<6.0f}ms  {one.copies:<7.1f} {one.below_zero:<11} {one.took:.0f} s"
            )
    short = [
        f"{one.peers} peers: {one.delivered:.3%} delivered, p99 {one.p99:.2f} s (target 100 %, below {P99_SECONDS:g} s)"
        for one in found
        if one.delivered < 1 or one.p99 >= P99_SECONDS
    ]
    if given.check and short:
        print("short: " + "; ".join(short), file=sys.stderr)
    return 1 if given.check and short else 0


if __name__ == "__main__":
    sys.exit(main())
