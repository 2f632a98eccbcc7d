"""What a node wants of a lookup: a record, providers, or the peers that must hold something. Gathers answers; asks nobody."""

from collections.abc import Callable
from dataclasses import replace

from dht.contacts import MAX_ADDRESSES, Contact
from dht.kad_messages import Answer
from dht.lookup_events import Done, LookupConfig
from dht.record_store import Opened, OpenRecord
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

K = 20
"""Peers that hold a record: k of Kademlia."""

GET = LookupConfig(answers=4)
"""A record is signed: four that hold it, on two paths, say which is the newest as well as twenty."""

FIND = LookupConfig(answers=8, nearest=20)
"""A list of providers is a stranger's word, and each holder knows a part of it."""

STORE = LookupConfig()
REFRESH = LookupConfig(paths=2, width=8, region=8, elders=2)
"""Enough to find a few peers in a bucket."""


def wider(config: LookupConfig) -> LookupConfig:
    """As `config`, asking far more peers: for once more, after too few answered."""
    return replace(config, paths=2 * config.paths, width=2 * config.width, elders=4 * config.elders)


MAX_HOLDERS = 64
"""Peers that one record is stored with: twenty in peace; all of a region that somebody crowded, up to this."""

MAX_PROVIDERS = 200

NAMED = 40
"""Providers that are read of one answer."""


class Values:
    """The valid records among the answers; `best` is the one that wins."""

    def __init__(self, key: str, open_record: OpenRecord) -> None:
        self.best: bytes | None = None
        self.invalid = 0
        self._key = key
        self._open = open_record
        self._order: Opened | None = None

    def take(self, value: bytes | None, wall: int) -> bool:
        """Whether `value` is a valid record of the key."""
        if value is None:
            return False
        if value == self.best:
            return True
        try:
            opened = self._open(self._key, value, wall)
        except RemoteError:
            self.invalid += 1
            return False
        if self._order is None or opened.order > self._order.order:
            self.best, self._order = value, opened
        return True


class Providers:
    """Who is said to provide something. `credible(contact)` may refuse those that are known to be something else."""

    def __init__(self, me: PeerId, credible: Callable[[Contact], bool] = lambda _: True) -> None:
        self.found: dict[PeerId, Contact] = {}
        self._me = me
        self._credible = credible

    def take(self, answer: Answer) -> bool:
        """Whether `answer` named any that may be believed."""
        named = [c for c in answer.providers[:NAMED] if c.peer != self._me and self._credible(c)]
        for contact in named:
            known = self.found.get(contact.peer)
            if known is None and len(self.found) < MAX_PROVIDERS:
                self.found[contact.peer] = contact
            elif known is not None and known.addresses != contact.addresses:
                addresses = tuple(dict.fromkeys((*known.addresses, *contact.addresses)))[:MAX_ADDRESSES]
                self.found[contact.peer] = Contact(contact.peer, contact.place, addresses, contact.network)
        return bool(named)


def holders(done: Done, closest: int = K) -> tuple[Contact, ...]:
    """Who should hold what was looked up: the `closest` nearest, and everybody in the region.

    Where that is too many: the nearest, and as many from all over the region, so that nobody next to the key is alone.
    """
    listed = list(dict.fromkeys((*done.closest[:closest], *done.region)))
    if len(listed) <= MAX_HOLDERS:
        return tuple(listed)
    half = MAX_HOLDERS // 2
    rest = listed[half:]
    return (*listed[:half], *(rest[(number + 1) * len(rest) // half - 1] for number in range(half)))
