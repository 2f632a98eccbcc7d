"""Port mappings under a virtual clock: methods in turn, renewal at half, proof before use, and no use behind a second NAT."""

import itertools

import pytest

from nat.natpmp import Protocol
from nat.port_mapping import (
    Ask,
    Granted,
    MappingOptions,
    Method,
    PortMappings,
    Prove,
    Refused,
    Release,
    State,
    leads_nowhere,
)

TCP, UDP = Protocol.TCP, Protocol.UDP
ALL = (Method.PCP, Method.NAT_PMP, Method.UPNP)
OUTSIDE = "44.1.1.21"


class Clock:
    """Runs the machine against a gateway of the test's own until a time, as a driver does."""

    def __init__(self, gateway, ports=None, methods=ALL):
        self.machine = PortMappings(ports or {TCP: 4711, UDP: 4711}, methods)
        self.gateway = gateway
        self.now = 0.0
        self.asked, self.released, self.proofs = [], [], 0

    def perform(self, effects):
        waiting = list(effects)
        while waiting:
            effect = waiting.pop(0)
            match effect:
                case Ask():
                    self.asked.append((self.now, effect))
                    waiting += self.machine.answered(effect, self.gateway(effect, self.now), self.now)
                case Release():
                    self.released.append((self.now, effect))
                case Prove():
                    self.proofs += 1

    def run(self, until):
        while self.machine.wake <= until:
            self.now = self.machine.wake
            self.perform(self.machine.tick(self.now))
        self.now = until

    def seen(self, *hosts):
        self.perform(self.machine.behind(hosts, self.now))


def grants(host=OUTSIDE, lifetime=3600, by=Method.PCP):
    def answer(ask, _now):
        return Granted(host, ask.external_port, lifetime) if ask.method is by else Refused("no answer in time")

    return answer


