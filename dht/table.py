"""The routing table: which peers of the mesh we can ask. Decides who gets a place and who loses it; asks nobody.

Only an answer of its own gives a peer a place. A place is lost by not answering, never to a newcomer: whoever floods us with
fresh identities fills what is empty, as far as one network may.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from enum import StrEnum

from dht.contacts import Contact, Network
from dht.keyspace import shared_bits
from protocol.wire.ids import PeerId


@dataclass(frozen=True, slots=True)
class TableConfig:
    """`bucket` places for each number of shared bits (k of Kademlia), of which one network has `narrow` and `wide` at most.

    `narrow_all` and `wide_all` bound one network in the whole table. go-libp2p has 2 and 3 for its groups; a /16 is larger than a
    /24, so it has more. `waiting` newcomers a bucket are remembered for when a place is free. An entry is doubtful once it was
    silent for `fresh` seconds.
    """

    bucket: int = 20
    narrow: int = 2
    narrow_all: int = 3
    wide: int = 5
    wide_all: int = 12
    waiting: int = 8
    fresh: float = 600.0


class Admission(StrEnum):
    """What became of a peer that answered."""

    ADDED = "added"
    KEPT = "kept"
    FULL = "full"
    """Its bucket has no place; it waits."""
    CROWDED = "crowded"
    """Its network has its share."""


class Entry:
    """One place: `since` when it was taken and `proven` when its peer last answered, on the monotonic clock."""

    __slots__ = ("contact", "proven", "since")

    def __init__(self, contact: Contact, now: float) -> None:
        self.contact = contact
        self.since = now
        self.proven = now


class _Bucket:
    """Its entries, and of them what each question wants at once: the contacts in a row, and how many are of each network."""

    __slots__ = ("contacts", "entries", "narrow", "waiting", "wide")

    def __init__(self) -> None:
        self.entries: dict[PeerId, Entry] = {}
        self.contacts: list[Contact] = []
        self.narrow: dict[str, int] = {}
        self.wide: dict[str, int] = {}
        self.waiting: dict[PeerId, Contact] = {}


class Table:
    """The table of the peer that stands at `me`."""

    def __init__(self, me: int, config: TableConfig | None = None) -> None:
        self.me = me
        self.config = config or TableConfig()
        self._entries: dict[PeerId, Entry] = {}
        self._buckets: dict[int, _Bucket] = {}
        self._narrow: dict[str, int] = {}
        self._wide: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, peer: object) -> bool:
        return peer in self._entries

    def __iter__(self) -> Iterator[Contact]:
        return (entry.contact for entry in self._entries.values())

    def get(self, peer: PeerId) -> Contact | None:
        """The contact of a peer that has a place."""
        entry = self._entries.get(peer)
        return entry.contact if entry is not None else None

    def answered(self, contact: Contact, now: float) -> Admission:
        """`contact` answered us at `now`. Its network must be the one where it was met."""
        if contact.place == self.me:
            return Admission.CROWDED
        bits = shared_bits(self.me, contact.place)
        bucket = self._buckets.get(bits)
        if bucket is None:
            bucket = self._buckets[bits] = _Bucket()
        entry = self._entries.get(contact.peer)
        if entry is not None:
            if entry.contact.network == contact.network:
                entry.proven = now
                if contact.addresses and contact != entry.contact:
                    bucket.contacts[bucket.contacts.index(entry.contact)] = entry.contact = contact
                return Admission.KEPT
            self._remove(bucket, entry)  # it moved: elsewhere it is a newcomer
        if not self._fits(bucket, contact.network):
            return Admission.CROWDED
        if len(bucket.entries) >= self.config.bucket:
            bucket.waiting.pop(contact.peer, None)
            bucket.waiting[contact.peer] = contact
            if len(bucket.waiting) > self.config.waiting:
                del bucket.waiting[next(iter(bucket.waiting))]
            return Admission.FULL
        self._add(bucket, Entry(contact, now))
        return Admission.ADDED

    def failed(self, peer: PeerId) -> Contact | None:
        """`peer` did not answer: it is out at once. Returns who waits for its place, to be asked whether it is there."""
        entry = self._entries.get(peer)
        if entry is None:
            return None
        bucket = self._buckets[shared_bits(self.me, entry.contact.place)]
        self._remove(bucket, entry)
        for waiting in reversed(bucket.waiting.values()):
            if self._fits(bucket, waiting.network):
                del bucket.waiting[waiting.peer]
                return waiting
        return None

    def wants(self, contact: Contact) -> bool:
        """Whether an answer would give this stranger a place now, so that it is worth asking."""
        if contact.peer in self._entries or contact.place == self.me:
            return False
        bucket = self._buckets.get(shared_bits(self.me, contact.place)) or _Bucket()
        return len(bucket.entries) < self.config.bucket and self._fits(bucket, contact.network)

    def closest(self, place: int, count: int) -> list[Contact]:
        """The `count` entries nearest to `place`, the nearest first.

        Whoever shares exactly b bits with us has another bit there than we. Where `place` has another one too, it is nearer to
        `place` than all that share more bits with us, and else farther: so whole buckets follow each other, and few are sorted.
        """
        apart = self.me ^ place
        near = [bits for bits in sorted(self._buckets) if apart >> (255 - bits) & 1]
        far = [bits for bits in sorted(self._buckets, reverse=True) if not apart >> (255 - bits) & 1]
        found: list[Contact] = []
        for bits in (*near, *far):
            found += sorted(self._buckets[bits].contacts, key=lambda contact: contact.place ^ place)
            if len(found) >= count:
                break
        return found[:count]

    def elders(self, count: int, without: Container[PeerId]) -> list[Contact]:
        """Entries from all over the key space: of each bucket the one that has been there longest, the widest bucket first."""
        found: list[Contact] = []
        for bits in sorted(self._buckets):
            if len(found) >= count:
                break
            listed = [entry for peer, entry in self._buckets[bits].entries.items() if peer not in without]
            if listed:
                found.append(min(listed, key=lambda entry: entry.since).contact)
        return found

    def doubtful(self, now: float, count: int) -> list[Contact]:
        """Up to `count` entries that were silent for `fresh` seconds, the longest silent first: they should be asked."""
        limit = now - self.config.fresh
        silent = [entry for entry in self._entries.values() if entry.proven <= limit]
        silent.sort(key=lambda entry: entry.proven)
        return [entry.contact for entry in silent[:count]]

    def sizes(self) -> dict[int, int]:
        """How many entries share so many bits with us, for each number that has any."""
        return {bits: len(bucket.entries) for bits, bucket in self._buckets.items() if bucket.entries}

    def _fits(self, bucket: _Bucket, network: Network | None) -> bool:
        if network is None:
            return True
        config = self.config
        if self._narrow.get(network.narrow, 0) >= config.narrow_all or self._wide.get(network.wide, 0) >= config.wide_all:
            return False
        return bucket.narrow.get(network.narrow, 0) < config.narrow and bucket.wide.get(network.wide, 0) < config.wide

    def _add(self, bucket: _Bucket, entry: Entry) -> None:
        peer, network = entry.contact.peer, entry.contact.network
        bucket.waiting.pop(peer, None)
        bucket.entries[peer] = self._entries[peer] = entry
        bucket.contacts.append(entry.contact)
        if network is not None:
            for counts, name in self._counts(bucket, network):
                counts[name] = counts.get(name, 0) + 1

    def _remove(self, bucket: _Bucket, entry: Entry) -> None:
        peer, network = entry.contact.peer, entry.contact.network
        del bucket.entries[peer], self._entries[peer]
        bucket.contacts.remove(entry.contact)
        if network is not None:
            for counts, name in self._counts(bucket, network):
                counts[name] -= 1
                if not counts[name]:
                    del counts[name]

    def _counts(self, bucket: _Bucket, network: Network) -> tuple[tuple[dict[str, int], str], ...]:
        """What counts the entries of one network: the table and the bucket, each its narrow and its wide one."""
        tables = ((self._narrow, network.narrow), (self._wide, network.wide))
        return (*tables, (bucket.narrow, network.narrow), (bucket.wide, network.wide))
