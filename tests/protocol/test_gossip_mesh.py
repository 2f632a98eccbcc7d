"""Whom a mesh consists of: its degrees hold whatever happens, and nobody who is worth less than nothing is in it."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.gossip.mesh import Degrees, Neighbourhood, TopicMesh

D = Degrees()


def around(candidates: Any, worth: Any = None, dialled: Any = (), networks: Any = None) -> Neighbourhood:
    worth, networks = worth or {}, networks or {}
    return Neighbourhood(
        list(candidates), lambda peer: worth.get(peer, 0.0), lambda peer: peer in dialled, lambda peer: networks.get(peer, "")
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_after_every_beat_the_laws_hold(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 40))
    peers = list(range(count))
    worth = {peer: data.draw(st.sampled_from([-5.0, 0.0, 1.0, 20.0])) for peer in peers}
    dialled = {peer for peer in peers if data.draw(st.booleans())}
    networks = {peer: data.draw(st.sampled_from(["", "a", "b", "c"])) for peer in peers}
    mesh, now = TopicMesh(D, Random(data.draw(st.integers(0, 99)))), 0.0
    for _ in range(4):
        here = around(peers, worth, dialled, networks)
        for peer in data.draw(st.lists(st.sampled_from(peers), max_size=20)) if peers else []:
            mesh.takes(peer, here, now)
        grafts, prunes = mesh.beat(here, now)
        assert set(grafts) <= mesh.members
        assert not mesh.members & set(prunes)
        assert len(mesh.members) <= D.high + D.outbound
        assert all(worth[peer] >= 0 for peer in mesh.members)
        for network in ("a", "b", "c"):
            assert sum(networks[peer] == network for peer in mesh.members) <= D.per_network
        assert set(mesh.leaned) <= dialled
        assert all(mesh.backs_off(peer, now) for peer in prunes)
        now += 1.0


def test_a_mesh_fills_to_its_degree_and_prefers_whom_we_dialled() -> None:
    mesh = TopicMesh(D, Random(1))
    grafts, prunes = mesh.beat(around(range(30), dialled={3, 4, 5}), 0.0)
    assert len(grafts) == D.degree
    assert {3, 4, 5} <= mesh.members
    assert prunes == []


def test_a_full_mesh_refuses_strangers_and_takes_whom_we_dialled() -> None:
    mesh = TopicMesh(D, Random(1))
    for peer in range(D.high):
        assert mesh.takes(peer, around(()), 0.0)
    assert not mesh.takes(99, around(()), 0.0)
    assert mesh.backs_off(99, 1.0)
    assert not mesh.takes(98, around((), worth={98: -1.0}), 0.0)
    assert mesh.takes(97, around((), dialled={97}), 0.0)


def test_whom_we_dialled_is_pushed_to_although_its_mesh_is_full() -> None:
    """Who fills the meshes of others must not cut us off from them."""
    mesh = TopicMesh(D, Random(1))
    mesh.beat(around(range(6), dialled=set(range(6))), 0.0)
    for peer in list(mesh.members):
        mesh.back_off(peer, 0.0)
    mesh.beat(around(range(6), dialled=set(range(6))), 1.0)
    assert mesh.members == set()
    assert len(mesh.targets()) == D.outbound
    stays = set(mesh.targets())
    mesh.beat(around(range(6), dialled=set(range(6))), 2.0)
    assert set(mesh.targets()) == stays


@pytest.mark.parametrize("seconds", [None, 5.0, 1e9])
def test_a_backoff_ends_and_is_bounded(seconds: float | None) -> None:
    mesh = TopicMesh(D, Random(1))
    mesh.back_off("x", 0.0, seconds)
    until = min(D.backoff * 60, D.backoff if seconds is None else seconds)
    assert mesh.backs_off("x", until - 0.1)
    assert not mesh.backs_off("x", until + 0.1)


def test_a_poor_mesh_takes_better_ones_now_and_then() -> None:
    mesh = TopicMesh(D, Random(1))
    mesh.beat(around(range(8)), 0.0)
    better = dict.fromkeys(range(8, 20), 5.0)
    grafts, _ = mesh.beat(around(range(20), worth=better), D.opportune_every + 1)
    assert len(grafts) == D.opportune
    assert all(peer in better for peer in grafts)


def test_whoever_subscribes_to_a_small_mesh_is_taken_by_the_same_rules_as_ever() -> None:
    mesh = TopicMesh(D, Random(1))
    mesh.back_off("rested", 0.0)
    here = around(["bad", "rested", "good"], worth={"bad": -1.0})
    assert mesh.greet(here, 1.0) == ["good"]
    mesh.members.update(range(D.low))
    assert mesh.greet(around(["late"]), 1.0) == []


def test_peers_that_come_and_go_fill_no_memory() -> None:
    mesh = TopicMesh(Degrees(remembered=10), Random(1))
    mesh.back_off("first", 0.0, 3_000.0)
    for number in range(50):
        mesh.back_off(number, 1.0 + number)
    assert mesh.backs_off("first", 60.0)
    assert [number for number in range(50) if mesh.backs_off(number, 60.0)] == list(range(41, 50))
