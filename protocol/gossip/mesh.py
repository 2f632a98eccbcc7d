"""Whom one topic's mesh consists of: kept at its degree, by score, with neighbours that we dialled and from many networks.

Pure: the caller knows who is subscribed, connected, dialled by us and where; and sends the grafts and prunes.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol


class Score(Protocol):
    """What a neighbour is worth now."""

    def __call__(self, peer: Hashable) -> float: ...


@dataclass(frozen=True, slots=True)
class Degrees:
    """Counts and seconds. `outbound`: neighbours that we dialled, which nobody can push on us; half of `degree` at most.
    `lazy`: how many hear the ids of messages. `per_network`: neighbours from one network (IPv4 /24, IPv6 /48), a quarter of
    `degree`. `remembered`: peers that are left alone, those whose time is over soonest forgotten first. The others are those of
    hardened gossipsub and Ethereum (8/6/12, D_score 6)."""

    degree: int = 8
    low: int = 6
    high: int = 12
    by_score: int = 6
    outbound: int = 4
    per_network: int = 2
    lazy: int = 12
    backoff: float = 60.0
    opportune_every: float = 60.0
    opportune_below: float = 1.0
    opportune: int = 2
    remembered: int = 4_096


@dataclass(slots=True)
class Neighbourhood:
    """What the caller knows at this moment. `network` is "" where it does not count, as on loopback or over a relay."""

    candidates: Sequence[Hashable]
    score: Score
    is_outbound: Callable[[Hashable], bool]
    network: Callable[[Hashable], str]


@dataclass(slots=True)
class TopicMesh:
    """The mesh of one topic."""

    degrees: Degrees
    rng: Random
    members: set[Hashable] = field(default_factory=set)
    leaned: list[Hashable] = field(default_factory=list)
    """Peers that we dialled whose mesh is full of others: we push to them all the same, or who fills meshes would cut us off."""

    _backoff: dict[Hashable, float] = field(default_factory=dict)
    _opportune_at: float = 0.0

    def targets(self) -> list[Hashable]:
        """To whom a message goes."""
        return [*self.members, *(peer for peer in self.leaned if peer not in self.members)]

    # ---- what others ask

    def takes(self, peer: Hashable, around: Neighbourhood, now: float) -> bool:
        """Whether a peer that grafted us becomes a member; it is one from then on."""
        if peer in self.members:
            return True
        full = len(self.members) >= self.degrees.high and not around.is_outbound(peer)
        if around.score(peer) < 0 or self.backs_off(peer, now) or full or not self._room(peer, around):
            self.back_off(peer, now)
            return False
        self.members.add(peer)
        return True

    def backs_off(self, peer: Hashable, now: float) -> bool:
        """Whether we and `peer` were to leave each other alone."""
        return self._backoff.get(peer, now) > now

    def back_off(self, peer: Hashable, now: float, seconds: float | None = None) -> None:
        """Leave `peer` alone for a while; it is no member any more."""
        self.members.discard(peer)
        until = now + min(self.degrees.backoff * 60, self.degrees.backoff if seconds is None else seconds)
        self._backoff[peer] = max(self._backoff.get(peer, until), until)
        if len(self._backoff) > self.degrees.remembered:
            del self._backoff[min(self._backoff, key=self._backoff.__getitem__)]

    def greet(self, around: Neighbourhood, now: float) -> list[Hashable]:
        """New subscribers (`around.candidates`) to graft at once, where the mesh is small; they are members from then on."""
        lacking = self.degrees.low - len(self.members)
        return self._graft(around, lacking, now, lambda _: True) if lacking > 0 else []

    # ---- once in a heartbeat

    def beat(self, around: Neighbourhood, now: float) -> tuple[list[Hashable], list[Hashable]]:
        """(peers to graft, peers to prune); the members are as they will be."""
        d = self.degrees
        for peer in [peer for peer, until in self._backoff.items() if until <= now]:
            del self._backoff[peer]
        known = set(around.candidates)
        self.members.intersection_update(known)
        pruned = [peer for peer in self.members if around.score(peer) < 0]
        self.members.difference_update(pruned)
        pruned += self._crowded(around)
        grafts: list[Hashable] = []
        if len(self.members) < d.low:
            grafts += self._graft(around, d.degree - len(self.members), now, lambda _: True)
        if len(self.members) > d.high:
            pruned += self._cut(around)
        lacking = d.outbound - sum(map(around.is_outbound, self.members))
        if lacking > 0:
            grafts += self._graft(around, lacking, now, around.is_outbound)
        grafts += self._seize(around, now)
        self._lean(around)
        for peer in pruned:
            self.back_off(peer, now)
        return [peer for peer in grafts if peer in self.members], pruned

    def told(self, around: Neighbourhood) -> list[Hashable]:
        """Who hears the ids of the last messages: `lazy` whom we dialled, and as many of the others, or a quarter of them."""
        d = self.degrees
        others = [peer for peer in around.candidates if peer not in self.members and around.score(peer) >= 0]
        dialled = [peer for peer in others if around.is_outbound(peer)]
        self.rng.shuffle(dialled)
        strangers = [peer for peer in others if not around.is_outbound(peer)]
        count = min(len(strangers), max(d.lazy, len(strangers) // 4))
        return dialled[: d.lazy] + self.rng.sample(strangers, count)

    def _graft(
        self, around: Neighbourhood, count: int, now: float, fits: Callable[[Hashable], bool]
    ) -> list[Hashable]:
        """Take up to `count` more: at random among the good ones, those that we dialled first."""
        fitting = [
            peer
            for peer in around.candidates
            if peer not in self.members and fits(peer) and around.score(peer) >= 0 and not self.backs_off(peer, now)
        ]
        self.rng.shuffle(fitting)
        fitting.sort(key=around.is_outbound, reverse=True)
        taken: list[Hashable] = []
        for peer in fitting:
            if len(taken) >= count:
                break
            if self._room(peer, around):
                self.members.add(peer)
                taken.append(peer)
        return taken

    def _room(self, peer: Hashable, around: Neighbourhood) -> bool:
        network = around.network(peer)
        return not network or sum(around.network(member) == network for member in self.members) < self.degrees.per_network

    def _crowded(self, around: Neighbourhood) -> list[Hashable]:
        """Members beyond their network's share, the worst first; they are out."""
        counts = Counter(network for peer in self.members if (network := around.network(peer)))
        out: list[Hashable] = []
        for network, count in counts.items():
            members = sorted((peer for peer in self.members if around.network(peer) == network), key=around.score)
            out += members[: max(0, count - self.degrees.per_network)]
        self.members.difference_update(out)
        return out

    def _cut(self, around: Neighbourhood) -> list[Hashable]:
        """Back to the degree: the best by score stay, then enough that we dialled, then whoever the dice choose."""
        d = self.degrees
        ranked = sorted(self.members, key=lambda peer: (around.score(peer), self.rng.random()), reverse=True)
        kept = ranked[: d.by_score]
        rest = ranked[d.by_score :]
        self.rng.shuffle(rest)
        wanted = max(0, d.outbound - sum(map(around.is_outbound, kept)))
        rest.sort(key=around.is_outbound, reverse=True)
        kept += rest[:wanted]
        rest = rest[wanted:]
        self.rng.shuffle(rest)
        kept += rest[: max(0, d.degree - len(kept))]
        out = list(self.members.difference(kept))
        self.members.difference_update(out)  # in place: the transport holds the same set
        return out

    def _lean(self, around: Neighbourhood) -> None:
        missing = self.degrees.outbound - sum(map(around.is_outbound, self.members))
        fitting = [p for p in around.candidates if p not in self.members and around.is_outbound(p) and around.score(p) >= 0]
        kept = [peer for peer in self.leaned if peer in fitting][: max(0, missing)]
        fresh = [peer for peer in fitting if peer not in kept]
        self.rng.shuffle(fresh)
        self.leaned = kept + fresh[: max(0, missing - len(kept))]

    def _seize(self, around: Neighbourhood, now: float) -> list[Hashable]:
        """Where the mesh is poor, take a few that are better than its middle: it may be full of peers that do just enough."""
        d = self.degrees
        if now < self._opportune_at or len(self.members) < d.low:
            return []
        self._opportune_at = now + d.opportune_every
        middle = sorted(map(around.score, self.members))[len(self.members) // 2]
        if middle >= d.opportune_below:
            return []
        return self._graft(around, d.opportune, now, lambda peer: around.score(peer) > middle)
