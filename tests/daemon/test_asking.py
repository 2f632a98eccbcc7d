"""One answer from one peer: whom it is asked of, what happens when that peer fails, and what is said of it afterwards."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from msgspec.structs import replace as replace_job

from daemon.api.backend import AskEvent, PeerWish, TokenEvent
from daemon.calls import InboundCall
from daemon.engine.interface import EngineError, EngineRefused, EngineState
from daemon.patience import Patience
from protocol.delta import CallDelta, Delta, TokenLogprob, delta_items
from protocol.inference import METHOD
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import short
from tests.daemon.conftest import FakeEngine, Heard, Peer, Swarm, ask, failure, full, model, until

Clock = trio.testing.MockClock


async def known(asker: Peer, count: int) -> None:
    await until(lambda: len(asker.membership.candidates("")) == count)


async def several(swarm: Swarm, *engines: FakeEngine) -> tuple[Peer, list[Peer]]:
    """A peer without an engine, and one peer for each engine; all serve the model "tiny"."""
    transports = swarm.mesh(len(engines) + 1, connected=True)
    asker = await swarm.start(transports[0], no_engine=True)
    servers = []
    for transport, engine in zip(transports[1:], engines, strict=True):
        engine.model = engine.model or model("tiny")
        servers.append(await swarm.start(transport, engine))
    await known(asker, len(engines))
    return asker, servers


async def test_the_local_engine_is_nearest_and_nothing_is_claimed_of_it(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, _ = await swarm(2)
    await known(alice, 2)
    heard = Heard()
    await alice.asking.route(ask(), heard.emit)
    assert (heard.result.peer_id, heard.result.path, heard.result.answer) == (alice.id, "local", "four two")
    assert heard.tokens == ["four", " two"]
    assert alice.served == []


async def test_the_least_loaded_peer_is_asked(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    busy = FakeEngine(says=lambda job: "so " * 900, pause=1.0, model=model("tiny", slots=1))
    asker, (bob, carol) = await several(swarm, busy, FakeEngine())

    async def own_user() -> None:
        async with bob.serving.generate(ask().job) as chunks:
            async for _ in chunks:
                pass

    nursery.start_soon(own_user)
    await until(lambda: any(candidate.busy for candidate in asker.membership.candidates("")))
    for _ in range(5):
        heard = Heard()
        await asker.asking.route(ask(), heard.emit)
        assert heard.result.peer_id == carol.id
        assert heard.result.path == "direct"
    assert {(one.peer, one.ok) for one in asker.served} == {(carol.id, True)}


@pytest.mark.parametrize("error", [EngineError("it crashed"), EngineRefused("beyond its context")])
async def test_a_peer_that_fails_before_the_first_token_is_passed_over(
    swarm: Swarm, autojump_clock: Clock, error: EngineError
) -> None:
    asker, servers = await several(swarm, FakeEngine(fails=error), FakeEngine(fails=error), FakeEngine())
    heard = Heard()
    await asker.asking.route(ask(), heard.emit)
    assert heard.result.peer_id == servers[2].id
    outcomes = {attempt.peer_id: attempt.outcome for attempt in heard.result.attempts}
    assert outcomes.pop(servers[2].id) == "ok"
    assert set(outcomes.values()) <= {"oversized" if isinstance(error, EngineRefused) else "engine_failed"}
    blamed = {one.peer for one in asker.served if not one.ok}
    assert blamed == (set() if isinstance(error, EngineRefused) else set(outcomes)), "a job that does not fit is no peer's fault"


async def test_at_most_three_peers_are_tried_and_each_is_named(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, *(FakeEngine(fails=EngineError("it crashed")) for _ in range(5)))
    error = await failure(asker.asking.route(ask(), Heard().emit))
    assert error.code is Code.ENGINE_FAILED
    assert sum(len(server.engine.jobs) for server in servers if server.engine) == 3
    assert "3 peers were tried" in error.message
    assert sum(server.id[-8:] in error.message for server in servers) == 3
    await known(asker, 2)  # those three are not asked again until they are heard of anew


async def test_a_peer_killed_in_mid_stream_ends_the_answer_at_once(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    asker, (bob,) = await several(swarm, FakeEngine(says=lambda job: "so " * 100, pause=0.1))
    heard = Heard()
    errors: list[RemoteError] = []

    async def asking() -> None:
        errors.append(await failure(asker.asking.route(ask(), heard.emit)))

    nursery.start_soon(asking)
    await until(lambda: heard.tokens)
    bob.kill()
    with trio.fail_after(1):
        await until(lambda: errors)
    assert errors[0].code is Code.GONE
    assert [(one.ok, one.accepted) for one in asker.served] == [(False, True)]


async def test_a_peer_that_cannot_be_dialled_is_not_blamed(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (bob,) = await several(swarm, FakeEngine())
    swarm.mesh.cut(asker.id, bob.id)
    await trio.sleep(0.1)
    assert (await failure(asker.asking.route(ask(), Heard().emit))).code is Code.GONE
    assert [(one.ok, one.accepted) for one in asker.served] == [(False, False)]
    assert asker.membership.candidates("") == [], "but it is not asked again until it is heard of anew"


@pytest.mark.parametrize(("words", "limit"), [(0, Patience().first_token), (1, Patience().gap)])
async def test_a_silent_peer_costs_a_bounded_time(swarm: Swarm, autojump_clock: Clock, words: int, limit: float) -> None:
    engine = FakeEngine(says=lambda job: "one two")
    asker, (bob,) = await several(swarm, engine)

    @asynccontextmanager
    async def generate(job: object, begun: object) -> AsyncIterator[AsyncIterator[object]]:
        async with FakeEngine.generate(engine, job, None) as chunks:  # type: ignore[arg-type]

            async def stalling() -> AsyncIterator[object]:
                for _ in range(words):
                    yield await anext(chunks)
                await trio.sleep_forever()

            yield stalling()

    engine.generate = generate  # type: ignore[method-assign, assignment]
    started = trio.current_time()
    error = await failure(asker.asking.route(ask(), Heard().emit))
    assert error.code is Code.DEADLINE
    assert trio.current_time() - started == pytest.approx(limit, abs=1)
    assert [one.ok for one in asker.served] == [False]
    await until(lambda: bob.serving.busy == 0)


ENDLESS = {
    "text": Delta("x" * 16_000),
    "log-probabilities": Delta(logprobs=(TokenLogprob("x", -0.5),)),
    "calls": Delta(tool_calls=(CallDelta(0, "a"),)),
}


@pytest.mark.parametrize("kind", ENDLESS)
async def test_a_peer_that_never_stops_talking_is_cut_off_and_blamed(swarm: Swarm, autojump_clock: Clock, kind: str) -> None:
    asker, (bob,) = await several(swarm, FakeEngine())
    (item,) = delta_items(ENDLESS[kind].text, ENDLESS[kind].tool_calls, ENDLESS[kind].logprobs)

    async def endless(call: InboundCall) -> bytes:
        while True:
            await call.send(item)

    bob.calls._handlers[METHOD] = endless
    heard: list[AskEvent] = []

    async def emit(event: AskEvent) -> None:
        heard.append(event)

    with trio.fail_after(60):
        error = await failure(asker.asking.route(ask(), emit))
    assert (error.code, [one.ok for one in asker.served]) == (Code.MALFORMED, [False])
    pieces = [one for one in heard if isinstance(one, TokenEvent)]
    chars, parts = sum(len(one.text) for one in pieces), sum(len(one.logprobs) + len(one.tool_calls) for one in pieces)
    assert (0 < chars <= 1 << 20) if kind == "text" else parts == 8192


async def test_our_own_deadline_and_a_user_who_leaves_blame_nobody(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (bob,) = await several(swarm, FakeEngine(says=lambda job: "so " * 100, pause=1.0))

    with trio.move_on_after(5.0):
        await asker.asking.route(ask(), Heard().emit)
    await until(lambda: bob.serving.busy == 0)
    with trio.CancelScope() as asking:

        async def leave(event: AskEvent) -> None:
            asking.cancel()
            await trio.lowlevel.checkpoint()

        await asker.asking.route(ask(), leave)
    await until(lambda: bob.serving.busy == 0)
    assert asker.served == []


async def test_a_named_peer_is_the_only_one_asked(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, _, carol = await swarm(3)
    await known(alice, 3)
    heard = Heard()
    await alice.asking.route(ask(peer=carol.id), heard.emit)
    assert heard.result.peer_id == carol.id
    carol.engine.state = EngineState.RESTARTING
    assert (await failure(alice.asking.route(ask(peer=carol.id), Heard().emit))).code is Code.OVERLOADED


async def test_nobody_to_ask_says_what_was_wanted(swarm: Swarm, autojump_clock: Clock) -> None:
    (alice,) = await swarm(1, no_engine=True)
    error = await failure(alice.asking.route(ask(), Heard().emit))
    assert (error.code, "any model" in error.message) == (Code.NOT_FOUND, True)


async def test_who_failed_lately_is_to_be_asked_again_and_not_unknown(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, *(FakeEngine(fails=EngineError("it crashed")) for _ in range(2)))
    assert (await failure(asker.asking.route(ask(), Heard().emit))).code is Code.ENGINE_FAILED
    for request, said in ((ask(), "2 peers failed"), (ask(peer=servers[1].id), f"peer {short(servers[1].id)} failed")):
        error = await failure(asker.asking.route(request, Heard().emit))
        assert (error.code, error.retry_after, said in error.message) == (Code.OVERLOADED, 10.0, True), error
    unknown = replace(ask(), job=replace_job(ask().job, model="other"))
    assert (await failure(asker.asking.route(unknown, Heard().emit))).code is Code.NOT_FOUND
    for server in servers:
        assert server.engine is not None
        server.engine.fails = None
    await trio.sleep(error.retry_after or 0)
    heard = Heard()
    await asker.asking.route(ask(), heard.emit)
    assert heard.result.answer == "four two"


@pytest.mark.parametrize("state", EngineState)
async def test_an_engine_that_starts_is_to_be_asked_again(swarm: Swarm, autojump_clock: Clock, state: EngineState) -> None:
    (alice,) = await swarm(1)
    assert alice.engine is not None
    alice.engine.state, alice.engine.reason = state, "it loads"
    comes = state in (EngineState.STARTING, EngineState.RESTARTING)
    if state is not EngineState.READY:
        error = await failure(alice.asking.route(ask(), Heard().emit))
        expected = (Code.OVERLOADED, 2.0) if comes else (Code.NOT_FOUND, None)
        assert (error.code, error.retry_after) == expected
    other = replace(ask(), job=replace_job(ask().job, model="other"))
    assert (await failure(alice.asking.route(other, Heard().emit))).code is Code.NOT_FOUND


async def test_a_full_peer_is_passed_over_without_blame(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, *(FakeEngine() for _ in range(2)))
    with full(servers[0]):
        with full(servers[1]):
            error = await failure(asker.asking.route(ask(), Heard().emit))
            assert (error.code, error.retry_after) == (Code.OVERLOADED, 1.0)
        assert asker.served == []
        heard = Heard()
        await asker.asking.route(ask(), heard.emit)
        assert heard.result.peer_id == servers[1].id


async def test_a_least_score_rules_out_who_has_less_in_the_questions_topic(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (bob, carol) = await several(swarm, FakeEngine(), FakeEngine())
    scores = {(bob.id, "add"): 400, (carol.id, "add"): 900, (bob.id, "general"): 950}
    asker.asking.score = lambda peer, skill: scores.get((peer, skill), 500)
    for text, least, who in (("add 47 38", 600, carol), ("tell me a story", 600, bob)):
        for _ in range(4):
            heard = Heard()
            await asker.asking.route(ask(text, wish=PeerWish(min_score_milli=least)), heard.emit)
            assert heard.result.peer_id == who.id
    error = await failure(asker.asking.route(ask("add 47 38", wish=PeerWish(min_score_milli=950)), Heard().emit))
    assert (error.code, "'peer'" in error.message) == (Code.NOT_FOUND, True)
    reasons = [one["reason"] for one in asker.asking.notes.find("last").shown()["ruled_out"]]
    assert "its score of 0.900 is below 'peer.min_score'" in reasons
