"""UDP punches under a virtual clock, through simulated NATs with seeded loss: who meets whom, in which way, at what cost."""

import heapq
import itertools
from random import Random

import pytest

from nat.datagrams import Ack, Ask, Probe, decode, encode
from nat.observed import Mapping
from nat.port_count import AHEAD, PortCount
from nat.udp_punch import Found, OpenSockets, Over, PunchOptions, Send, UdpPunch, Way, way_of

TOKEN = bytes(range(16))
SECRETS = (b"left's own secret", b"right's own secret")
INITIAL = b"QUIC"
"""Stands for a client's first packet, which shows its ticket; the pipe itself has tests of its own."""

LEFT, RIGHT = "203.0.113.1", "203.0.113.2"
PORT = 4001
RTT = 0.04
HEADERS = 28

MAPPINGS = {
    "open": Mapping.NONE, "full": Mapping.PORT_PRESERVING, "addr": Mapping.PORT_PRESERVING, "port": Mapping.PORT_PRESERVING,
    "portnp": Mapping.ENDPOINT_INDEPENDENT, "sym": Mapping.SYMMETRIC, "symseq": Mapping.PREDICTABLE,
}  # fmt: skip


class Nat:
    """One NAT: maps (socket, destination) to an outside port and filters what comes back (RFC 4787)."""

    def __init__(self, kind, rng):
        self.kind = kind
        self.rng = rng
        self.outside = {}
        self.sent = {}
        self.next = 40000

    def port_of(self, socket, target):
        key = (socket, target) if self.kind.startswith("sym") else socket
        if key not in self.outside:
            if self.kind in ("open", "full", "addr", "port"):
                self.outside[key] = PORT if socket == 0 else 50000 + socket
            elif self.kind == "symseq":
                self.next += 1
                self.outside[key] = self.next
            else:
                self.outside[key] = self.rng.randrange(1024, 65536)
        self.sent.setdefault(self.outside[key], {})[target] = socket
        return self.outside[key]

    def socket_behind(self, port, source):
        """The inside socket that a packet from `source` to outside `port` reaches, None where it is filtered."""
        if self.kind == "open":
            return 0 if port == PORT else None
        mapped = self.sent.get(port)
        if not mapped:
            return None
        if self.kind == "full":
            return next(iter(mapped.values()))
        if self.kind == "addr":
            return next((socket for target, socket in mapped.items() if target[0] == source[0]), None)
        return mapped.get(source)


class Side:
    def __init__(self, host, kind, seed):
        self.host, self.nat = host, Nat(kind, Random(seed))
        self.found = None
        self.over = False
        self.sockets = 1
        self.sent = 0


class Network:
    """Two sides, the virtual clock, and what is on its way between them."""

    def __init__(self, left, right, seed, loss, birthday, elsewhere=(0, 0)):
        self.rng = Random(seed)
        self.loss = loss
        self.sides = [Side(LEFT, left, seed), Side(RIGHT, right, seed + 1)]
        self.flying = []
        self.order = itertools.count()
        observed = [(side.host, side.nat.port_of(0, ("198.51.100.1", 4001))) for side in self.sides]
        for index, side in enumerate(self.sides):
            other = self.sides[1 - index]
            side.way = way_of(MAPPINGS[side.nat.kind], MAPPINGS[other.nat.kind], birthday, index == 0)
            targets = (observed[1 - index],)
            if side.way in (Way.WALK, Way.MEET):
                ahead = tuple((other.host, port) for port in PortCount(other.nat.next + 1, 1).ahead())
                targets = ahead if side.way is Way.WALK else ahead[-1:]
            side.machine = UdpPunch(index == 0, (TOKEN, SECRETS[index]), side.way, targets, Random(seed + index), PunchOptions())
        for side, taken in zip(self.sides, elsewhere, strict=True):
            side.nat.next += taken

    def perform(self, index, effects, now):
        side = self.sides[index]
        for effect in effects:
            match effect:
                case OpenSockets(count):
                    side.sockets = count
                case Found(socket, host, port, ticket):
                    side.found = (now, socket, host, port)
                    source = (side.host, side.nat.port_of(socket, (host, port)))
                    heapq.heappush(self.flying, (now + RTT / 2, next(self.order), 1 - index, source, port, INITIAL + ticket))
                case Over():
                    side.over = True
                case Send(socket, host, port, payload):
                    side.sent += 1
                    source = (side.host, side.nat.port_of(socket, (host, port)))
                    if self.rng.random() >= self.loss:
                        heapq.heappush(self.flying, (now + RTT / 2, next(self.order), 1 - index, source, port, payload))

    def turn(self, now):
        while self.flying and self.flying[0][0] <= now:
            _, _, index, source, port, payload = heapq.heappop(self.flying)
            socket = self.sides[index].nat.socket_behind(port, source)
            if socket is not None and payload.startswith(INITIAL):
                side = self.sides[index]
                if payload == INITIAL + side.machine.proof_of(socket, *source):
                    side.found = side.found or (now, socket, *source)
                    side.machine.settle()
            elif socket is not None:
                self.perform(index, self.sides[index].machine.heard(socket, *source, payload, now), now)
        for index, side in enumerate(self.sides):
            if side.machine.wake <= now:
                self.perform(index, side.machine.tick(now), now)

    @property
    def met(self):
        return all(side.found for side in self.sides)


