"""What a neighbour in gossip is worth, by what it did. Decides a number; whoever asks decides what follows from it.

GossipSub 1.1 gives points for time in the mesh and for first deliveries and takes some for deficits; with Ethereum's weights a
peer that never forwards keeps a positive score for ever (CVE-2022-47547). Here credit is worth nothing while anything stands
against a peer: none, however earned, outweighs a fault, and a score with a fault in it is negative. Scores outlive connections.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from math import exp


@dataclass(frozen=True, slots=True)
class Weights:
    """Seconds, counts and shares.

    `need`: the share that a mesh neighbour must hand us, as first or within `window` of the first, of the messages that others
    forwarded to us while it was ours for `grace`; honest ones hand over about half (`make sim-mesh`). What came from its author
    itself obliges nobody: in a small mesh all hear the author. It counts from `activation` messages on, which fade with `memory`.
    What a neighbour is pruned for fades with `sticky`, faults with `fault_memory`; `credit_cap` bounds what first deliveries are
    worth; `retain` is how long a peer that is away is remembered, at least.
    """

    need: float = 0.08
    grace: float = 5.0
    window: float = 2.0
    activation: float = 25.0
    memory: float = 200.0
    sticky: float = 1_200.0
    fault: float = 10.0
    fault_memory: float = 1_800.0
    forgiven: float = 0.25
    """Faults up to it are what crossing messages do to honest peers."""
    credit_cap: float = 30.0
    credit_memory: float = 600.0
    retain: float = 3_600.0
    graylist: float = -600.0
    """Below it nothing of a peer is read: eight faults at once."""

    peers: int = 4_096
    messages: int = 8_192


@dataclass(slots=True)
class _Fading:
    """A sum that fades exponentially."""

    value: float = 0.0
    since: float = 0.0

    def at(self, now: float, memory: float) -> float:
        if now > self.since:
            self.value *= exp((self.since - now) / memory)
            self.since = now
        return self.value

    def add(self, amount: float, now: float, memory: float) -> None:
        self.value = self.at(now, memory) + amount


@dataclass(slots=True)
class _Delivery:
    """What a peer owed and brought in one topic."""

    grafted: float | None = None
    owed: _Fading = field(default_factory=_Fading)
    brought: _Fading = field(default_factory=_Fading)


@dataclass(slots=True)
class _Record:
    topics: dict[str, _Delivery] = field(default_factory=dict)
    failures: _Fading = field(default_factory=_Fading)
    faults: _Fading = field(default_factory=_Fading)
    credit: _Fading = field(default_factory=_Fading)
    seen: float = 0.0


@dataclass(slots=True)
class _Arrival:
    topic: str
    author: Hashable
    at: float
    owed_by: set[Hashable] = field(default_factory=set)
    """Neighbours that have not brought it yet; what nobody owes, nobody is thanked for, or it could be saved up for idle days."""


class Scores:
    """The conduct of all neighbours of one node. `now` is monotonic seconds."""

    def __init__(self, weights: Weights | None = None) -> None:
        self.weights = weights or Weights()
        self._records: OrderedDict[Hashable, _Record] = OrderedDict()
        self._arrivals: OrderedDict[bytes, _Arrival] = OrderedDict()

    # ---- what happens

    def grafted(self, peer: Hashable, topic: str, now: float) -> None:
        """`peer` is a mesh neighbour from now on."""
        delivery = self._record(peer, now).topics.setdefault(topic, _Delivery())
        delivery.grafted = now if delivery.grafted is None else delivery.grafted

    def pruned(self, peer: Hashable, topic: str, now: float) -> None:
        """`peer` is none any more; what it owes by then stays with it for longer."""
        record = self._record(peer, now)
        delivery = record.topics.get(topic)
        if delivery is None or delivery.grafted is None:
            return
        lack = self._lack(delivery, now)
        delivery.grafted = None
        if lack:
            record.failures.add(lack, now, self.weights.sticky)

    def arrived(self, message: bytes, topic: str, author: Hashable, by: Hashable, mesh: Iterable[Hashable], now: float) -> None:
        """A valid message came first, `by` a peer; where that only forwarded it, all our `mesh` neighbours owe us theirs."""
        w = self.weights
        arrival = self._arrivals[message] = _Arrival(topic, author, now)
        while len(self._arrivals) > w.messages:
            self._arrivals.popitem(last=False)
        for peer in mesh if by != author else ():
            delivery = self._record(peer, now).topics.setdefault(topic, _Delivery())
            if peer != author and delivery.grafted is not None and now - delivery.grafted >= w.grace:
                delivery.owed.add(1.0, now, w.memory)
                arrival.owed_by.add(peer)
        self._bring(arrival, by, now)
        if by != author:
            self._record(by, now).credit.add(1.0, now, w.credit_memory)

    def again(self, message: bytes, by: Hashable, now: float) -> None:
        """A message that we have came from another peer, which has forwarded it, if in time. Twice by one peer counts once."""
        arrival = self._arrivals.get(message)
        if arrival is not None and now - arrival.at <= self.weights.window:
            self._bring(arrival, by, now)

    def fault(self, peer: Hashable, now: float, weight: float = 1.0) -> None:
        """It did what no honest peer does: an invalid message, a graft in a backoff, a promise that was not kept."""
        self._record(peer, now).faults.add(weight, now, self.weights.fault_memory)

    def _bring(self, arrival: _Arrival, by: Hashable, now: float) -> None:
        if by in arrival.owed_by:
            arrival.owed_by.discard(by)
            self._record(by, now).topics[arrival.topic].brought.add(1.0, now, self.weights.memory)

    # ---- what it is worth

    def score(self, peer: Hashable, now: float) -> float:
        """Negative wherever anything stands against `peer`; else its credit, 0 to `credit_cap`. A stranger has 0."""
        record = self._records.get(peer)
        if record is None:
            return 0.0
        w = self.weights
        faults = record.faults.at(now, w.fault_memory)
        lack = sum(self._lack(delivery, now) for delivery in record.topics.values() if delivery.grafted is not None)
        against = lack + record.failures.at(now, w.sticky) + w.fault * (faults**2 if faults > w.forgiven else 0.0)
        if against > _NOTHING:
            return -against
        return min(w.credit_cap, record.credit.at(now, w.credit_memory))

    def graylisted(self, peer: Hashable, now: float) -> bool:
        """Whether nothing of it is to be read."""
        return self.score(peer, now) < self.weights.graylist

    def share(self, peer: Hashable, topic: str, now: float) -> float | None:
        """The share of what it owed that it brought, for people; None where it owed nothing."""
        delivery = self._records[peer].topics.get(topic) if peer in self._records else None
        owed = delivery.owed.at(now, self.weights.memory) if delivery is not None else 0.0
        return None if delivery is None or owed < 1 else delivery.brought.at(now, self.weights.memory) / owed

    def _lack(self, delivery: _Delivery, now: float) -> float:
        """Points for what it owes: at least one as soon as it lacks anything at all."""
        w = self.weights
        owed = delivery.owed.at(now, w.memory)
        if owed < w.activation:
            return 0.0
        lacking = w.need * owed - delivery.brought.at(now, w.memory)
        return 1.0 + lacking**2 if lacking > 0 else 0.0

    def _record(self, peer: Hashable, now: float) -> _Record:
        record = self._records.get(peer)
        if record is None:
            self._make_room(now)
            record = self._records[peer] = _Record()
        record.seen = now
        self._records.move_to_end(peer)
        return record

    def _make_room(self, now: float) -> None:
        """Forget those that were away for longest; a full table of fresh strangers forgets the oldest of them."""
        while len(self._records) >= self.weights.peers:
            oldest = next(iter(self._records))
            blameless = next((p for p, r in self._records.items() if now - r.seen < 1 or self.score(p, now) >= 0), oldest)
            del self._records[oldest if now - self._records[oldest].seen > self.weights.retain else blameless]


_NOTHING = 1e-3
"""What is left of a failure when it has faded: seven times its memory."""
