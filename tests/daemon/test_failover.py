"""An answer whose peer fails in the middle of it: who goes on, what the user reads, and when nobody may; and hedging."""

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing

from daemon.api.backend import ProgressEvent, ResultEvent, TokenEvent
from daemon.engine.interface import Chunk, EngineError
from daemon.patience import Patience
from protocol.extras import Extras
from protocol.inference import CONTINUE_METHOD, Begun, Continuation
from protocol.job import Job, Sampling, Usage
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError
from tests.daemon.conftest import FakeEngine, Heard, Peer, Swarm, ask, failure, full, job, model, until
from tests.daemon.test_asking import known, several

Clock = trio.testing.MockClock

WORDS = [f"word{place}" for place in range(30)]
WHOLE = " ".join(WORDS)


def says(job: Job) -> str:
    return WHOLE


def engine(**changes: object) -> FakeEngine:
    return FakeEngine(says=says, pause=0.1, **changes)  # type: ignore[arg-type]


async def asked_until(
    swarm: Swarm, nursery: trio.Nursery, servers: list[Peer], asker: Peer, count: int
) -> tuple[Heard, Peer, list[RemoteError]]:
    """An ask under way of which `count` words were heard, the peer that serves it, and where its error would be."""
    heard, errors = Heard(), list[RemoteError]()

    async def asking() -> None:
        try:
            await asker.asking.route(ask(), heard.emit)
        except RemoteError as error:
            errors.append(error)

    nursery.start_soon(asking)
    with trio.fail_after(30):
        while len(heard.tokens) < count:
            await trio.sleep(0.01)
    (serving,) = [server for server in servers if server.engine and server.engine.running]
    return heard, serving, errors