def punch(left, right, seed=1, loss=0.0, birthday=True, witness=True, until=8.0, elsewhere=(0, 0)):
    """Run a punch between NATs of two kinds; returns both sides and the time at which both had found a path."""
    network = Network(left, right, seed, loss, birthday, elsewhere)
    for index, side in enumerate(network.sides):
        network.perform(index, side.machine.start(0.0), 0.0)
        if witness:
            side.machine.allow_many(0.08)
    now = 0.0
    while now < until and not network.met and not all(side.over for side in network.sides):
        due = min([side.machine.wake for side in network.sides] + [entry[0] for entry in network.flying[:1]])
        now = max(now, due)
        network.turn(now)
    return network.sides, (max(side.found[0] for side in network.sides) if network.met else None)


CONES = ["open", "full", "addr", "port", "portnp"]


@pytest.mark.parametrize(("left", "right"), [*itertools.combinations_with_replacement(CONES, 2)])
def test_ports_that_are_known_meet_at_once(left, right):
    sides, took = punch(left, right)
    assert took is not None
    assert took <= 0.3, "knocks every 100 ms, and an answer"
    assert max(side.sent for side in sides) < 20


@pytest.mark.parametrize("easy", CONES)
@pytest.mark.parametrize("hard", ["sym", "symseq"])
@pytest.mark.parametrize("seed", range(4))
def test_a_random_port_is_found_by_its_birthday(easy, hard, seed):
    for order in ((easy, hard), (hard, easy)):
        sides, took = punch(*order, seed=seed)
        assert took is not None, order
        assert took < 3.0
        assert max(side.machine.probes for side in sides) <= 1024
        assert max(side.sockets for side in sides) in (1, 256)


def test_98_of_100_birthdays_meet():
    met = sum(punch("port", "sym", seed=seed)[1] is not None for seed in range(100, 160))
    assert met >= 57, "expected: 1 - exp(-256 * 1024 / 65536) = 98%"


@pytest.mark.parametrize("elsewhere", [(0, 0), (3, 0), (0, 3), (1, 1), (10, 5), (7, 16), (23, 0), (0, 23)])
def test_two_nats_that_count_meet_although_both_have_counted_on(elsewhere):
    sides, took = punch("symseq", "symseq", elsewhere=elsewhere)
    assert took is not None
    assert took <= 0.3
    assert [side.way for side in sides] == [Way.MEET, Way.WALK]
    assert max(side.sent for side in sides) <= 3 * AHEAD


def test_nats_that_have_counted_too_far_do_not_meet():
    sides, took = punch("symseq", "symseq", elsewhere=(12, 12))
    assert took is None
    assert max(side.sent for side in sides) <= 24 * PunchOptions().knocks


@pytest.mark.parametrize("seed", range(8))
def test_a_count_survives_loss(seed):
    assert punch("symseq", "symseq", seed=seed, loss=0.2, elsewhere=(2, 4))[1] is not None


