"""The fetch: who is asked for what, and that it ends, whatever peers do. Peers are played by a seeded table, time is a number."""

import heapq
from random import Random

import pytest

from protocol.content.fetch import (
    Abandon,
    AskChunk,
    Corrupt,
    Dropped,
    Effect,
    Event,
    Failed,
    Fetch,
    FetchLimits,
    Finished,
    Source,
    Starved,
    Stored,
    Tick,
    WakeAt,
)
from protocol.wire.ids import PeerId

A, B, C = (PeerId(name) for name in ("alice", "bob", "carol"))


def asked(effects: list[Effect], peer: PeerId | None = None) -> list[int]:
    return [one.index for one in effects if isinstance(one, AskChunk) and peer in (None, one.peer)]


def test_a_lone_source_is_asked_ahead_and_no_further() -> None:
    fetch = Fetch(10, set(), Random(1))
    effects = fetch.handle(Source(A, None), 0.0)
    assert len(asked(effects)) == 4
    more = fetch.handle(Stored(A, asked(effects)[0]), 1.0)
    assert len(asked(more)) == 1


def test_what_is_there_is_not_asked_for() -> None:
    fetch = Fetch(4, {0, 1, 2}, Random(1))
    assert asked(fetch.handle(Source(A, None), 0.0)) == [3]
    assert fetch.handle(Stored(A, 3), 1.0) == [Finished()]
    assert fetch.handle(Tick(), 2.0) == []


def test_a_whole_file_asks_nobody() -> None:
    assert Fetch(2, {0, 1}, Random(1)).handle(Tick(), 0.0) == [Finished()]


def test_sources_are_asked_for_different_chunks() -> None:
    fetch = Fetch(8, set(), Random(1), FetchLimits(ahead=4))
    first, second = fetch.handle(Source(A, None), 0.0), fetch.handle(Source(B, None), 0.0)
    assert sorted(asked(first) + asked(second)) == list(range(8))


def test_a_peer_with_a_part_is_asked_for_its_part_alone() -> None:
    fetch = Fetch(8, set(), Random(1))
    assert sorted(asked(fetch.handle(Source(A, frozenset({2, 5})), 0.0))) == [2, 5]
    assert Starved() in Fetch(8, set(), Random(1)).handle(Source(A, frozenset()), 0.0)


def test_a_liar_is_dropped_at_once_and_for_good() -> None:
    fetch = Fetch(8, set(), Random(1))
    lies = asked(fetch.handle(Source(A, None), 0.0))
    effects = fetch.handle(Corrupt(A, lies[0]), 1.0)
    assert {one.index for one in effects if isinstance(one, Abandon)} == set(lies)
    assert any(isinstance(one, Dropped) for one in effects)
    assert asked(fetch.handle(Source(A, None), 2.0)) == []
    assert sorted(asked(fetch.handle(Source(B, None), 2.0)) + asked(fetch.handle(Source(C, None), 2.0))) == list(range(8))


def test_a_failure_waits_longer_each_time_and_then_drops() -> None:
    fetch = Fetch(1, set(), Random(1), FetchLimits(failures=3, wait=1.0))
    fetch.handle(Source(A, None), 0.0)
    assert fetch.handle(Failed(A, 0), 10.0) == [WakeAt(11.0)]
    assert asked(fetch.handle(Tick(), 11.0)) == [0]
    assert fetch.handle(Failed(A, 0), 12.0) == [WakeAt(14.0)]
    assert asked(fetch.handle(Tick(), 14.0)) == [0]
    effects = fetch.handle(Failed(A, 0), 15.0)
    assert Starved() in effects
    assert any(isinstance(one, Dropped) for one in effects)


def test_overload_is_waited_out_and_blames_nobody() -> None:
    fetch = Fetch(1, set(), Random(1), FetchLimits(failures=1))
    fetch.handle(Source(A, None), 0.0)
    assert fetch.handle(Failed(A, 0, retry_after=5.0), 1.0) == [WakeAt(6.0)]
    assert asked(fetch.handle(Tick(), 6.0)) == [0]


def test_the_last_chunk_is_asked_of_a_second_peer_and_the_slower_is_abandoned() -> None:
    fetch = Fetch(1, set(), Random(1))
    assert asked(fetch.handle(Source(A, None), 0.0)) == [0]
    assert asked(fetch.handle(Source(B, None), 1.0), B) == [0]
    assert asked(fetch.handle(Source(C, None), 1.0)) == []  # two copies are enough
    assert fetch.handle(Stored(B, 0), 2.0) == [Abandon(A, 0), Finished()]


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_of_peers_ends_the_fetch(seed: int) -> None:
    """Peers lie, vanish, are slow, overloaded or hold parts; as long as one honest peer holds all of it, the fetch ends."""
    rng = Random(seed)
    chunks = rng.randrange(1, 60)
    kinds = {PeerId("honest"): "honest"} | {
        PeerId(f"p{n}"): rng.choice(["liar", "silent", "slow", "part", "flaky"]) for n in range(rng.randrange(6))
    }
    fetch = Fetch(chunks, {index for index in range(chunks) if rng.random() < 0.2}, rng)
    clock: list[tuple[float, int, Event]] = []
    abandoned: set[tuple[PeerId, int]] = set()
    order = 0

    def push(at: float, event: Event) -> None:
        nonlocal order
        order += 1
        heapq.heappush(clock, (at, order, event))

    for peer, kind in kinds.items():
        push(rng.random(), Source(peer, frozenset(range(0, chunks, 3)) if kind == "part" else None))
    push(0.0, Tick())
    dropped: set[PeerId] = set()
    for _ in range(20_000):
        now, _, event = heapq.heappop(clock)
        peer = getattr(event, "peer", None)
        if (peer, getattr(event, "index", -1)) in abandoned:
            continue
        effects = fetch.handle(event, now)
        for effect in effects:
            match effect:
                case AskChunk(peer, index):
                    abandoned.discard((peer, index))
                    assert peer not in dropped
                    push(now + rng.random(), answer(kinds[peer], peer, index, rng))
                case Abandon(peer, index):
                    abandoned.add((peer, index))
                case Dropped(peer, _):
                    dropped.add(peer)
                    assert kinds[peer] != "honest"
                case WakeAt(at):
                    push(at, Tick())
                case Finished():
                    assert fetch.missing == 0
                    return
                case Starved():
                    pass
    raise AssertionError("the fetch did not end")


def answer(kind: str, peer: PeerId, index: int, rng: Random) -> Event:
    if kind == "liar" and rng.random() < 0.5:
        return Corrupt(peer, index)
    if kind == "silent" or (kind == "flaky" and rng.random() < 0.5):
        return Failed(peer, index, retry_after=rng.choice([None, 1.0]), missing=rng.random() < 0.1)
    return Stored(peer, index)
