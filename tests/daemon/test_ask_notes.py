"""Why an ask went where it did: what is kept of it, and how it is found again."""

from random import Random

import pytest
import trio
import trio.testing

from daemon.api.backend import PeerWish
from daemon.ask_notes import MAX_CANDIDATES, MAX_NOTES, AskNotes
from daemon.asking import able_to
from daemon.engine.interface import EngineError
from daemon.selector import Candidate, rank_candidates
from dht.standing import Load
from protocol.extras import Extras
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId
from tests.daemon.conftest import FakeEngine, Heard, Swarm, ask, failure, job, until
from tests.daemon.test_asking import several

Clock = trio.testing.MockClock


async def test_an_ask_tells_whom_it_weighed_and_what_came_of_each(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, FakeEngine(), FakeEngine())
    heard = Heard()
    await asker.asking.route(ask(), heard.emit)
    assert [(one.peer_id, one.attempts) for one in heard.begun] == [(heard.result.peer_id, 1)]
    (failed,) = [server for server in servers if server.id == heard.result.peer_id]
    assert failed.engine is not None
    failed.engine.fails = EngineError("out of memory")
    (other,) = [server for server in servers if server is not failed]
    asker.asking._first_tokens.note(failed.id, 0.001, trio.current_time())  # it is the better one, by more than chance evens out
    asker.asking._first_tokens.note(other.id, 0.5, trio.current_time())
    again = Heard()
    await asker.asking.route(ask(id="chatcmpl-abcdef0123"), again.emit)
    assert [(one.peer_id, one.attempts) for one in again.begun] == [(again.result.peer_id, 2)]
    shown = asker.asking.notes.find("last").shown()
    assert shown["ask_id"] == again.result.ask_id == "chatcmpl-abcdef0123"
    assert (shown["outcome"], shown["peer_id"]) == ("ok", again.result.peer_id)
    assert [one["outcome"] for one in shown["attempts"]] == ["engine_failed", "ok"]
    assert [one["reason"] for one in shown["attempts"]] == ["best", "next"]
    assert shown["attempts"][0]["message"] == "out of memory"
    assert 0 < shown["attempts"][1]["first_token_s"] < shown["elapsed_s"]
    best = shown["candidates"][0]
    assert best["peer_id"] == failed.id
    parts = best["parts"]
    assert best["predicted_s"] == pytest.approx(sum(parts[name] for name in ("reach_s", "queue_s", "share_s", "engine_s")))
    assert parts["engine_from"] == "measured"
    assert shown["why"][1].endswith(f"as {failed.id[-8:]} ended with engine_failed")


def test_an_id_of_several_names_them() -> None:
    notes = AskNotes(lambda: 1.0)
    for place in range(2):
        notes.begin(f"chatcmpl-abcdef-{place}", "tiny")
    with pytest.raises(RemoteError, match="names 2 asks: chatcmpl-abcdef-0, chatcmpl-abcdef-1; give one of these"):
        notes.find("chatcmpl-abcdef")
    assert notes.find("abcdef-1").ask_id == "chatcmpl-abcdef-1"


async def test_a_failed_ask_is_kept_too(swarm: Swarm, autojump_clock: Clock) -> None:
    (peer,) = await swarm(1)
    error = await failure(peer.asking.route(ask(wish=PeerWish(only=frozenset())), Heard().emit))
    shown = peer.asking.notes.find("last").shown()
    assert (shown["outcome"], shown["error"]) == ("not_found", error.message)
    assert shown["ruled_out"] == [{"peer_id": peer.id, "reason": "'peer.only' does not name it"}]
    with trio.move_on_after(0.001):
        await peer.asking.route(ask(), Heard().emit)
    shown = peer.asking.notes.find("last").shown()
    assert (shown["outcome"], [one["outcome"] for one in shown["attempts"]]) == ("cancelled", ["cancelled"])


async def test_a_peer_offers_what_it_measured_and_a_stranger_believes_it_until_it_knows_better(
    swarm: Swarm, autojump_clock: Clock
) -> None:
    asker, _ = await several(swarm, FakeEngine(pause=0.8), FakeEngine(pause=0.1))
    (stranger,) = await swarm(1, no_engine=True)
    await until(lambda: all(len(one.membership.candidates("")) == 2 for one in (asker, stranger)))
    for candidate in asker.membership.candidates(""):
        await asker.asking.route(ask(peer=candidate.peer), Heard().emit)

    def offered() -> list[int]:
        return sorted(candidate.load.first_token_ms for candidate in stranger.membership.candidates(""))

    await until(lambda: offered()[0] > 0)
    assert [round(ms, -2) for ms in offered()] == [100, 800]
    firsts = set()
    for _ in range(8):
        heard = Heard()
        await stranger.asking.route(ask(), heard.emit)
        firsts.add(heard.result.peer_id)
        stranger.asking._first_tokens._peers.clear()
    assert len(firsts) == 1
    note = stranger.asking.notes.newest_first()[-1].shown()
    assert [one["parts"]["engine_from"] for one in note["candidates"]] == ["offered", "offered"]


async def test_our_own_asks_count_before_a_heartbeat_tells_of_them(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, FakeEngine(pause=2.0), FakeEngine(pause=2.0))
    heard = [Heard() for _ in range(4)]
    async with trio.open_nursery() as nursery:
        for one in heard:
            nursery.start_soon(asker.asking.route, ask(), one.emit)
            await trio.sleep(0.1)
    counts = [sum(one.result.peer_id == server.id for one in heard) for server in servers]
    assert counts == [2, 2]
    assert not asker.asking.under_way


def test_notes_are_bounded_and_found_by_what_is_seen_of_their_ids() -> None:
    notes = AskNotes(lambda: 5.0)
    for place in range(MAX_NOTES + 3):
        notes.begin(f"chatcmpl-{place:08x}", "m")
    assert len(notes.newest_first()) == MAX_NOTES
    assert notes.find("last") is notes.find(f"chatcmpl-{MAX_NOTES + 2:08x}") is notes.find(f"{MAX_NOTES + 2:08x}")
    for named in ("chatcmpl-00000000", "chat", "chatcmpl-", "nothing-here"):
        with pytest.raises(RemoteError):
            notes.find(named)
    many = [Candidate(PeerId(f"peer{place}"), "m", 2, "direct", 0.01) for place in range(MAX_CANDIDATES + 4)]
    note = notes.find("last")
    note.weigh(rank_candidates(many, Random(1)))
    assert (len(note.shown()["candidates"]), note.shown()["more_candidates"]) == (MAX_CANDIDATES, 4)


def test_who_cannot_is_not_asked_unless_nobody_can() -> None:
    def having(*features: str) -> Candidate:
        return Candidate(PeerId("-".join(features) or "silent"), "m", 2, "direct", features=frozenset(features), load=Load())

    asked = job(extras=Extras(top_logprobs=2))
    silent, able, unable = having(), having("logprobs", "tools"), having("tools")
    lacks = (unable.peer, "its engine has not what is asked for")
    assert able_to([silent, able, unable], asked) == ([silent, able], [lacks])
    assert able_to([unable], asked) == ([unable], [])
    assert able_to([unable], job()) == ([unable], [])
