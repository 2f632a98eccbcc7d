"""One lookup against peers that are played here: honest, dead, lying, crowded. What it asks, how it ends, what it costs."""

from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from dht.contacts import Contact, contact_of
from dht.lookup import Lookup
from dht.lookup_events import Answered, Ask, Begin, Done, Failed, LookupConfig, Stop, Tick, Verdict, WakeAt
from dht.lookup_paths import NARROW
from protocol.wire.ids import peer_id_of

ME = peer_id_of(bytes(32))
RNG = Random(3)


def peers(count: int, ips: Callable[[int], str] = lambda n: f"{11 + n % 70}.{n % 250}.{n % 200}.1") -> list[Contact]:
    return [contact_of(peer_id_of(RNG.randbytes(32)), (f"/ip4/{ips(n)}/tcp/1",)) for n in range(count)]


def nearest(contacts: list[Contact], place: int, count: int = 20) -> tuple[Contact, ...]:
    return tuple(sorted(contacts, key=lambda c: c.place ^ place)[:count])


class World:
    """Everybody knows the nearest of everybody, unless `says` has another answer; `dead` never answer, `holds` is useful."""

    def __init__(self, mesh: list[Contact], config: LookupConfig, region_bits: int = 0) -> None:
        self.mesh = mesh
        self.lookup = Lookup(ME, RNG.getrandbits(256), region_bits, Random(1), config)
        self.dead: set[str] = set()
        self.holds: set[str] = set()
        self.says: dict[str, tuple[Contact, ...]] = {}
        self.asked: list[Contact] = []
        self.now = 0.0

    def run(self, starts: list[Contact]) -> Done:
        queue: list[object] = list(self.lookup.handle(Begin(tuple(starts)), self.now))
        wake = None
        while True:
            self.now += 0.01
            if not queue:
                assert wake is not None, "it waits for nothing"
                self.now, wake = wake, None
                queue += self.lookup.handle(Tick(), self.now)
                continue
            match queue.pop(0):
                case Done() as done:
                    return done
                case WakeAt(time):
                    wake = time
                case Ask(contact, point):
                    if point is None:
                        assert contact not in self.asked, "nobody is asked the same twice"
                        self.asked.append(contact)
                    queue += self.lookup.handle(self.reply(contact, point), self.now)

    def reply(self, contact: Contact, point: bytes | None) -> Answered | Failed:
        if contact.peer in self.dead:
            return Failed(contact.peer)
        closer = self.says.get(contact.peer) or nearest(self.mesh, self.lookup.place)
        return Answered(contact.peer, closer, point is None and contact.peer in self.holds)


def test_the_closest_answer_and_all_paths_agree() -> None:
    world = World(peers(200), LookupConfig())
    done = world.run(world.mesh[:20])
    assert done.closest == nearest(world.mesh, world.lookup.place)
    assert (done.verdict, done.agreeing, done.paths, done.failed) == (Verdict.FOUND, 4, 4, 0)


def test_enough_answers_on_two_paths_end_it_early() -> None:
    world = World(peers(200), LookupConfig(answers=4))
    world.holds = {c.peer for c in nearest(world.mesh, world.lookup.place)}
    done = world.run(world.mesh[:20])
    assert done.verdict is Verdict.FOUND
    assert done.asked < 24
    useful = [step for step in world.lookup.steps() if step.useful]
    assert len(useful) >= 4
    assert len({step.path for step in useful}) >= 2


def test_of_those_that_should_have_it_one_more_is_asked_than_are_wanted_until_they_are_late() -> None:
    world = World(peers(60), LookupConfig(answers=4))
    begun = [e for e in world.lookup.handle(Begin(nearest(world.mesh, world.lookup.place)), 0.0) if isinstance(e, Ask)]
    assert len(begun) == 5
    assert [e for e in world.lookup.handle(Tick(), 0.1) if isinstance(e, Ask)] == []
    late = [e for e in world.lookup.handle(Tick(), 0.2) if isinstance(e, Ask)]
    assert len(late) == 3, "each path has two under way at most"
    for ask in begun[:3]:
        assert not any(isinstance(e, Ask) for e in world.lookup.handle(Answered(ask.contact.peer, (), True), 0.21))
    (done,) = world.lookup.handle(Answered(late[0].contact.peer, (), True), 0.22)
    assert isinstance(done, Done)
    assert done.asked == 8


def test_what_is_not_there_is_absent_and_what_cannot_be_asked_is_a_failure() -> None:
    world = World(peers(60), LookupConfig(answers=4))
    assert world.run(world.mesh[:8]).verdict is Verdict.ABSENT
    dead = World(peers(60), LookupConfig(answers=4))
    dead.dead = {c.peer for c in dead.mesh}
    done = dead.run(dead.mesh[:8])
    assert (done.verdict, done.reason) == (Verdict.FAILED, "nobody answered")
    alone = World([], LookupConfig(answers=4)).run([])
    assert (alone.verdict, alone.reason) == (Verdict.FAILED, "there is nobody to ask")


def test_stopped_in_time_it_is_no_proof_of_absence() -> None:
    world = World(peers(60), LookupConfig(answers=4))
    world.lookup.handle(Begin(tuple(world.mesh[:8])), 0.0)
    (done,) = world.lookup.handle(Stop(), 1.0)
    assert isinstance(done, Done)
    assert done.verdict is Verdict.FAILED
    assert world.lookup.handle(Tick(), 2.0) == []


