"""Attacks on finding, D1 to D7 of docs/security.md, against a mesh of the daemon's own DHT nodes: figures of one seed.

Attackers' identities are given the place that grinding keys would give them; a hostile node has the machines of an honest one to
get into tables, and says what the attack wants instead of what they answer.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.contacts import Contact
from dht.kad_messages import AddProvider, Answer, GetValue, Ping, PutValue, Question
from dht.keyspace import place_of, provider_name, shared_bits
from dht.lookup_events import Done, LookupConfig, Verdict
from dht.offers import LIFETIME_MS, Offer, sign_offer
from dht.peer_cache import PeerCache, decode_cache
from dht.queries import FIND, GET, Providers
from dht.record_store import Opened, RecordStore
from dht.records import model_key, offer_key, open_for_store
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, peer_id_of
from tests.sim.dht_network import WALL, Host, Network, open_versioned, peer_at, random_ip, value_of

Figures = dict[str, float]
Said = Callable[[Question, Contact], Answer | None]
Script = Callable[[Host, list[Host]], Said]
"""(a hostile host, its gang) -> what it answers."""

PEERS = 500
GANGS = (20, 40, 60)
NEAR_BITS = 14
"""What an attacker grinds its keys to: 16,000 tries each. In a mesh of 500 an honest peer shares nine bits with a key at best."""

DIALS = 8
"""Cached peers that a daemon dials at once, the anchors among the first."""

GETTERS = 20
PROTECTED = replace(GET, paths=8)
RIGHT = value_of(7)
FORGED = value_of(9, "forged")


@dataclass
class Mesh:
    """An honest mesh, all joined by lookups of their own."""

    net: Network
    honest: list[Host]

    @classmethod
    def grown(cls, seed: int, peers: int) -> "Mesh":
        mesh = cls(Network(seed), [])
        net = mesh.net

        def join() -> None:
            known = [host.contact for host in net.rng.sample(mesh.honest, min(3, len(mesh.honest)))]
            mesh.honest.append(net.add())
            net.join(mesh.honest[-1], known)

        for number in range(peers):
            net.at(number * 60 / peers, join)
        net.run(120)
        return mesh

    def one(self) -> Host:
        return self.net.rng.choice(self.honest)

    def gang(self, place: int, count: int, say: Script, spread: int = 0) -> list[Host]:
        """`count` hostile peers next to a place and `spread` anywhere, each in a network of its own, in tables already."""
        net, gang = self.net, list[Host]()
        for number in range(count + spread):
            shell = peer_at(random_ip(net.rng), net.rng)
            near = place >> (256 - NEAR_BITS) << (256 - NEAR_BITS) | net.rng.getrandbits(256 - NEAR_BITS)
            stands = near if number < count else net.rng.getrandbits(256)
            gang.append(net.add(Contact(shell.peer, stands, shell.addresses, shell.network)))
        for host in gang:
            host.answer = say(host, gang)
            net.join(host, [self.one().contact for _ in range(3)])
        net.run(net.now + 30)
        return gang

    def disband(self, gang: Sequence[Host]) -> None:
        for host in gang:
            self.net.kill(host)
        self.net.run(self.net.now + 5)

    def found(self, key: str, config: LookupConfig) -> tuple[int, int, int]:
        """Of GETTERS random peers how many get the right record, how many a forged one, how many a proof that there is none."""
        right = forged = denied = 0

        def ended(done: Done, value: bytes | None) -> None:
            nonlocal right, forged, denied
            right += value == RIGHT
            forged += value == FORGED
            denied += done.verdict is Verdict.ABSENT

        for _ in range(GETTERS):
            self.net.get(self.one(), key, ended, config)
        self.net.run(self.net.now + 40)
        return right, forged, denied


def silent(net: Network) -> Script:
    """Routes as everybody does, takes what is stored, and has nothing."""

    def say(host: Host, gang: list[Host]) -> Said:
        def answer(question: Question, asker: Contact) -> Answer | None:
            if isinstance(question, PutValue | AddProvider | Ping):
                return Answer()
            return Answer(host.node.responder.answer(question, asker, net.now, net.wall).closer)

        return answer

    return say


def lying(net: Network) -> Script:
    """Knows nobody but its gang, takes what is stored, and answers with a record that nobody signed."""

    def say(host: Host, gang: list[Host]) -> Said:
        def answer(question: Question, asker: Contact) -> Answer | None:
            if isinstance(question, PutValue | AddProvider | Ping):
                return Answer()
            place = place_of(question.name)
            others = sorted((other.contact for other in gang if other is not host), key=lambda c: c.place ^ place)
            return Answer(tuple(others[:20]), FORGED if isinstance(question, GetValue) else None)

        return answer

    return say


def hide(mesh: Mesh, say: Callable[[Network], Script], name: str, gangs: Sequence[int]) -> Figures:
    """A gang of each size around a key, then a record is stored under it and looked for: by our lookups and by plain ones."""
    right = {False: 0, True: 0}
    forged = denied = asked = 0
    for count in gangs:
        for plain in (False, True):
            key = f"/swarmd/offer/{name}-{count}-{plain}"
            gang = mesh.gang(place_of(key.encode()), count, say(mesh.net))
            mesh.net.plain = plain
            mesh.net.put(mesh.one(), key, RIGHT)
            mesh.net.run(mesh.net.now + 20)
            got, false, absent = mesh.found(key, PROTECTED)
            mesh.net.plain = False
            right[plain] += got
            forged += false
            denied += 0 if plain else absent
            asked += GETTERS
            mesh.disband(gang)
    lookups = len(gangs) * GETTERS
    return {
        f"{name} not found, %": 100 * (1 - right[False] / lookups),
        f"{name} not found by plain Kademlia, %": 100 * (1 - right[True] / lookups),
        f"{name} forged records accepted": float(forged),
        f"{name} called absent, %": 100 * denied / lookups,
    }


def d1_hide(mesh: Mesh, gangs: Sequence[int] = GANGS) -> Figures:
    """Sybils around a key route as all do, and keep nothing."""
    return hide(mesh, silent, "D1", gangs)


def d2_lie(mesh: Mesh, gangs: Sequence[int] = GANGS) -> Figures:
    """Sybils around a key answer with each other and with forged records; then a tenth of the mesh does so too."""
    figures = hide(mesh, lying, "D2", gangs)
    traitors = mesh.net.rng.sample(mesh.honest, len(mesh.honest) // 10)
    key = "/swarmd/offer/D2-traitors"
    gang = mesh.gang(place_of(key.encode()), gangs[-1], lying(mesh.net))
    loyal = [host for host in mesh.honest if host not in traitors]
    for host in traitors:
        host.answer = lying(mesh.net)(host, gang)
    everybody, mesh.honest = mesh.honest, loyal
    mesh.net.put(mesh.one(), key, RIGHT)
    mesh.net.run(mesh.net.now + 20)
    right, forged, _ = mesh.found(key, PROTECTED)
    mesh.honest = everybody
    for host in traitors:
        host.answer = None
    mesh.disband(gang)
    figures["D2 not found, a tenth of the mesh lying too, %"] = 100 * (1 - right / GETTERS)
    figures["D2 forged records accepted"] += forged
    return figures


def d3_squat(mesh: Mesh) -> Figures:
    """Two hundred strangers name themselves providers first, half of them from one block; then an honest peer does."""
    net, name = mesh.net, provider_name(model_key("squatted"))
    block = ".".join(random_ip(net.rng).split(".")[:2])
    strangers = [peer_at(random_ip(net.rng) if n % 2 else f"{block}.{n}.{n + 1}", net.rng) for n in range(200)]
    squatters = [net.add(contact) for contact in strangers]
    for squatter in squatters:
        squatter.answer = lambda question, asker: None
        for holder in sorted(mesh.honest, key=lambda host: host.contact.place ^ place_of(name))[:30]:
            net.ask(squatter, holder.contact, AddProvider(name, squatter.contact.addresses), lambda _: None)
    net.run(net.now + 10)
    honest = mesh.one()
    told: list[int] = []
    net.provide(honest, name, told.append)
    net.run(net.now + 30, lambda: bool(told))
    waits, placed = list[float](), [host for host in mesh.honest if honest.contact in host.node.providers.get(name, net.now)]
    for _ in range(GETTERS):
        begun = net.now

        def ended(done: Done, providers: Providers, begun: float = begun) -> None:
            waits.append(net.now - begun if honest.contact.peer in providers.found else 60.0)

        net.find(net.rng.choice([host for host in mesh.honest if host is not honest]), name, ended, FIND)
    net.run(net.now + 30)
    shares = [sum(c.addresses[0].startswith(f"/ip4/{block}.") for c in h.node.providers.get(name, net.now)) for h in placed]
    mesh.disband(squatters)
    return {"D3 seconds to the honest provider": max(waits), "D3 places of one block in an answer": float(max(shares, default=0))}


KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)]
NAMES = [peer_id_of(public_bytes(key)) for key in KEYS]


def _offer(issuer: int, epoch: int, version: int, start: int, withdrawn: bool) -> bytes:
    fields = (NAMES[issuer], epoch, version, "m", "cd" * 32, "llama.cpp", "b1", "compact", 2048, 1, ("/ip4/10.0.0.1/tcp/1",))
    return sign_offer(Offer(*fields, start, start + LIFETIME_MS, withdrawn), KEYS[issuer]).raw  # type: ignore[arg-type]


def d4_rollback(seed: int, orders: int = 100_000) -> Figures:
    """Old, new, withdrawn, expired, future, foreign and damaged offers in random orders: what is held never goes back."""
    rng, hour = Random(seed), LIFETIME_MS
    pool = [
        _offer(0, e, v, WALL + s * hour // 2, w) for e in (1, 2, 3) for v in (0, 1) for s in (-3, 0, 1) for w in (False, True)
    ]
    pool += [_offer(1, 9, 9, WALL, False), pool[0][:-1] + bytes([pool[0][-1] ^ 1]), b"", b"\xc0", pool[5][:50]]
    key = offer_key(PeerId(NAMES[0]))
    seen: dict[tuple[bytes, int], Opened | RemoteError] = {}

    def opened(name: str, value: bytes, wall: int) -> Opened:
        if (value, wall) not in seen:
            try:
                seen[value, wall] = open_for_store(name, value, wall)
            except RemoteError as error:
                seen[value, wall] = error
        found = seen[value, wall]
        if isinstance(found, RemoteError):
            raise found
        return found

    senders = [peer_at(random_ip(rng), rng) for _ in range(20)]
    regressions = done = 0
    while done < orders:
        store, best, wall = RecordStore(0, opened), (-1, -1, b""), WALL
        for _ in range(200):
            done += 1
            wall += rng.choice((0, 0, 0, 0, 0, 0, 0, hour // 8))
            with suppress(RemoteError):
                store.put(key.encode(), rng.choice(pool), rng.choice(senders), wall)
            if not rng.randrange(8):
                store.expire(wall)
            held = store.get(key.encode(), wall)
            if held is not None:
                order = opened(key, held, wall).order
                regressions += order < best
                best = order
    return {"D4 regressions": float(regressions), "D4 puts tried": float(done)}


def d5_flood(seed: int, puts: int = 100_000) -> Figures:
    """A hundred thousand records of 8 KiB by ten peers, under keys ground to be near: what is held, and what it cost others."""
    rng = Random(seed)
    me, checked = rng.getrandbits(256), 0

    def opened(key: str, value: bytes, wall: int) -> Opened:
        nonlocal checked
        checked += 1
        return open_versioned(key, value, wall)

    store = RecordStore(me, opened)
    store.put_own("/swarmd/offer/own", value_of(1), WALL)
    senders = [peer_at(random_ip(rng), rng) for _ in range(150)]
    for number in range(3_000):
        store.put(b"/swarmd/offer/honest-%d" % number, value_of(1, "x" * 560), senders[number % 150], WALL)
    store.close_bits = 6
    close = [name for name in store.names() if shared_bits(me, place_of(name)) >= 6]
    before, checked = set(close), 0
    flooders = [peer_at(random_ip(rng), rng) for _ in range(10)]
    value = value_of(1, "x" * 8_000)
    for number in range(puts):
        try:
            store.put(b"/swarmd/offer/flood-%d" % number, value, flooders[number % 10], WALL)
        except RemoteError:
            continue
    held = [sum(b"flood" in name for name in store.names())]
    lost = len(before - set(store.names())) + (b"/swarmd/offer/own" not in store.names())
    return {
        "D5 MiB held": store.size / 2**20,
        "D5 records of one peer": held[0] / 10,
        "D5 own and close records lost": float(lost),
        "D5 signatures checked for 100,000": float(checked),
    }


def d6_poison(mesh: Mesh, victims: int = 10, sybils: int = 30) -> Figures:
    """A peer restarts; of what it knows nine tenths are hostile, half of these next to its own id, and three are anchors."""
    net, late = mesh.net, 0
    place = net.rng.getrandbits(256)
    gang = mesh.gang(place, sybils, lying(net), spread=sybils)
    key = "/swarmd/offer/d6"
    net.put(mesh.one(), key, RIGHT)
    net.run(net.now + 20)
    for _ in range(victims):
        shell = peer_at(random_ip(net.rng), net.rng)
        near = place ^ net.rng.getrandbits(240)
        victim = net.add(Contact(shell.peer, near, shell.addresses, shell.network))
        cache = PeerCache()
        for host in net.rng.sample(mesh.honest, 3):
            cache = cache.seen(host.contact.peer, host.contact.addresses, WALL - 9_000_000).seen(host.contact.peer, (), WALL - 1)
        for host in net.rng.sample(gang, 27):
            cache = cache.seen(host.contact.peer, host.contact.addresses, WALL - 1_000)
        listed = decode_cache(cache.encode()).ordered()
        places = {host.contact.peer: host.contact for host in (*mesh.honest, *gang)}
        for start in range(0, len(listed), DIALS):
            net.join(victim, [places[PeerId(entry.peer)] for entry in listed[start : start + DIALS]])
            net.run(net.now + 0.5)
        late += _joined(mesh, victim, key) > 30
        net.kill(victim)
    mesh.disband(gang)
    return {"D6 no honest mesh in 30 s, %": 100 * late / victims}


def d7_bootstraps_gone(mesh: Mesh, tries: int = 10) -> Figures:
    """No bootstrap answers; four of five peers in the cache are gone too. And with all of them gone, how soon that is said."""
    net, late, slow = mesh.net, 0, 0.0
    key = "/swarmd/offer/d7"
    net.put(mesh.one(), key, RIGHT)
    net.run(net.now + 20)
    for _ in range(tries):
        gone = [peer_at(random_ip(net.rng), net.rng) for _ in range(40)]
        cached = [*gone, *(host.contact for host in net.rng.sample(mesh.honest, 10))]
        net.rng.shuffle(cached)
        newcomer = net.add()
        net.join(newcomer, cached)
        late += _joined(mesh, newcomer, key) > 30
        net.kill(newcomer)
        alone, begun, said = net.add(), net.now, list[float]()
        net.join(alone, gone)
        net.get(alone, key, lambda done, value: said.append(net.now) if done.verdict is Verdict.FAILED else None)  # noqa: B023
        net.run(net.now + 30)
        slow = max(slow, (said[0] if said else 60.0 + begun) - begun)
        net.kill(alone)
    return {"D7 not joined from the cache in 30 s, %": 100 * late / tries, "D7 seconds until it says so": slow}


def _joined(mesh: Mesh, host: Host, key: str) -> float:
    """Seconds until a peer that just started finds an honest record; 60 where it does not in 40 s."""
    net, begun, found = mesh.net, mesh.net.now, list[float]()

    def ended(done: Done, value: bytes | None) -> None:
        if value == RIGHT:
            found.append(net.now - begun)
        elif host.alive:
            net.at(0.5, again)

    def again() -> None:
        if host.alive and not found and net.now < begun + 40:
            net.get(host, key, ended)

    net.at(0.5, again)
    net.run(begun + 41, lambda: bool(found))
    return found[0] if found else 60.0


def play(seed: int, peers: int = PEERS, only: str = "") -> Figures:
    """Every attack on one mesh, one after the other."""
    figures: Figures = {}
    mesh = Mesh.grown(seed, peers)
    for name, attack in (("D3", d3_squat), ("D1", d1_hide), ("D2", d2_lie), ("D6", d6_poison), ("D7", d7_bootstraps_gone)):
        if only in name:
            figures |= attack(mesh)
    if only in "D4":
        figures |= d4_rollback(seed)
    if only in "D5":
        figures |= d5_flood(seed)
    return figures


TARGETS: dict[str, tuple[float, str]] = {
    "D1 not found, %": (1.0, "mean"),
    "D1 forged records accepted": (0.0, "worst"),
    "D2 not found, %": (5.0, "mean"),
    "D2 forged records accepted": (0.0, "worst"),
    "D3 seconds to the honest provider": (5.0, "worst"),
    "D4 regressions": (0.0, "worst"),
    "D5 MiB held": (32.0, "worst"),
    "D5 records of one peer": (32.0, "worst"),
    "D5 own and close records lost": (0.0, "worst"),
    "D6 no honest mesh in 30 s, %": (1.0, "mean"),
    "D7 not joined from the cache in 30 s, %": (1.0, "mean"),
    "D7 seconds until it says so": (30.0, "worst"),
}
"""The most that a figure may be, of its worst seed or of the mean over all: the threat table's, read as what is missing."""
