"""Who says that it provides what, to this peer. Decides whose word has a place; nobody's word here makes anybody routable.

First come is not first served: a full list takes the place from the network that has most of it, so that a squatter with one
block of addresses holds two places, and one with many holds none for long.
"""

from collections import Counter
from dataclasses import dataclass
from random import Random

from dht.contacts import Contact
from dht.keyspace import place_of
from protocol.wire.ids import PeerId

MAX_PROVIDED_NAME = 80
"""Bytes of a provider key (kad-dht spec)."""


@dataclass(frozen=True, slots=True)
class ProviderLimits:
    """Counts, and `lifetime` in seconds: four times what an honest provider needs to say it again.

    `places` a name, of which one network has `narrow` and `wide` at most; `named`: how many of them one answer names.
    """

    names: int = 4096
    places: int = 40
    all_places: int = 16384
    narrow: int = 2
    wide: int = 6
    per_peer: int = 64
    named: int = 40
    lifetime: float = 3600.0


class ProviderStore:
    """The lists of the peer at `me`."""

    def __init__(self, me: int, rng: Random, limits: ProviderLimits | None = None) -> None:
        self.limits = limits or ProviderLimits()
        self._me = me
        self._rng = rng
        self._lists: dict[bytes, dict[PeerId, tuple[Contact, float]]] = {}
        self._held: Counter[PeerId] = Counter()
        self._places = 0

    def __len__(self) -> int:
        return self._places

    def names(self) -> tuple[bytes, ...]:
        """What is provided by anybody."""
        return tuple(self._lists)

    def add(self, name: bytes, provider: Contact, now: float, own: bool = False) -> bool:
        """Note that `provider` provides `name`; whether there was a place for it."""
        if not 0 < len(name) <= MAX_PROVIDED_NAME:
            return False
        listed = self._lists.get(name, {})
        if provider.peer in listed:
            listed[provider.peer] = (provider, now)
            return True
        if not own and self._held[provider.peer] >= self.limits.per_peer:
            return False
        if len(listed) >= self.limits.places or not self._fits(listed, provider):
            loser = self._loser(listed, provider)
            if loser is None:
                return False
            self.remove(name, loser)
        if (name not in self._lists and len(self._lists) >= self.limits.names) or self._places >= self.limits.all_places:
            farthest = max(self._lists, key=lambda other: place_of(other) ^ self._me)
            if not own and place_of(farthest) ^ self._me <= place_of(name) ^ self._me:
                return False
            for peer in list(self._lists[farthest]):
                self.remove(farthest, peer)
        self._lists.setdefault(name, {})[provider.peer] = (provider, now)
        self._held[provider.peer] += 1
        self._places += 1
        return True

    def get(self, name: bytes, now: float) -> tuple[Contact, ...]:
        """Providers of `name` that said so within the lifetime: all, or some of them drawn anew each time."""
        oldest = now - self.limits.lifetime
        listed = [contact for contact, since in self._lists.get(name, {}).values() if since > oldest]
        if len(listed) > self.limits.named:
            listed = self._rng.sample(listed, self.limits.named)
        return tuple(listed)

    def remove(self, name: bytes, peer: PeerId) -> None:
        """Forget that `peer` provides `name`."""
        listed = self._lists.get(name, {})
        if listed.pop(peer, None) is None:
            return
        self._places -= 1
        self._held[peer] -= 1
        if not self._held[peer]:
            del self._held[peer]
        if not listed:
            del self._lists[name]

    def expire(self, now: float) -> int:
        """Forget who said so longer ago than the lifetime; how many."""
        oldest = now - self.limits.lifetime
        gone = [(name, peer) for name, listed in self._lists.items() for peer, (_, since) in listed.items() if since <= oldest]
        for name, peer in gone:
            self.remove(name, peer)
        return len(gone)

    def _fits(self, listed: dict[PeerId, tuple[Contact, float]], provider: Contact) -> bool:
        network = provider.network
        if network is None:
            return True
        beside = [contact.network for contact, _ in listed.values() if contact.network is not None]
        narrow = sum(other.narrow == network.narrow for other in beside)
        return narrow < self.limits.narrow and sum(other.wide == network.wide for other in beside) < self.limits.wide

    def _loser(self, listed: dict[PeerId, tuple[Contact, float]], provider: Contact) -> PeerId | None:
        """Who gives its place to a newcomer: one of the newcomer's network where that has its share, else of the fullest."""
        network = provider.network
        if network is not None and not self._fits(listed, provider):
            narrow = [peer for peer, (c, _) in listed.items() if c.network is not None and c.network.narrow == network.narrow]
            wide = [peer for peer, (c, _) in listed.items() if c.network is not None and c.network.wide == network.wide]
            return self._rng.choice(narrow if len(narrow) >= self.limits.narrow else wide)
        if not listed:
            return None
        sizes = Counter(_group(contact) for contact, _ in listed.values())
        most = max(sizes.values())
        return self._rng.choice([peer for peer, (contact, _) in listed.items() if sizes[_group(contact)] == most])


def _group(contact: Contact) -> str:
    return contact.network.wide if contact.network is not None else contact.peer
