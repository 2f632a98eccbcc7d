"""What a request wishes of its peers."""

import pytest

from daemon.api.backend import PeerWish
from daemon.peer_wish import eligible, wished_order
from daemon.selector import Candidate, Choice
from dht.standing import Load
from protocol.wire.ids import PeerId

HERE = Candidate(PeerId("here"), "m", 2, "local", load=Load(2))
NEAR = Candidate(PeerId("near"), "m", 4, "direct", 0.01, load=Load(3))
FAR = Candidate(PeerId("far"), "m", 4, "relayed", 0.2)
UNMET = Candidate(PeerId("unmet"), "m", 4, "unknown", load=Load(1))
ALL = (FAR, UNMET, NEAR, HERE)


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        (None, ["far", "unmet", "near", "here"]),
        (PeerWish(), ["far", "unmet", "near", "here"]),
        (PeerWish(only=frozenset(["near", "stranger"])), ["near"]),
        (PeerWish(only=frozenset()), []),
        (PeerWish(ignore=frozenset(["far", "here"])), ["unmet", "near"]),
        (PeerWish(only=frozenset(["near"]), ignore=frozenset(["near"])), []),
        (PeerWish(max_rtt=0.01), ["near", "here"]),
        (PeerWish(max_rtt=0.0), ["here"]),
    ],
)
def test_who_may(wish: PeerWish | None, names: list[str]) -> None:
    assert [one.peer for one in eligible(ALL, wish)] == names


@pytest.mark.parametrize(
    ("wish", "names"),
    [
        (None, ["far", "unmet", "near", "here"]),
        (PeerWish(), ["far", "unmet", "near", "here"]),
        (PeerWish(sort="latency"), ["here", "near", "far", "unmet"]),
        (PeerWish(sort="load"), ["far", "unmet", "near", "here"]),
    ],
)
def test_who_is_first(wish: PeerWish | None, names: list[str]) -> None:
    assert [one.candidate.peer for one in wished_order([Choice(one, 0.0) for one in ALL], wish)] == names
    equal = [Choice(NEAR, 1.0), Choice(NEAR, 0.0)]
    assert wished_order(equal, wish) == equal