@pytest.mark.parametrize(("left", "right"), [("sym", "sym"), ("sym", "symseq")])
def test_two_random_ports_are_not_tried(left, right):
    sides, took = punch(left, right, until=1.0)
    assert took is None
    assert {side.way for side in sides} == {Way.NONE}


@pytest.mark.parametrize("seed", range(5))
def test_loss_only_delays(seed):
    assert punch("port", "portnp", seed=seed, loss=0.2)[1] is not None
    assert punch("port", "sym", seed=seed, loss=0.05)[1] is not None


def test_birthdays_can_be_switched_off():
    sides, took = punch("port", "sym", birthday=False)
    assert took is None
    assert max(side.machine.probes for side in sides) == 0


def test_without_a_witness_no_ports_are_walked():
    sides, took = punch("symseq", "symseq", witness=False)
    assert took is None
    assert [side.sent for side in sides] == [0, 0]


def test_without_a_witness_nobody_is_flooded():
    sides, took = punch("port", "sym", witness=False)
    assert took is None
    assert all(side.over for side in sides)
    assert max(side.sent for side in sides) <= PunchOptions().knocks, "an address from which nothing came gets few packets"


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_transcript(seed):
    one, other = (punch("port", "sym", seed=seed, loss=0.1) for _ in range(2))
    assert one[1] == other[1]
    assert [side.sent for side in one[0]] == [side.sent for side in other[0]]


def machine(way=Way.PLAIN, starter=True):
    made = UdpPunch(starter, (TOKEN, SECRETS[0]), way, ((RIGHT, PORT),), Random(1), PunchOptions())
    made.start(0.0)
    return made


@pytest.mark.parametrize("starter", [True, False])
def test_a_probe_is_answered_once_by_less(starter):
    probe = Probe(TOKEN, not starter, bytes(range(8)))
    (answer,) = machine(starter=starter).heard(0, RIGHT, 5555, encode(probe), 0.1)
    assert (answer.host, answer.port) == (RIGHT, 5555)
    assert len(answer.payload) < len(encode(probe))
    said = decode(answer.payload)
    assert isinstance(said, Ack if starter else Probe)
    if starter:
        assert said.echo == probe.proof


def test_a_path_is_found_by_whoever_received_our_probe_there():
    ours = machine(starter=False)
    ticket, there = b"8 bytes.", ours.proof_of(0, RIGHT, PORT)
    for echo, port in ((bytes(8), PORT), (there, PORT + 1), (ours.proof_of(1, RIGHT, PORT), PORT)):
        assert ours.heard(0, RIGHT, port, encode(Ack(TOKEN, True, echo, ticket)), 0.1) == [], "forged, or from another address"
    assert ours.heard(0, RIGHT, PORT, encode(Ack(TOKEN, True, there, ticket)), 0.1) == [Found(0, RIGHT, PORT, ticket)]
    assert ours.heard(0, RIGHT, PORT, encode(Ack(TOKEN, True, there, ticket)), 0.1) == [], "once"


def test_a_target_may_be_written_in_another_way():
    ours = UdpPunch(False, (TOKEN, SECRETS[0]), Way.PLAIN, (("2600:0:0::1", PORT),), Random(1), PunchOptions())
    (probe,) = ours.start(0.0)
    ack = Ack(TOKEN, True, decode(probe.payload).proof, b"8 bytes.")
    assert ours.heard(0, "2600::1", PORT, encode(ack), 0.1) == [Found(0, "2600::1", PORT, b"8 bytes.")]


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"rubbish", encode(Probe(TOKEN, True, bytes(8))), encode(Probe(bytes(16), False, bytes(8))),
        encode(Ack(bytes(16), False, bytes(8), bytes(8))),
        encode(Ack(TOKEN, True, bytes(8), bytes(8))), encode(Ask(TOKEN)), encode(Probe(TOKEN, False, bytes(8)))[:-1],
    ],
    ids=["nothing", "rubbish", "our own echoed", "another session", "another session's ack", "our own ack", "a question", "cut"],
)  # fmt: skip
def test_what_is_not_of_this_session_changes_nothing(payload):
    assert machine().heard(0, RIGHT, PORT, payload, 0.1) == []


