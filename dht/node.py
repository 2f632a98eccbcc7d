"""One DHT node without its network: table, stores, estimate and clock, and what an answer or a silence does to them."""

from random import Random

from dht.contacts import Contact
from dht.density import Density
from dht.keyspace import name_of_peer, place_of
from dht.lookup import Lookup
from dht.lookup_events import Begin, Done, LookupConfig, Verdict
from dht.provider_store import ProviderStore
from dht.record_store import OpenRecord, RecordLimits, RecordStore
from dht.responder import Responder
from dht.table import Admission, Table
from dht.upkeep import Upkeep
from protocol.wire.ids import PeerId

SILENT = 256
"""Peers remembered that did not answer: others go on naming them for a while."""

HELD = 40
"""A record this close to us that so many peers, or fewer, stand closer: ours to hold."""


class Node:
    """The node `me`. The driver asks, listens and keeps the time; here is everything that it decides by."""

    def __init__(self, me: Contact, open_record: OpenRecord, rng: Random, records: RecordLimits | None = None) -> None:
        self.me = me
        self.table = Table(me.place)
        self.records = RecordStore(me.place, open_record, records)
        self.providers = ProviderStore(me.place, rng)
        self.responder = Responder(self.table, self.records, self.providers)
        self.density = Density(self.table)
        self.upkeep = Upkeep(name_of_peer(me.peer), self.table, rng)
        self._rng = rng
        self._silent: dict[PeerId, None] = {}

    def lookup(self, name: bytes, config: LookupConfig, others: tuple[Contact, ...] = ()) -> tuple[Lookup, Begin]:
        """A lookup of `name` and its first event. `others` can be asked though they have no place in the table."""
        place = place_of(name)
        starts = {contact.peer: contact for contact in self.table.closest(place, config.width)}
        if len(starts) < config.width:
            for contact in sorted(others, key=lambda c: c.place ^ place):
                starts.setdefault(contact.peer, contact)
        begin = tuple(starts.values())[: config.width]
        elders = self.table.elders(config.elders // 2, starts)
        listed = {*starts, *(contact.peer for contact in elders)}
        rest = [contact for contact in self.table if contact.peer not in listed]
        elders += self._rng.sample(rest, min(config.elders - len(elders), len(rest)))
        bits = self.density.region_bits(config.region)
        return Lookup(self.me.peer, place, bits, self._rng, config), Begin(begin, tuple(elders), self._silent)

    def concluded(self, lookup: Lookup, done: Done) -> None:
        """A lookup ended: what it says of how many peers there are. One that had its answers did not look for all the nearest."""
        if done.closest and (not lookup.config.answers or done.verdict is not Verdict.FOUND):
            self.density.note(lookup.place, [contact.place for contact in done.closest])
            self.records.close_bits = self.density.region_bits(HELD)

    def answered(self, contact: Contact, now: float) -> Admission:
        """`contact` answered, where it was met."""
        self._silent.pop(contact.peer, None)
        return self.table.answered(contact, now)

    def silent(self, peer: PeerId) -> Contact | None:
        """`peer` did not answer. Returns who waits for its place and should be asked."""
        self._silent[peer] = None
        while len(self._silent) > SILENT:
            del self._silent[next(iter(self._silent))]
        return self.table.failed(peer)
