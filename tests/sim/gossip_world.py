"""Gossip among simulated peers under a virtual clock: the project's own mesh and score machines, links with delays, attackers.

What the transport does around the machines is done here in the same order: own messages to all subscribers, others' to the mesh,
ids of the last heartbeats to some others, which ask for what they lack.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from random import Random

from protocol.gossip.mesh import Degrees, Neighbourhood, TopicMesh
from protocol.gossip.score import Scores, Weights

TOPIC = "t"
HEARTBEAT = 1.0
WINDOW = 3
PROMISE = 3.0
LINK = 0.025


def mute(_message: "Message", _now: float) -> bool:
    """An attacker that forwards nothing."""
    return False


@dataclass
class Message:
    id: bytes
    author: int
    born: float


@dataclass
class Peer:
    """One honest peer, or an attacker with `relays(message, now)` saying whether it forwards."""

    number: int
    rng: Random
    honest: bool = True
    network: str = ""
    relays: Callable[[Message, float], bool] = lambda _message, _now: True
    since: float = 0.0
    neighbours: set[int] = field(default_factory=set)
    dialled: set[int] = field(default_factory=set)
    scores: Scores = field(default_factory=lambda: Scores(Weights()))
    mesh: TopicMesh = field(init=False)
    seen: dict[bytes, float] = field(default_factory=dict)
    recent: list[list[Message]] = field(default_factory=lambda: [[]])
    held: dict[bytes, Message] = field(default_factory=dict)
    promises: dict[bytes, tuple[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mesh = TopicMesh(Degrees(), self.rng)


class World:
    """A network of peers. `run(until)` plays it; deliveries are noted for every honest pair of author and reader."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.peers: list[Peer] = []
        self.copies = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._messages = 0
        self.published: list[Message] = []
        self.delivered: dict[bytes, dict[int, float]] = defaultdict(dict)

    # ---- building

    def add(self, honest: bool = True, network: str = "", relays: Callable[[Message, float], bool] | None = None) -> Peer:
        peer = Peer(len(self.peers), Random(self.rng.random()), honest, network or f"n{len(self.peers)}")
        peer.relays = relays or peer.relays
        peer.since = self.now
        self.peers.append(peer)
        self.after(self.rng.uniform(0, HEARTBEAT), lambda: self._beat(peer))
        return peer

    def link(self, dialler: Peer, other: Peer) -> None:
        dialler.neighbours.add(other.number)
        dialler.dialled.add(other.number)
        other.neighbours.add(dialler.number)

    def random_links(self, peers: list[Peer], degree: int) -> None:
        """A connected random graph: each dials half of `degree` others."""
        for place, peer in enumerate(peers):
            self.link(peer, peers[place - 1])
            others = [other for other in peers if other is not peer and other.number not in peer.neighbours]
            for other in self.rng.sample(others, min(len(others), max(0, degree // 2 - 1))):
                self.link(peer, other)

    # ---- playing

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._queue, (self.now + seconds, self._order, act))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, act = heapq.heappop(self._queue)
            act()
        self.now = until

    def publish_now_and_then(self, peer: Peer, every: float, until: float) -> None:
        def say() -> None:
            if self.now < until:
                self.publish(peer)
                self.after(every * self.rng.uniform(0.5, 1.5), say)

        self.after(self.rng.uniform(0, every), say)

    def publish(self, author: Peer) -> Message:
        self._messages += 1
        message = Message(self._messages.to_bytes(8, "big"), author.number, self.now)
        if author.honest:
            self.published.append(message)
        self._keep(author, message)
        for other in author.neighbours:
            self._send(author, self.peers[other], message)
        return message

    def _delay(self) -> float:
        return LINK * self.rng.uniform(0.9, 1.1)

    def _send(self, source: Peer, target: Peer, message: Message) -> None:
        self.copies += 1
        if target.honest or target.relays is not mute:
            self.after(self._delay(), lambda: self._receive(target, source, message))

    def _receive(self, peer: Peer, by: Peer, message: Message) -> None:
        if by.number not in peer.neighbours or (peer.honest and peer.scores.graylisted(by.number, self.now)):
            return
        if message.id in peer.seen:
            if peer.honest:
                peer.scores.again(message.id, by.number, self.now)
            return
        self._keep(peer, message)
        if peer.honest:
            self.delivered[message.id][peer.number] = self.now
            peer.scores.arrived(message.id, TOPIC, message.author, by.number, tuple(peer.mesh.members), self.now)
        elif not peer.relays(message, self.now):
            return
        for other in peer.mesh.targets():
            if other not in (by.number, message.author):
                self._send(peer, self.peers[int(str(other))], message)

    def _keep(self, peer: Peer, message: Message) -> None:
        peer.seen[message.id] = self.now
        if peer.honest:
            peer.held[message.id] = message
            peer.recent[-1].append(message)

    # ---- heartbeats

    def around(self, peer: Peer) -> Neighbourhood:
        return Neighbourhood(
            sorted(peer.neighbours),
            lambda other: peer.scores.score(other, self.now),
            lambda other: other in peer.dialled,
            lambda other: self.peers[int(str(other))].network,
        )

    def _beat(self, peer: Peer) -> None:
        self.after(HEARTBEAT, lambda: self._beat(peer))
        if not peer.honest:
            # It grafts whomever it can, again and again: being in meshes is what it lives by.
            for other in self.rng.sample(sorted(peer.neighbours), min(len(peer.neighbours), 8)):
                if other not in peer.mesh.members and not peer.mesh.backs_off(other, self.now):
                    self._control(peer, other, True)
            return
        for message, (other, until) in list(peer.promises.items()):
            if message in peer.seen or until < self.now:
                del peer.promises[message]
                if message not in peer.seen:
                    peer.scores.fault(other, self.now, 0.1)
        grafts, prunes = peer.mesh.beat(self.around(peer), self.now)
        for other in grafts:
            peer.scores.grafted(other, TOPIC, self.now)
            self._control(peer, other, True)
        for other in prunes:
            peer.scores.pruned(other, TOPIC, self.now)
            self._control(peer, other, False)
        self._gossip(peer)

    def _control(self, peer: Peer, to: Hashable, graft: bool) -> None:
        other = self.peers[int(str(to))]
        self.after(self._delay(), lambda: self._on_graft(other, peer) if graft else self._on_prune(other, peer))

    def _on_graft(self, peer: Peer, by: Peer) -> None:
        if by.number not in peer.neighbours:
            return
        if not peer.honest:
            peer.mesh.members.add(by.number)
            by_side = True
        elif peer.mesh.backs_off(by.number, self.now):
            peer.scores.fault(by.number, self.now, 0.1)
            by_side = False
        else:
            by_side = peer.mesh.takes(by.number, self.around(peer), self.now)
            if by_side:
                peer.scores.grafted(by.number, TOPIC, self.now)
        if by_side and not by.honest:
            by.mesh.members.add(peer.number)
        elif not by_side:
            self._control(peer, by.number, False)

    def _on_prune(self, peer: Peer, by: Peer) -> None:
        if peer.honest:
            peer.scores.pruned(by.number, TOPIC, self.now)
        peer.mesh.back_off(by.number, self.now)

    def _gossip(self, peer: Peer) -> None:
        ids = [message for batch in peer.recent for message in batch]
        peer.recent.append([])
        del peer.recent[:-WINDOW]
        for number in peer.mesh.told(self.around(peer)):
            other = self.peers[int(str(number))]
            if other.honest and ids:
                self.after(self._delay(), lambda other=other: self._on_ihave(other, peer, ids))  # type: ignore[misc]

    def _on_ihave(self, peer: Peer, by: Peer, messages: list[Message]) -> None:
        wanted = [message for message in messages if message.id not in peer.seen]
        if wanted:
            peer.promises.setdefault(wanted[0].id, (by.number, self.now + PROMISE))
            for message in wanted:
                self.after(2 * self._delay(), lambda message=message: self._receive(peer, by, message))  # type: ignore[misc]

    # ---- what came of it

    def lags(self, start: float, end: float, authors: set[int] | None = None) -> tuple[list[float], int]:
        """The delays of all deliveries among honest peers of messages born between, and how many never came."""
        honest = [peer.number for peer in self.peers if peer.honest]
        lags, lost = [], 0
        for message in self.published:
            if start <= message.born < end and (authors is None or message.author in authors):
                for reader in honest:
                    if reader != message.author:
                        came = self.delivered[message.id].get(reader)
                        lost += came is None
                        if came is not None:
                            lags.append(came - message.born)
        return sorted(lags), lost


def quantile(ordered: list[float], share: float) -> float:
    """The value below which `share` of a sorted list lies; 0 for an empty one."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
