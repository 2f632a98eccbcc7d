"""What a DHT node answers. Decides from its table and stores alone; the caller has checked who asks and how often."""

from collections import Counter
from dataclasses import replace

from dht.contacts import Contact
from dht.kad_messages import AddProvider, Answer, FindNode, GetProviders, GetValue, Ping, PutValue, Question
from dht.keyspace import name_of_peer, place_of
from dht.provider_store import MAX_PROVIDED_NAME, ProviderStore
from dht.record_store import MAX_NAME_BYTES, RecordStore
from dht.table import Table
from protocol.wire.errors import Code, RemoteError, malformed

NAMED = 20
"""Peers that an answer names: k of Kademlia."""


class Responder:
    """The serving half of one node."""

    def __init__(self, table: Table, records: RecordStore, providers: ProviderStore) -> None:
        self.table = table
        self.records = records
        self.providers = providers
        self.served: Counter[str] = Counter()

    def answer(self, question: Question, asker: Contact, now: float, wall: int) -> Answer:
        """The answer to a stranger's question; raises RemoteError where there is none for it, and then nothing is said at all.

        `now` is the monotonic clock in seconds, `wall` unix milliseconds.
        """
        self.served[type(question).__name__] += 1
        match question:
            case Ping():
                return Answer()
            case FindNode(name):
                return Answer(self._closer(_named(name, MAX_NAME_BYTES), asker, named=True))
            case GetValue(name):
                return Answer(self._closer(_named(name, MAX_NAME_BYTES), asker), self.records.get(name, wall))
            case GetProviders(name):
                closer = self._closer(_named(name, MAX_NAME_BYTES), asker)
                return Answer(closer, providers=self.providers.get(name, now))
            case PutValue(name, value):
                self.records.put(_named(name, MAX_NAME_BYTES), value, asker, wall)
                return Answer(value=value)
            case AddProvider(name, addresses):
                provider = replace(asker, addresses=addresses)
                if not addresses or not self.providers.add(_named(name, MAX_PROVIDED_NAME), provider, now):
                    raise RemoteError(Code.REFUSED, "no place among the providers")
                return Answer()

    def _closer(self, name: bytes, asker: Contact, named: bool = False) -> tuple[Contact, ...]:
        """The nearest in the table but the asker; `named`: whoever is looked for by its own id is told of itself as well."""
        closest = self.table.closest(place_of(name), NAMED + 1)
        closer = tuple([contact for contact in closest if contact.peer != asker.peer][:NAMED])
        itself = named and closest and closest[0].peer == asker.peer and name_of_peer(asker.peer) == name
        return (closest[0], *closer) if itself else closer


def _named(name: bytes, limit: int) -> bytes:
    if not 0 < len(name) <= limit:
        raise malformed(f"a key in the DHT has 1 to {limit} bytes")
    return name
