"""What one stranger may cost our gossip: seen messages, rates and the graylist. Decides from counts and times; sends nothing."""

from collections import OrderedDict
from collections.abc import Hashable


class SeenMessages:
    """Ids of messages already judged, for `lifetime` seconds and at most `capacity` of them (oldest forgotten first)."""

    def __init__(self, lifetime: float, capacity: int) -> None:
        self._lifetime = lifetime
        self._capacity = capacity
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def has(self, message_id: bytes, now: float) -> bool:
        """Whether `message_id` was added within the lifetime."""
        since = self._seen.get(message_id)
        return since is not None and now - since < self._lifetime

    def add(self, message_id: bytes, now: float) -> None:
        """Remember `message_id` from now; its first time stands, so that repeating it cannot keep it alive."""
        if self.has(message_id, now):
            return
        self._seen.pop(message_id, None)
        self._seen[message_id] = now
        while len(self._seen) > self._capacity or now - next(iter(self._seen.values())) >= self._lifetime:
            self._seen.popitem(last=False)

    def __len__(self) -> int:
        return len(self._seen)


class Budgets:
    """A token bucket per key: `rate` a second, `burst` at once. Holds at most `capacity` keys, the least used forgotten first."""

    def __init__(self, rate: float, burst: float, capacity: int = 4096) -> None:
        self._rate = rate
        self._burst = burst
        self._capacity = capacity
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, key: Hashable, now: float, cost: float = 1.0) -> bool:
        """Whether `key` may spend `cost` now; a refusal spends nothing."""
        level, since = self._buckets.pop(key, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        allowed = level >= cost
        self._buckets[key] = (level - cost if allowed else level, now)
        if len(self._buckets) > self._capacity:
            self._buckets.popitem(last=False)
        return allowed


class Graylist:
    """Peers whose gossip is ignored for `duration` seconds after `limit` faults; faults fade at `limit` per `duration`.

    Kept by peer id and not by connection: the library forgets a score on disconnect, so a reconnect would wash it white.
    """

    def __init__(self, limit: float, duration: float, capacity: int = 4096) -> None:
        self._faults = Budgets(limit / duration, limit, capacity)
        self._limit = limit
        self._duration = duration
        self._capacity = capacity
        self._until: OrderedDict[Hashable, float] = OrderedDict()

    def blame(self, peer: Hashable, now: float, weight: float = 1.0) -> bool:
        """Count a fault of `peer`; True when this one put it on the list."""
        if self._faults.take(peer, now, min(weight, self._limit)):
            return False
        fresh = not self.holds(peer, now)
        self._until.pop(peer, None)
        self._until[peer] = now + self._duration
        if len(self._until) > self._capacity:
            self._until.popitem(last=False)
        return fresh

    def holds(self, peer: Hashable, now: float) -> bool:
        """Whether `peer` is on the list at `now`."""
        until = self._until.get(peer)
        if until is None:
            return False
        if until <= now:
            del self._until[peer]
            return False
        return True
