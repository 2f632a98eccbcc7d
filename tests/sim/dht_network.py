"""A mesh of DHT nodes under a virtual clock: `dht/`'s own machines, a seeded network between them. Decides delay, loss and death.

Nothing of a node is modelled here: tables, lookups, stores, upkeep are the daemon's. What is modelled is the wire: a message
takes 10 to 60 ms each way, a dead peer costs its asker `SILENCE` seconds, and sizes are those of libp2p's encoding.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from random import Random

from dht import lookup_events, upkeep
from dht.contacts import Contact, contact_of
from dht.kad_messages import AddProvider, Answer, FindNode, GetProviders, GetValue, Ping, PutValue, Question
from dht.keyspace import name_of_peer
from dht.lookup import Lookup
from dht.lookup_events import Ask, Done, LookupConfig
from dht.node import Node
from dht.queries import FIND, GET, REFRESH, STORE, Providers, Values, holders
from dht.record_store import Opened, OpenRecord
from protocol.wire.errors import RemoteError, malformed
from protocol.wire.ids import PeerId, peer_id_of

DELAY = (0.010, 0.060)
SILENCE = 4.0
"""What the daemon waits for an answer."""

WALL = 1_700_000_000_000

STREAM_BYTES = 210
"""A question's own stream: two lines of multistream-select each way, four Yamux headers, four Noise frames."""

CONTACT_BYTES = 52
"""A peer in an answer: its id of 38 bytes, one address of 8, and their tags."""

GREETINGS = 4
"""Askers that a node asks back at the same time."""


def value_of(version: int, note: str = "") -> bytes:
    """A record's value in a mesh without signatures: the higher version wins."""
    return b"%d %s" % (version, note.encode())


def open_versioned(key: str, value: bytes, wall: int) -> Opened:
    """Stands for the signature check of an offer, which takes 0.2 ms: `forged` is what no key has signed."""
    version, _, note = value.partition(b" ")
    if not version.isdigit() or note == b"forged":
        raise malformed("a forged record")
    return Opened((int(version), 0, value), wall + 3_600_000)


def random_ip(rng: Random) -> str:
    """A public address; a third are in two hundred crowded /16s, as in clouds and large providers."""
    wide = Random(rng.randrange(200)).randrange(1 << 15) if rng.random() < 1 / 3 else rng.randrange(1 << 15)
    first = 11 + wide % 80
    return f"{first}.{wide // 80 % 256}.{rng.randrange(256)}.{rng.randrange(1, 255)}"


def peer_at(ip: str, rng: Random) -> Contact:
    """A peer with a random identity at an address."""
    return contact_of(peer_id_of(rng.randbytes(32)), (f"/ip4/{ip}/tcp/4001",))


def peer_near(place: int, bits: int, ip: str, rng: Random) -> Contact:
    """A peer whose identity was ground until it shared `bits` with a place."""
    while True:
        contact = peer_at(ip, rng)
        if (contact.place ^ place) >> (256 - bits) == 0:
            return contact


@dataclass
class Run:
    """One lookup under way."""

    node: "Host"
    lookup: Lookup
    question: Question
    ended: Callable[[Done], None]
    take: Callable[[Answer], bool]
    purpose: str
    wake: float = 0.0


@dataclass
class Host:
    """A node and its place in the simulated network. `answer` is replaced by what an attacker says instead."""

    contact: Contact
    node: Node
    alive: bool = True
    hostile: bool = False
    wake: float = float("inf")
    greeting: set[PeerId] = field(default_factory=set)
    own: dict[str, bytes] = field(default_factory=dict)
    provided: set[bytes] = field(default_factory=set)
    born: float = 0.0
    answer: Callable[[Question, Contact], Answer | None] | None = None


