"""Observed addresses: belief takes two observers, and ports tell the kind of NAT."""

import pytest

from nat.observed import Filtering, Mapping, Observation, ObservedAddresses, ObservedOptions, filtering

OUTSIDE = "203.0.113.9"  # documentation range: stands for our address as the world sees it


def seen(*reports, options=None):
    """The state after (observer, observer's IP, address) reports, one a second."""
    state = ObservedAddresses(options or ObservedOptions())
    for time, (observer, host, address) in enumerate(reports):
        state = state.observe(Observation(observer, host, address, float(time)))
    return state


def at(port, host=OUTSIDE):
    return f"/ip4/{host}/tcp/{port}"


@pytest.mark.parametrize(
    ("reports", "believed"),
    [
        ([], ()),
        ([("a", "1.1.1.1", at(7))], ()),
        ([("a", "1.1.1.1", at(7)), ("b", "2.2.2.2", at(7))], (at(7),)),
        ([("a", "1.1.1.1", at(7)), ("b", "1.1.1.1", at(7))], ()),
        ([("a", "1.1.1.1", at(7)), ("a", "2.2.2.2", at(7))], ()),
        ([("a", "1.1.1.1", at(7)), ("b", "2.2.2.2", at(8))], ()),
        ([("a", "1.1.1.1", at(7)), ("b", "2.2.2.2", at(7)), ("a", "1.1.1.1", at(9))], ()),
        ([("a", "1.1.1.1", at(7) + "/p2p/X"), ("b", "2.2.2.2", at(7))], (at(7),)),
        ([("a", "1.1.1.1", "/ip4/127.0.0.1/tcp/7"), ("b", "2.2.2.2", "/ip4/127.0.0.1/tcp/7")], ()),
        ([("a", "1.1.1.1", "/ip4/0.0.0.0/tcp/7"), ("b", "2.2.2.2", "/ip4/0.0.0.0/tcp/7")], ()),
        ([("a", "1.1.1.1", "rubbish"), ("b", "2.2.2.2", "rubbish")], ()),
        ([("a", "1.1.1.1", "/dns/x.example/tcp/7"), ("b", "2.2.2.2", "/dns/x.example/tcp/7")], ()),
    ],
)
def test_belief_takes_two_peers_at_two_addresses(reports, believed):
    assert seen(*reports).believed(now=10.0) == believed


@pytest.mark.parametrize(
    ("ports", "own_hosts", "expected"),
    [
        ([], (), Mapping.UNKNOWN),
        ([4001], (), Mapping.UNKNOWN),
        ([4001, 4001], (), Mapping.PORT_PRESERVING),
        ([5000, 5000], (), Mapping.ENDPOINT_INDEPENDENT),
        ([5000, 5000], (OUTSIDE,), Mapping.NONE),
        ([5000, 6111], (), Mapping.SYMMETRIC),
        ([5000, 5002, 5004], (), Mapping.SYMMETRIC),
    ],
)
def test_ports_tell_the_mapping(ports, own_hosts, expected):
    state = seen(*((f"peer{n}", f"1.1.1.{n}", at(port)) for n, port in enumerate(ports)))
    assert state.mapping(4001, frozenset(own_hosts), now=10.0) is expected


def test_observations_age_and_are_bounded():
    state = seen(("a", "1.1.1.1", at(7)), ("b", "2.2.2.2", at(7)), options=ObservedOptions(lifetime=60, capacity=3))
    assert state.believed(now=59.0) == (at(7),)
    assert state.believed(now=60.0) == ()
    for number in range(10):
        state = state.observe(Observation(f"p{number}", f"3.3.3.{number}", at(8), 20.0))
    assert len(state.observations) == 3


@pytest.mark.parametrize(
    ("reachable", "stranger_came", "wanted"),
    [
        (None, False, Filtering.UNKNOWN),
        (True, False, Filtering.ADDRESS_DEPENDENT_AT_MOST),
        (False, False, Filtering.ADDRESS_AND_PORT_DEPENDENT),
        (None, True, Filtering.ENDPOINT_INDEPENDENT),
        (True, True, Filtering.ENDPOINT_INDEPENDENT),
        (False, True, Filtering.ENDPOINT_INDEPENDENT),
    ],
)
def test_filtering_is_said_as_far_as_it_is_known(reachable, stranger_came, wanted):
    assert filtering(reachable, stranger_came) is wanted