ENDS: dict[str, Callable[[Swarm, Peer, Peer], None]] = {
    "killed": lambda swarm, asker, serving: serving.kill(),
    "frozen": lambda swarm, asker, serving: swarm.mesh.freeze(serving.id),
    "cut off": lambda swarm, asker, serving: swarm.mesh.cut(asker.id, serving.id),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("count", [1, 2, 17, 29])
async def test_another_peer_of_the_same_config_goes_on_and_no_word_is_lost_or_doubled(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock, end: str, count: int
) -> None:
    asker, servers = await several(swarm, engine(), engine(), engine())
    heard, serving, errors = await asked_until(swarm, nursery, servers, asker, count)
    ENDS[end](swarm, asker, serving)
    await until(lambda: heard.results or errors)
    assert errors == []
    assert "".join(heard.tokens) == heard.result.answer == WHOLE
    first, second = heard.result.attempts
    at = heard.result.continued[0]
    assert (first.peer_id, first.at_chars) == (serving.id, None)
    assert first.outcome == ("deadline" if end == "frozen" else "gone")
    assert (second.outcome, second.at_chars, second.peer_id) == ("continued", at, heard.result.peer_id)
    assert heard.result.usage.completion_tokens == len(WORDS)
    (successor,) = [server for server in servers if server.id == second.peer_id]
    assert successor.engine is not None
    assert successor.engine.begun == [Begun(WHOLE[:at], len(WHOLE[:at].split()))]
    assert {(one.peer, one.ok) for one in asker.served} == {(serving.id, False), (second.peer_id, True)}


async def test_a_frozen_peer_costs_one_gap(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, engine(), engine())
    heard, serving, _ = await asked_until(swarm, nursery, servers, asker, 3)
    started = trio.current_time()
    swarm.mesh.freeze(serving.id)
    await until(lambda: heard.results)
    assert trio.current_time() - started == pytest.approx(Patience().gap + 0.1 * len(WORDS), abs=1)
    swarm.mesh.thaw(serving.id)
    await until(lambda: serving.serving.busy == 0)  # once it is back, it learns that nobody waits any more


async def test_one_after_the_other_may_fail_and_the_next_goes_on_from_all_that_was_said(
    swarm: Swarm, autojump_clock: Clock
) -> None:
    broken = [engine(fails=EngineError("it crashed"), fails_after_words=count) for count in (5, 11)]
    asker, servers = await several(swarm, *broken, engine())
    for order in range(6):
        heard = Heard()
        for server in servers:
            asker.membership.call_succeeded(server.id)
        await known(asker, 3)
        await asker.asking.route(ask(), heard.emit)
        assert "".join(heard.tokens) == WHOLE, order
        if len(heard.result.attempts) == 3:
            return
    pytest.fail("never both failed in one answer")


async def test_a_peer_of_another_config_does_not_go_on(swarm: Swarm, autojump_clock: Clock) -> None:
    configs = [model("tiny"), replace(model("tiny"), config_digest="0" * 64)]
    broken = [engine(model=config, fails=EngineError("it crashed"), fails_after_words=3) for config in configs]
    asker, _ = await several(swarm, *broken)
    heard = Heard()
    error = await failure(asker.asking.route(ask(), heard.emit))
    assert (error.code, "".join(heard.tokens)) == (Code.ENGINE_FAILED, " ".join(WORDS[:3]))
    assert sorted(len(one.jobs) for one in broken) == [0, 1]


async def test_a_peer_goes_on_with_what_the_own_engine_began(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = swarm.mesh(2, connected=True)
    asker = await swarm.start(alice, engine(model=model("tiny"), fails=EngineError("it crashed"), fails_after_words=4))
    server = await swarm.start(bob, engine(model=model("tiny")))
    await known(asker, 2)
    heard = Heard()
    await asker.asking.route(ask(), heard.emit)
    assert "".join(heard.tokens) == WHOLE
    assert [attempt.outcome for attempt in heard.result.attempts] == ["engine_failed", "continued"]
    assert heard.result.peer_id == server.id


async def test_a_peer_goes_on_where_the_own_engine_hangs(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = swarm.mesh(2, connected=True)
    hangs = engine(model=model("tiny"))
    asker = await swarm.start(alice, hangs)
    server = await swarm.start(bob, engine(model=model("tiny")))
    await known(asker, 2)

    @asynccontextmanager
    async def generate(job: Job, begun: Begun | None) -> AsyncIterator[AsyncIterator[Chunk]]:
        async def stalling() -> AsyncIterator[Chunk]:
            await trio.sleep(100)  # as long as a prompt takes
            yield Chunk(WORDS[0])
            await trio.sleep_forever()

        yield stalling()

    hangs.generate = generate  # type: ignore[method-assign, assignment]
    heard, started = Heard(), trio.current_time()
    await asker.asking.route(ask(), heard.emit)
    assert "".join(heard.tokens) == WHOLE
    assert [attempt.outcome for attempt in heard.result.attempts] == ["deadline", "continued"]
    assert heard.result.peer_id == server.id
    assert trio.current_time() - started == pytest.approx(100 + Patience().first_token + 0.1 * len(WORDS), abs=1)
    assert asker.serving.busy == 0


async def test_the_own_engine_goes_on_with_what_a_peer_began(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = swarm.mesh(2, connected=True)
    asker = await swarm.start(alice, engine(model=model("tiny", slots=2)))
    await swarm.start(bob, engine(model=model("tiny"), fails=EngineError("it crashed"), fails_after_words=4))
    await known(asker, 2)
    heard, others = Heard(), ExitStack()
    others.enter_context(full(asker, 3))

    async def emit(event: TokenEvent | ProgressEvent | ResultEvent) -> None:
        others.close()
        await heard.emit(event)

    await asker.asking.route(ask(), emit)
    assert (heard.result.path, "".join(heard.tokens)) == ("local", WHOLE)
    assert [attempt.outcome for attempt in heard.result.attempts] == ["engine_failed", "continued"]


async def test_what_text_alone_does_not_say_is_not_continued(swarm: Swarm, autojump_clock: Clock) -> None:
    broken = [engine(fails=EngineError("it crashed"), fails_after_words=2) for _ in range(2)]
    asker, _ = await several(swarm, *broken)
    request = replace(ask(), job=job(extras=Extras(top_logprobs=0)))
    assert (await failure(asker.asking.route(request, Heard().emit))).code is Code.ENGINE_FAILED
    assert sorted(len(one.jobs) for one in broken) == [0, 1]


async def test_a_named_peer_is_not_replaced(swarm: Swarm, autojump_clock: Clock) -> None:
    broken = engine(fails=EngineError("it crashed"), fails_after_words=2)
    asker, servers = await several(swarm, broken, engine())
    error = await failure(asker.asking.route(ask(peer=servers[0].id), Heard().emit))
    assert error.code is Code.ENGINE_FAILED
    assert servers[1].engine is not None
    assert servers[1].engine.jobs == []


async def test_who_would_have_said_something_else_refuses_and_is_not_blamed(swarm: Swarm, autojump_clock: Clock) -> None:
    broken = [engine(fails=EngineError("it crashed"), fails_after_words=3) for _ in range(2)]
    asker, servers = await several(swarm, *broken)
    for one in broken:
        one.says = lambda job, one=one: WHOLE if one.begun[-1] is None else "something else"  # type: ignore[misc]
    heard = Heard()
    error = await failure(asker.asking.route(ask(), heard.emit))
    assert (error.code, "".join(heard.tokens)) == (Code.REFUSED, " ".join(WORDS[:3]))
    assert len([one for one in asker.served if not one.ok]) == 1
    assert len(servers) == 2


async def test_the_answer_is_whole_where_only_the_farewell_was_lost(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    asker, servers = await several(swarm, engine(fails=EngineError("it crashed"), fails_after_words=5))
    request = replace(ask(), job=job(sampling=Sampling(max_tokens=5)))
    (bob,) = servers
    assert bob.engine is not None
    inner = bob.engine

    @asynccontextmanager
    async def generate(job: Job, begun: Begun | None) -> AsyncIterator[AsyncIterator[Chunk]]:
        async def words() -> AsyncIterator[Chunk]:
            for word in WORDS[:5]:
                yield Chunk(f"{word} ")
            raise EngineError("it crashed")

        yield words()

    inner.generate = generate  # type: ignore[method-assign, assignment]
    heard = Heard()
    await asker.asking.route(request, heard.emit)
    assert (heard.result.finish_reason, "".join(heard.tokens).split()) == ("length", WORDS[:5])


async def test_who_goes_on_is_told_of_every_token_however_they_travelled(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, engine(fails=EngineError("it crashed"), fails_after_words=6), engine())
    for server in servers:
        assert server.engine is not None
        server.engine.together = 3
    heard = Heard()
    await asker.asking.route(replace(ask(), job=job(sampling=Sampling(max_tokens=20))), heard.emit)
    assert "".join(heard.tokens) == " ".join(WORDS[:20])
    begun = [one for server in servers if server.engine for one in server.engine.begun if one is not None]
    assert all(one.tokens == len(one.text.split()) for one in begun)


async def test_a_continuation_is_held_to_our_limits_and_garbage_is_refused(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)
    long = encode(Continuation(job("x" * 200_000), Begun("y" * 100_000, 1)))
    assert (await failure(alice.calls.unary(bob.id, CONTINUE_METHOD, long, timeout=5))).code is Code.OVERSIZED
    for body in (b"", b"\xc1", encode([encode(job())])):
        assert (await failure(alice.calls.unary(bob.id, CONTINUE_METHOD, body, timeout=5))).code is Code.MALFORMED
    assert bob.engine is not None
    assert bob.engine.jobs == []


# ---- hedging


async def hedging(swarm: Swarm, *engines: FakeEngine) -> tuple[Peer, list[Peer]]:
    """As `several`, hedging, with a first-token time of 0.1 s learned from all of them."""
    asker, servers = await several(swarm, *engines)
    asker.asking._hedge = True
    for place in range(20):
        asker.asking._first_tokens.note(servers[place % len(servers)].id, 0.1, trio.current_time())
    return asker, servers


async def test_a_slow_first_word_is_hedged_and_the_loser_stops(swarm: Swarm, autojump_clock: Clock) -> None:
    slow, quick = FakeEngine(says=says, pause=5.0), engine()
    asker, servers = await hedging(swarm, slow, quick)
    for _ in range(8):
        heard, started = Heard(), trio.current_time()
        await asker.asking.route(ask(), heard.emit)
        assert heard.result.peer_id == servers[1].id
        assert "".join(heard.tokens) == WHOLE
        assert trio.current_time() - started < 5
        if len(heard.result.attempts) == 2:
            assert [attempt.outcome for attempt in heard.result.attempts] == ["slower", "ok"]
            await until(lambda: slow.running == 0, 1)
            break
    else:
        pytest.fail("the slow one was never asked first")
    assert all(one.ok for one in asker.served), "to be slower is no fault"


async def test_an_answer_without_a_word_ends_a_hedge_as_any_other(swarm: Swarm, autojump_clock: Clock) -> None:
    silent, slow = engine(), FakeEngine(says=says, pause=5.0)

    @asynccontextmanager
    async def generate(job: Job, begun: Begun | None) -> AsyncIterator[AsyncIterator[Chunk]]:
        async def nothing() -> AsyncIterator[Chunk]:
            await trio.sleep(1)
            yield Chunk("", "stop", Usage(7, 1))

        yield nothing()

    silent.generate = generate  # type: ignore[method-assign, assignment]
    asker, servers = await hedging(swarm, silent, slow)
    asker.asking._first_tokens.note(servers[1].id, 0.2, trio.current_time())  # the silent one is asked first
    heard, started = Heard(), trio.current_time()
    await asker.asking.route(ask(), heard.emit)
    assert (heard.tokens, heard.result.answer, heard.result.usage) == ([], "", Usage(7, 1))
    assert [(one.peer_id, one.outcome) for one in heard.result.attempts] == [(servers[0].id, "ok"), (servers[1].id, "slower")]
    assert trio.current_time() - started < 2
    await until(lambda: slow.running == 0, 1)


async def test_without_the_flag_and_without_measurements_nobody_is_asked_twice(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await hedging(swarm, FakeEngine(says=says, pause=1.0), FakeEngine(says=says, pause=1.0))
    asker.asking._hedge = False
    heard = Heard()
    await asker.asking.route(ask(), heard.emit)
    assert sum(len(server.engine.jobs) for server in servers if server.engine) == 1
    assert [attempt.outcome for attempt in heard.result.attempts] == ["ok"]


async def test_both_of_a_hedge_may_fail_and_the_third_is_asked(swarm: Swarm, autojump_clock: Clock) -> None:
    engines = [FakeEngine(says=says, pause=1.0, fails=EngineError("it crashed")) for _ in range(3)]
    asker, _ = await hedging(swarm, *engines)
    error = await failure(asker.asking.route(ask(), Heard().emit))
    assert (error.code, "3 peers were tried" in error.message) == (Code.ENGINE_FAILED, True)
    assert [len(one.jobs) for one in engines] == [1, 1, 1]