class Network:
    """The clock and the wire. One seed is one history."""

    def __init__(self, seed: int, open_record: OpenRecord = open_versioned) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.open_record = open_record
        self.hosts: dict[PeerId, Host] = {}
        self.plain = False
        """Look up on one path and ask nobody but the nearest, as stock Kademlia: what our lookups are compared with."""
        self.purposes: Counter[str] = Counter()
        """Messages, questions and answers, by what they were for: lookup, publish or upkeep."""
        self.purpose_bytes: Counter[str] = Counter()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    @property
    def wall(self) -> int:
        """Unix milliseconds."""
        return WALL + int(self.now * 1000)

    # ---- time

    def at(self, delay: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), work))

    def run(self, until: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Play up to the time `until`, or until `stop`."""
        while self._queue and self._queue[0][0] <= until:
            self.now, _, work = heapq.heappop(self._queue)
            work()
            if stop():
                return
        self.now = max(self.now, until)

    # ---- peers

    def add(self, contact: Contact | None = None) -> Host:
        """A new peer that knows nobody yet."""
        contact = contact or peer_at(random_ip(self.rng), self.rng)
        host = Host(contact, Node(contact, self.open_record, Random(self.rng.getrandbits(64))), born=self.now)
        self.hosts[contact.peer] = host
        return host

    def join(self, host: Host, known: Sequence[Contact]) -> None:
        """Start a peer that was told of `known`: it asks them who is near itself, as a daemon greets whom it connects to."""
        for contact in known:
            self.greet(host, contact)
        self.tick(host)

    def kill(self, host: Host) -> None:
        """It is gone without a word."""
        host.alive = False
        del self.hosts[host.contact.peer]

    # ---- questions

    def ask(
        self, asker: Host, target: Contact, question: Question, then: Callable[[Answer | None], None], purpose: str = "upkeep"
    ) -> None:
        """One question; `then` gets the answer, or None once it failed."""
        self._count(purpose, question_bytes(question))
        self.at(self.rng.uniform(*DELAY), lambda: self._deliver(asker, target, question, then, purpose))

    def _deliver(
        self, asker: Host, target: Contact, question: Question, then: Callable[[Answer | None], None], purpose: str
    ) -> None:
        host = self.hosts.get(target.peer)
        reply = None if host is None else self._served(host, question, asker)
        if reply is None:
            self.at(SILENCE, lambda: self._failed(asker, target, then))
            return
        self._count(purpose, answer_bytes(reply))
        self.at(self.rng.uniform(*DELAY), lambda: self._returned(asker, target, reply, then))

    def _served(self, host: Host, question: Question, asker: Host) -> Answer | None:
        if host.answer is not None:
            return host.answer(question, asker.contact)
        if host.node.table.wants(asker.contact) and len(host.greeting) < GREETINGS:
            self.greet(host, asker.contact, Ping())
        try:
            return host.node.responder.answer(question, asker.contact, self.now, self.wall)
        except RemoteError:
            return None

    def _returned(self, asker: Host, target: Contact, answer: Answer, then: Callable[[Answer | None], None]) -> None:
        if asker.alive:
            asker.node.answered(target, self.now)
            then(answer)

    def _failed(self, asker: Host, target: Contact, then: Callable[[Answer | None], None]) -> None:
        if asker.alive:
            waiting = asker.node.silent(target.peer)
            then(None)
            if waiting is not None:
                self.greet(asker, waiting, Ping())

    def greet(self, host: Host, contact: Contact, question: Question | None = None) -> None:
        """Ask a peer that has no place in the table yet."""
        if contact.peer in host.greeting:
            return
        host.greeting.add(contact.peer)
        fresh = contact.peer not in host.node.table

        def then(answer: Answer | None) -> None:
            host.greeting.discard(contact.peer)
            if answer is not None and answer.closer and fresh:
                self._upkeep(host, upkeep.Arrived())

        self.ask(host, contact, question or FindNode(name_of_peer(host.contact.peer)), then)

    # ---- lookups

    def look_up(
        self,
        host: Host,
        name: bytes,
        config: LookupConfig,
        question: Question,
        take: Callable[[Answer], bool],
        ended: Callable[[Done], None],
        purpose: str = "lookup",
    ) -> Lookup:
        """Run one lookup to its end."""
        lookup, begin = host.node.lookup(name, config)
        if self.plain:
            plain = replace(config, paths=1, parallel=config.paths * config.parallel, answer_paths=1)
            lookup, begin = Lookup(host.contact.peer, lookup.place, 256, self.rng, plain), replace(begin, elders=())
        run = Run(host, lookup, question, ended, take, purpose)
        self._feed(run, begin)
        return lookup

    def _feed(self, run: Run, event: lookup_events.Event) -> None:
        for effect in run.lookup.handle(event, self.now):
            match effect:
                case Ask(contact, point):
                    question = run.question if point is None else FindNode(point)
                    then: Callable[[Answer | None], None] = lambda reply, c=contact, p=point: self._heard(run, c, p, reply)  # type: ignore[misc] # noqa: E731
                    self.ask(run.node, contact, question, then, run.purpose)
                case lookup_events.WakeAt(time):
                    run.wake = time
                    self.at(time - self.now, lambda t=time: self._alarmed(run, t))  # type: ignore[misc]
                case Done() as done:
                    run.node.node.concluded(run.lookup, done)
                    run.ended(done)

    def _alarmed(self, run: Run, time: float) -> None:
        if run.node.alive and run.wake == time and run.lookup.done is None:
            self._feed(run, lookup_events.Tick())

    def _heard(self, run: Run, contact: Contact, point: bytes | None, answer: Answer | None) -> None:
        if answer is None:
            self._feed(run, lookup_events.Failed(contact.peer))
        else:
            useful = point is None and run.take(answer)
            self._feed(run, lookup_events.Answered(contact.peer, answer.closer, useful))

    def get(self, host: Host, key: str, ended: Callable[[Done, bytes | None], None], config: LookupConfig = GET) -> None:
        """Look for the record under `key`."""
        values = Values(key, self.open_record)
        take: Callable[[Answer], bool] = lambda answer: values.take(answer.value, self.wall)  # noqa: E731
        self.look_up(host, key.encode(), config, GetValue(key.encode()), take, lambda done: ended(done, values.best))

    def find(self, host: Host, name: bytes, ended: Callable[[Done, Providers], None], config: LookupConfig = FIND) -> None:
        """Look for the providers of `name`."""
        providers = Providers(host.contact.peer)
        self.look_up(host, name, config, GetProviders(name), providers.take, lambda done: ended(done, providers))

    def put(self, host: Host, key: str, value: bytes, ended: Callable[[int], None] = lambda _: None) -> None:
        """Store a record with everybody that should hold it."""
        host.own[key] = value
        host.node.records.put_own(key, value, self.wall)
        self._tell(host, key.encode(), PutValue(key.encode(), value), ended)

    def provide(self, host: Host, name: bytes, ended: Callable[[int], None] = lambda _: None) -> None:
        """Say that `host` provides `name`."""
        host.provided.add(name)
        host.node.providers.add(name, host.contact, self.now, own=True)
        self._tell(host, name, AddProvider(name, host.contact.addresses), ended)

    def _tell(self, host: Host, name: bytes, question: Question, ended: Callable[[int], None]) -> None:
        def found(done: Done) -> None:
            targets = done.closest if self.plain else holders(done)
            left, took = len(targets), 0

            def told(answer: Answer | None) -> None:
                nonlocal left, took
                left -= 1
                took += answer is not None
                if not left:
                    ended(took)

            for contact in targets:
                self.ask(host, contact, question, told, "publish")
            if not targets:
                ended(0)

        self.look_up(host, name, STORE, FindNode(name), lambda _: False, found, "publish")

    # ---- upkeep

    def tick(self, host: Host) -> None:
        """The node's own clock."""
        self._upkeep(host, upkeep.Tick())

    def _upkeep(self, host: Host, event: upkeep.Event) -> None:
        for effect in host.node.upkeep.handle(event, self.now):
            match effect:
                case upkeep.LookUp(name):
                    config = STORE if name == host.node.upkeep.name else REFRESH
                    ended: Callable[[Done], None] = lambda _, n=name: self._upkeep(host, upkeep.LookedUp(n))  # type: ignore[misc] # noqa: E731
                    self.look_up(host, name, config, FindNode(name), lambda _: False, ended, "upkeep")
                case upkeep.Republish():
                    for key, value in host.own.items():
                        self.put(host, key, value)
                    for name in list(host.provided):
                        self.provide(host, name)
                case upkeep.Check(contact):
                    self.greet(host, contact, Ping())
                case upkeep.Expire():
                    host.node.records.expire(self.wall)
                    host.node.providers.expire(self.now)
                case upkeep.WakeAt(time) if time < host.wake or host.wake <= self.now:
                    host.wake = time
                    self.at(time - self.now, lambda: self._woken(host, time))

    def _woken(self, host: Host, time: float) -> None:
        if host.alive and host.wake == time:
            host.wake = float("inf")
            self.tick(host)

    def _count(self, purpose: str, size: int) -> None:
        self.purposes[purpose] += 1
        self.purpose_bytes[purpose] += size


@lru_cache(maxsize=64)
def _key_bytes(length: int) -> int:
    return length + 4


def question_bytes(question: Question) -> int:
    """Bytes of a question on the wire, with its share of the stream; tests/transport/test_kademlia.py compares real ones."""
    match question:
        case Ping():
            return STREAM_BYTES // 2 + 4
        case PutValue(name, value):
            return STREAM_BYTES // 2 + 2 * _key_bytes(len(name)) + len(value) + 8
        case AddProvider(name, addresses):
            return STREAM_BYTES // 2 + _key_bytes(len(name)) + CONTACT_BYTES + 10 * (len(addresses) - 1)
        case FindNode(name) | GetValue(name) | GetProviders(name):
            return STREAM_BYTES // 2 + _key_bytes(len(name))


def answer_bytes(answer: Answer) -> int:
    """Bytes of an answer on the wire."""
    value = len(answer.value) + 60 if answer.value is not None else 0
    return STREAM_BYTES // 2 + 40 + value + CONTACT_BYTES * (len(answer.closer) + len(answer.providers))