DECISIONS = {
    "public and as seen": (OUTSIDE, {OUTSIDE}, False),
    "public, nobody has told us": (OUTSIDE, set(), False),
    "one peer of two is wrong": (OUTSIDE, {OUTSIDE, "44.1.1.99"}, False),
    "not where peers see us": (OUTSIDE, {"44.1.1.99"}, True),
    "private": ("192.168.0.2", set(), True),
    "carrier-grade": ("100.64.3.2", {"44.1.1.21"}, True),
    "unspecified: the gateway has no line": ("0.0.0.0", set(), True),
    "loopback": ("127.0.0.1", set(), True),
    "no address": ("nonsense", set(), True),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_behind_a_second_nat_it_leads_nowhere(name):
    host, seen, wanted = DECISIONS[name]
    assert leads_nowhere(host, seen) is wanted


def test_nothing_is_asked_before_a_peer_sees_us_behind_a_nat():
    clock = Clock(grants())
    clock.run(10_000)
    assert clock.asked == []
    assert clock.machine.state is State.IDLE


@pytest.mark.parametrize("by", ALL)
def test_methods_are_tried_in_turn_and_udp_is_asked_by_the_one_that_granted(by):
    clock = Clock(grants(by=by))
    clock.seen(OUTSIDE)
    tried = [(ask.method, ask.protocol) for _, ask in clock.asked]
    assert tried == [*((method, TCP) for method in ALL[: ALL.index(by) + 1]), (by, UDP)]
    assert (clock.machine.state, clock.machine.method) == (State.UNPROVED, by)


def test_a_mapping_is_told_to_nobody_until_a_peer_came_in():
    clock = Clock(grants())
    clock.seen(OUTSIDE)
    assert clock.proofs >= 1
    assert clock.machine.to_prove(TCP) == 4711
    assert clock.machine.outside(TCP) is None
    clock.perform(clock.machine.judged(TCP, 4711, False))
    assert clock.machine.outside(TCP) is None
    clock.perform(clock.machine.judged(TCP, 1, True))
    assert clock.machine.outside(TCP) is None, "another port proves nothing of this one"
    clock.perform(clock.machine.judged(TCP, 4711, True))
    assert clock.machine.outside(TCP) == (OUTSIDE, 4711)
    assert clock.machine.outside(UDP) is None
    assert clock.machine.state is State.ACTIVE


def test_leases_are_renewed_at_half_and_keep_their_port_and_proof():
    clock = Clock(grants())
    clock.seen(OUTSIDE)
    clock.perform(clock.machine.judged(TCP, 4711, True))
    clock.run(10_000)
    assert [now for now, ask in clock.asked if ask.protocol is TCP] == [0, 1800, 3600, 5400, 7200, 9000]
    assert clock.machine.outside(TCP) == (OUTSIDE, 4711)
    assert clock.machine.ends() == 9000 + 3600


def test_a_shorter_lease_is_renewed_at_its_own_half():
    clock = Clock(grants(lifetime=120), {TCP: 4711})
    clock.seen(OUTSIDE)
    clock.run(200)
    assert [now for now, _ in clock.asked] == [0, 60, 120, 180]


def test_a_silent_gateway_is_asked_again_ever_sooner_and_then_from_the_start():
    clock = Clock(grants(), {TCP: 4711})
    clock.seen(OUTSIDE)
    clock.gateway = lambda *_: Refused("no answer in time")
    clock.run(3599)
    times = [now for now, _ in clock.asked]
    assert times[:4] == [0, 1800, 2700, 3150]
    assert all(later - earlier >= MappingOptions().shortest for earlier, later in itertools.pairwise(times))
    assert clock.machine.to_prove(TCP) == 4711, "it stands until it ends"
    clock.run(3600)
    assert clock.machine.state is State.NONE
    assert clock.machine.to_prove(TCP) is None
    clock.gateway = grants()
    clock.run(3600 + 900)
    assert clock.machine.state is State.UNPROVED


def test_another_port_at_a_renewal_has_to_be_proved_anew():
    clock = Clock(grants(), {TCP: 4711})
    clock.seen(OUTSIDE)
    clock.perform(clock.machine.judged(TCP, 4711, True))
    before = clock.proofs
    clock.gateway = lambda ask, _now: Granted(OUTSIDE, 5000, 3600)
    clock.run(1800)
    assert clock.machine.to_prove(TCP) == 5000
    assert clock.machine.outside(TCP) is None
    assert clock.proofs == before + 1


def test_a_mapping_that_no_longer_works_is_asked_for_again_at_once():
    clock = Clock(grants(), {TCP: 4711})
    clock.seen(OUTSIDE)
    clock.perform(clock.machine.judged(TCP, 4711, True))
    clock.perform(clock.machine.judged(TCP, 4711, False))
    assert len(clock.asked) == 2
    assert clock.machine.outside(TCP) is None


def test_no_gateway_is_asked_again_after_a_quarter_of_an_hour():
    clock = Clock(lambda *_: Refused("no answer in time"))
    clock.seen(OUTSIDE)
    assert (clock.machine.state, clock.machine.reason) == (State.NONE, "upnp: no answer in time")
    clock.run(899)
    assert len(clock.asked) == 3
    clock.run(900)
    assert len(clock.asked) == 6


@pytest.mark.parametrize(("host", "seen"), [("100.64.1.2", OUTSIDE), ("192.168.0.2", OUTSIDE), ("44.1.1.77", OUTSIDE)])
def test_behind_a_second_nat_a_mapping_is_given_back(host, seen):
    clock = Clock(grants(host))
    clock.seen(seen)
    assert clock.machine.state is State.DOUBLE_NAT
    assert clock.released == [(0, Release(Method.PCP, TCP, 4711, 4711))]
    assert clock.machine.to_prove(TCP) is None


def test_a_second_peer_may_clear_what_the_first_said():
    clock = Clock(grants())
    clock.seen("44.1.1.99")
    assert clock.machine.state is State.DOUBLE_NAT
    clock.seen("44.1.1.99", OUTSIDE)
    assert clock.machine.state is State.UNPROVED


def test_another_address_than_granted_gives_it_back():
    clock = Clock(grants())
    clock.seen(OUTSIDE)
    clock.perform(clock.machine.judged(TCP, 4711, True))
    clock.seen("44.1.1.99")
    assert clock.machine.state is State.DOUBLE_NAT
    assert clock.machine.outside(TCP) is None


def test_udp_may_be_refused_alone():
    clock = Clock(lambda ask, _: Granted(OUTSIDE, 4711, 3600) if ask.protocol is TCP else Refused("out of resources"))
    clock.seen(OUTSIDE)
    clock.run(4000)
    assert len([ask for _, ask in clock.asked if ask.protocol is UDP]) == 5, "every quarter of an hour"
    assert clock.machine.to_prove(TCP) == 4711
    assert clock.machine.to_prove(UDP) is None


def test_udp_that_was_refused_is_asked_for_again_after_a_quarter_of_an_hour():
    clock = Clock(lambda ask, _: Granted(OUTSIDE, 4711, 3600) if ask.protocol is TCP else Refused("out of resources"))
    clock.seen(OUTSIDE)
    clock.perform(clock.machine.judged(TCP, 4711, True))
    clock.gateway = grants()
    clock.run(900)
    assert clock.machine.to_prove(UDP) == 4711
    assert clock.machine.state is State.ACTIVE
    assert [now for now, ask in clock.asked if ask.protocol is UDP] == [0, 900]


def test_udp_whose_lease_ended_is_asked_for_again():
    clock = Clock(grants())
    clock.seen(OUTSIDE)
    clock.gateway = lambda ask, _: Granted(OUTSIDE, 4711, 3600) if ask.protocol is TCP else Refused("no answer in time")
    clock.run(3599)
    assert clock.machine.to_prove(UDP) == 4711, "it stands until it ends"
    clock.run(3600)
    assert clock.machine.to_prove(UDP) is None
    assert clock.machine.to_prove(TCP) == 4711
    clock.gateway = grants()
    clock.run(3600 + 900)
    assert clock.machine.to_prove(UDP) == 4711


def epochs(begun):
    return lambda ask, now: Granted(OUTSIDE, ask.external_port, 3600, round(now - begun))


def test_a_gateway_that_has_restarted_is_asked_for_all_that_it_lost():
    clock = Clock(epochs(-1000))
    clock.seen(OUTSIDE)
    clock.run(1799)
    assert len(clock.asked) == 2
    clock.gateway = epochs(1700)
    clock.perform(clock.machine.told_epoch(Method.PCP, 99, clock.now))
    assert [(now, ask.protocol) for now, ask in clock.asked[2:]] == [(1799, TCP), (1799, UDP)]
    clock.perform(clock.machine.told_epoch(Method.PCP, 99, clock.now))
    assert len(clock.asked) == 4, "the same word again says nothing new"


def test_a_lost_mapping_is_also_seen_in_the_answer_about_another():
    clock = Clock(epochs(-1000))
    clock.seen(OUTSIDE)
    clock.gateway = epochs(1000)
    clock.run(1700)
    clock.perform(clock.machine.answered(clock.asked[0][1], Granted(OUTSIDE, 4711, 3600, 700), clock.now))
    assert [(now, ask.protocol) for now, ask in clock.asked[2:]] == [(1700, UDP)]


def test_a_lost_mapping_is_also_seen_in_the_first_answer_about_another():
    clock = Clock(lambda ask, now: epochs(-1000)(ask, now) if ask.protocol is TCP else Refused("out of resources"))
    clock.seen(OUTSIDE)
    clock.gateway = epochs(800)
    clock.run(900)
    assert [(now, ask.protocol) for now, ask in clock.asked[2:]] == [(900, UDP), (900, TCP)]


@pytest.mark.parametrize(("elapsed", "seconds"), [(0, 1000), (1800, 2800), (1800, 2690), (1800, 2900), (60, 1055)])
def test_clocks_that_run_apart_are_no_restart(elapsed, seconds):
    clock = Clock(epochs(-1000), {TCP: 4711})
    clock.seen(OUTSIDE)
    assert clock.machine.told_epoch(Method.PCP, seconds, elapsed) == []
    assert clock.machine.told_epoch(Method.NAT_PMP, 0, elapsed) == [], "another clock"


def test_a_pcp_clock_far_ahead_is_another_gateways():
    clock = Clock(epochs(-1000), {TCP: 4711})
    clock.seen(OUTSIDE)
    assert [ask.protocol for ask in clock.machine.told_epoch(Method.PCP, 4000, 1800)] == [TCP]
    assert clock.machine.told_epoch(Method.PCP, 4060, 1860) == [], "it goes on from there"


def test_leaving_gives_everything_back():
    clock = Clock(grants())
    clock.seen(OUTSIDE)
    assert clock.machine.stop() == [Release(Method.PCP, TCP, 4711, 4711), Release(Method.PCP, UDP, 4711, 4711)]
    assert clock.machine.stop() == []


def test_without_a_port_or_a_method_there_is_nothing_to_ask():
    for machine in (PortMappings({}, ALL), PortMappings({TCP: 1}, ())):
        assert machine.behind({OUTSIDE}, 0.0) == []
        assert machine.state is State.NONE