def test_acks_to_one_address_are_bounded():
    ours = machine()
    effects = [effect for _ in range(200) for effect in ours.heard(0, RIGHT, 7, encode(Probe(TOKEN, False, bytes(8))), 0.1)]
    assert len(effects) == PunchOptions().knocks
    many = [effect for port in range(1, 500) for effect in ours.heard(0, RIGHT, port, encode(Probe(TOKEN, False, bytes(8))), 0.1)]
    assert len(many) < PunchOptions().knocks**2


@pytest.mark.parametrize("starter", [True, False])
@pytest.mark.parametrize("way", [Way.PLAIN, Way.GUESS, Way.SPREAD, Way.WALK, Way.MEET])
def test_forged_sources_draw_less_than_they_cost(way, starter):
    """A peer of the session may forge the source of what it sends: whom it names gets fewer bytes than that peer sent."""
    options = PunchOptions()
    one = UdpPunch(starter, (TOKEN, SECRETS[0]), way, ((RIGHT, PORT),), Random(1), options)
    one.start(0.0)
    now, sent, drawn = 0.0, 0, 0
    victims = [f"198.51.100.{number}" for number in range(40)]
    forged = [encode(Probe(TOKEN, not starter, bytes(8))), encode(Ack(TOKEN, not starter, bytes(8), bytes(8)))]
    while now < options.lifetime:
        effects = []
        for victim, payload in itertools.product(victims, forged):
            if sent < 20_000:
                sent += HEADERS + len(payload)
                effects += one.heard(0, victim, 53, payload, now)
        now = max(now + 0.02, min(one.wake, now + 0.1))
        effects += one.tick(now)
        assert not any(isinstance(effect, Found) for effect in effects)
        drawn += sum(HEADERS + len(effect.payload) for effect in effects if isinstance(effect, Send) and effect.host in victims)
    assert sent >= 20_000
    assert 0 < drawn < sent


WAYS = [
    (Mapping.NONE, Mapping.NONE, Way.PLAIN), (Mapping.UNKNOWN, Mapping.PORT_PRESERVING, Way.PLAIN),
    (Mapping.SYMMETRIC, Mapping.ENDPOINT_INDEPENDENT, Way.SPREAD), (Mapping.NONE, Mapping.SYMMETRIC, Way.GUESS),
    (Mapping.PREDICTABLE, Mapping.PREDICTABLE, Way.MEET), (Mapping.PREDICTABLE, Mapping.SYMMETRIC, Way.NONE),
    (Mapping.SYMMETRIC, Mapping.SYMMETRIC, Way.NONE), (Mapping.PREDICTABLE, Mapping.PORT_PRESERVING, Way.SPREAD),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "way"), WAYS)
def test_the_way_follows_from_both_kinds(ours, theirs, way):
    assert way_of(ours, theirs, True, True) is way
    matching = {Way.SPREAD: Way.GUESS, Way.GUESS: Way.SPREAD, Way.MEET: Way.WALK}
    assert way_of(theirs, ours, True, False) is matching.get(way, way)


@pytest.mark.parametrize("witness", [False, True])
@pytest.mark.parametrize("way", [Way.PLAIN, Way.GUESS, Way.SPREAD, Way.WALK, Way.MEET])
def test_a_session_that_nobody_answers_sends_no_more_than_its_bound(way, witness):
    options = PunchOptions()
    targets = tuple((f"203.0.113.{number}", 4001) for number in range(8))
    one = UdpPunch(True, (TOKEN, SECRETS[0]), way, targets, Random(1), options)
    effects, now = one.start(0.0), 0.0
    if witness:
        one.allow_many(0.0)
    while not any(isinstance(effect, Over) for effect in effects):
        now = max(now + 0.001, one.wake)
        effects += one.tick(now)
    sent = [effect for effect in effects if isinstance(effect, Send)]
    allowed = options.unheard + (options.guesses if witness else 0)
    fewest = 0 if way in (Way.WALK, Way.MEET) and not witness else 24
    assert fewest <= len(sent) == one.blind <= allowed
    assert sum(28 + len(effect.payload) for effect in sent) <= 70 * allowed, "with UDP and IP headers: 10 KB, 82 KB by a witness"
    others = [effect for effect in sent if effect.host != targets[0][0]]
    assert len(others) <= 7 * options.knocks, "only whom a witness saw gets more"