def test_dead_peers_cost_their_path_a_moment_and_not_the_lookup() -> None:
    world = World(peers(200), LookupConfig())
    world.dead = {c.peer for c in RNG.sample(world.mesh, 80)}
    done = world.run(world.mesh[:20])
    living = [c for c in world.mesh if c.peer not in world.dead]
    assert done.closest[:8] == nearest(living, world.lookup.place, 8)


def test_a_silent_peer_holds_a_path_up_for_half_a_second() -> None:
    world = World(peers(40), LookupConfig(paths=1, parallel=1))
    begun = world.lookup.handle(Begin(tuple(world.mesh[:3])), 0.0)
    assert [type(effect) for effect in begun] == [Ask, WakeAt]
    assert [e for e in world.lookup.handle(Tick(), 0.4) if isinstance(e, Ask)] == []
    assert [type(e) for e in world.lookup.handle(Tick(), 0.6)] == [Ask, WakeAt]


def test_a_liar_captures_its_own_path_alone() -> None:
    gang = peers(40)
    world = World(peers(200), LookupConfig(answers=1, answer_paths=1))
    ring = nearest(gang, world.lookup.place)
    for liar in gang:
        world.says[liar.peer] = ring
    goal = nearest(world.mesh, world.lookup.place, 1)[0]
    world.holds = {goal.peer}
    starts = sorted([gang[0], *world.mesh[:7]], key=lambda c: c.place ^ world.lookup.place)
    assert world.run(starts).verdict is Verdict.FOUND


def test_fakes_that_do_not_answer_are_believed_less_and_less() -> None:
    world = World(peers(200), LookupConfig(queries=400))
    liar = world.mesh[0]
    world.says[liar.peer] = tuple(
        Contact(c.peer, world.lookup.place ^ RNG.getrandbits(200), c.addresses, c.network) for c in peers(2000)
    )
    world.dead = {c.peer for c in world.says[liar.peer]}
    done = world.run(world.mesh[:20])
    assert done.closest == nearest(world.mesh, world.lookup.place)
    assert done.failed <= 20, "one answer is read for twenty, and given up after a few"


def test_one_block_of_addresses_does_not_fill_the_nearest() -> None:
    world = World(peers(100), LookupConfig())
    crowd = [
        Contact(c.peer, world.lookup.place ^ n, c.addresses, c.network) for n, c in enumerate(peers(60, lambda n: "8.8.8.8"), 1)
    ]
    world.says = {c.peer: (*crowd[:3], *nearest(world.mesh, world.lookup.place, 17)) for c in world.mesh}  # as their tables allow
    world.mesh += crowd
    done = world.run(world.mesh[:20])
    paths = [path.known for path in world.lookup._paths]
    assert paths
    early = world.asked[:24]
    assert sum(c in crowd for c in early) <= NARROW * len(paths)
    assert set(nearest(world.mesh[:100], world.lookup.place, 17)) <= set(done.region)


def test_questions_are_bounded_whatever_strangers_say() -> None:
    world = World(peers(20), LookupConfig(queries=50))

    def endless(contact: Contact, point: bytes | None) -> Answered:
        fakes = peers(20)
        return Answered(
            contact.peer, tuple(Contact(c.peer, world.lookup.place ^ RNG.getrandbits(100), c.addresses) for c in fakes)
        )

    world.reply = endless  # type: ignore[method-assign]
    done = world.run(world.mesh)
    assert done.asked <= 50
    assert done.verdict is Verdict.FAILED


def test_the_region_is_asked_from_its_other_parts_when_nothing_was_found() -> None:
    world = World(peers(640), LookupConfig(answers=1, answer_paths=1), region_bits=5)
    hidden = nearest(world.mesh, world.lookup.place)[7]
    known = [c for c in world.mesh if c is not hidden]
    place = world.lookup.place
    for contact in world.mesh:
        world.says[contact.peer] = nearest(known, place)
    world.holds = {hidden.peer}
    honest = world.reply

    def reply(contact: Contact, point: bytes | None) -> Answered | Failed:
        if point is not None:  # whoever is asked for another part names who stands there
            return Answered(contact.peer, (hidden,))
        return honest(contact, point)

    world.reply = reply  # type: ignore[method-assign]
    done = world.run(known[:20])
    assert (done.verdict, done.scanned) == (Verdict.FOUND, True)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(seed=st.integers(0, 10_000), dead=st.floats(0, 1), liars=st.floats(0, 1), bits=st.integers(0, 4))
def test_it_always_ends_within_its_bounds(seed: int, dead: float, liars: float, bits: int) -> None:
    rng = Random(seed)
    world = World(peers(120), LookupConfig(answers=rng.choice([0, 4])), region_bits=bits)
    world.dead = {c.peer for c in world.mesh if rng.random() < dead}
    world.holds = {c.peer for c in world.mesh if rng.random() < 0.1}
    for contact in world.mesh:
        if rng.random() < liars:
            world.says[contact.peer] = tuple(rng.sample(world.mesh, 20))
    done = world.run(rng.sample(world.mesh, rng.randrange(0, 21)))
    assert done.asked <= world.lookup.config.queries
    assert not {c.peer for c in done.closest} & world.dead
    assert (done.verdict is Verdict.FOUND) or done.reason or world.lookup.config.answers
