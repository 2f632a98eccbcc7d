"""What one engine serves to whom: slots, the queue, each peer's share, limits, slow readers, and work nobody wants any more."""

import contextlib

import pytest
import trio
import trio.testing

from daemon.config import LimitsConfig
from daemon.engine.interface import EngineError, EngineRefused, EngineState
from daemon.patience import Patience
from protocol.inference import METHOD, read_completion
from protocol.job import Job, Sampling
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError
from tests.daemon.conftest import FakeEngine, Peer, Swarm, failure, job, model, until

Clock = trio.testing.MockClock


async def infer(asker: Peer, server: Peer, wanted: Job | None = None) -> tuple[str, str]:
    """(text, finish reason) of one call."""
    async with asker.calls.stream(server.id, METHOD, encode(wanted or job()), timeout=300) as stream:
        text = b"".join([item async for item in stream]).decode()
    return text, read_completion(stream.result).finish_reason


async def local(peer: Peer) -> None:
    async with peer.serving.generate(job()) as chunks:
        async for _ in chunks:
            pass


async def test_a_call_streams_text_and_says_how_it_ended(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)
    assert await infer(alice, bob) == ("four two", "stop")
    assert (bob.serving.busy, bob.engine.running, bob.engine.stopped) == (0, 0, 0)
    assert bob.metrics.registry.get_sample_value("swarmd_serving_calls_total", {"outcome": "ok"}) == 1


async def test_more_calls_than_slots_wait_and_more_than_the_queue_are_sent_away(swarm: Swarm, autojump_clock: Clock) -> None:
    engine = FakeEngine(says=lambda job: "a b c", model=model(slots=2))
    alice, bob = await swarm(2, engine=engine, limits=LimitsConfig(queue=1, peer_calls=100))
    codes: list[str] = []

    async def one() -> None:
        try:
            await infer(alice, bob)
            codes.append("ok")
        except RemoteError as error:
            codes.append(f"{error.code} {error.retry_after}")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert sorted(codes) == ["ok", "ok", "ok", "overloaded 1.0", "overloaded 1.0"]
    assert bob.serving.busy == 0


async def test_a_call_that_waits_too_long_is_sent_away_and_leaves_the_queue(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    (alice,) = await swarm(1, engine=FakeEngine(says=lambda job: "so " * 100, pause=1.0, model=model(slots=1)))
    nursery.start_soon(local, alice)
    await until(lambda: alice.serving.busy == 1)
    started = trio.current_time()
    assert (await failure(local(alice))).code is Code.OVERLOADED
    assert trio.current_time() - started == pytest.approx(Patience().queue)
    assert alice.serving.busy == 1


async def test_one_peer_cannot_take_every_slot(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    engine = FakeEngine(says=lambda job: "so " * 100, pause=1.0, model=model(slots=8))
    limits = LimitsConfig(peer_calls=3)
    alice, bob, carol = await swarm(3, engine=engine, limits=limits)
    for _ in range(3):
        nursery.start_soon(infer, alice, bob)
    await until(lambda: bob.serving.busy == 3)
    refused = await failure(infer(alice, bob))
    assert (refused.code, refused.retry_after) == (Code.OVERLOADED, 1.0)
    engine.pause = 0.01
    assert (await infer(carol, bob, job(sampling=Sampling(max_tokens=1))))[0] == "so"


async def test_leaving_stops_the_engine_and_frees_the_slot(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2, engine=FakeEngine(says=lambda job: "so " * 100, pause=0.1))
    async with alice.calls.stream(bob.id, METHOD, encode(job()), timeout=60) as stream:
        await anext(aiter(stream))
        assert bob.engine.running == 1
    with trio.fail_after(1):
        await until(lambda: bob.engine.running == 0)
    assert (bob.engine.stopped, bob.serving.busy) == (1, 0)
    assert bob.metrics.registry.get_sample_value("swarmd_serving_calls_total", {"outcome": "cancelled"}) == 1


async def test_a_caller_that_is_killed_stops_the_engine(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2, engine=FakeEngine(says=lambda job: "so " * 100, pause=0.1))

    async def doomed() -> None:
        with pytest.raises(RemoteError):
            await infer(alice, bob)

    nursery.start_soon(doomed)
    await until(lambda: bob.engine.running == 1)
    alice.kill()
    with trio.fail_after(1):
        await until(lambda: bob.engine.running == 0)


async def test_a_reader_that_takes_nothing_loses_its_slot(swarm: Swarm, autojump_clock: Clock) -> None:
    engine = FakeEngine(says=lambda job: ("x" * 60_000 + " ") * 50, pause=0.0)
    alice, bob = await swarm(2, engine=engine)
    async with alice.calls.stream(bob.id, METHOD, encode(job()), timeout=300) as stream:
        await until(lambda: bob.engine.running == 1)
        started = trio.current_time()
        await until(lambda: bob.engine.running == 0)
        assert trio.current_time() - started == pytest.approx(Patience().reader, abs=1)
        with pytest.raises(RemoteError) as caught:
            async for _ in stream:
                pass
    assert caught.value.code is Code.DEADLINE
    assert bob.serving.busy == 0


async def test_a_peers_prompt_and_tokens_are_held_to_our_limits(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2, limits=LimitsConfig(prompt_bytes=1024, max_tokens=1))
    assert await infer(alice, bob) == ("four", "stop")
    refused = await failure(infer(alice, bob, job("ü" * 513)))
    assert (refused.code, refused.message) == (Code.OVERSIZED, "the prompt has 1026 bytes where this peer takes 1024")
    async with bob.serving.generate(job("x" * 2000)) as chunks:  # our own user is not held to them
        assert [chunk.text async for chunk in chunks] == ["four", " two", ""]


@pytest.mark.parametrize(
    ("state", "wanted", "code"),
    [
        (EngineState.STARTING, "", Code.OVERLOADED),
        (EngineState.RESTARTING, "tiny", Code.OVERLOADED),
        (EngineState.READY, "other", Code.NOT_FOUND),
    ],
)
async def test_what_cannot_be_served_says_why(
    swarm: Swarm, autojump_clock: Clock, state: EngineState, wanted: str, code: Code
) -> None:
    alice, bob = await swarm(2, engine=FakeEngine(model=model(), state=state, reason="it warms up"))
    assert (await failure(infer(alice, bob, job(model=wanted)))).code is code


async def test_a_peer_without_an_engine_serves_nothing(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2, no_engine=True)
    assert (await failure(infer(alice, bob))).code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("the engine crashed"), Code.ENGINE_FAILED), (EngineRefused("beyond the context"), Code.OVERSIZED)],
)
async def test_a_failing_engine_is_our_fault_and_a_job_that_never_fits_the_askers(
    swarm: Swarm, autojump_clock: Clock, error: EngineError, code: Code
) -> None:
    alice, bob = await swarm(2, engine=FakeEngine(fails=error))
    refused = await failure(infer(alice, bob))
    assert (refused.code, refused.message) == (code, str(error))
    assert bob.serving.busy == 0


async def test_garbage_is_refused_and_costs_nothing(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await swarm(2)
    for body in (b"", b"\xc1", b"\x93" * 1000, encode(["x", 1])):
        assert (await failure(alice.calls.unary(bob.id, METHOD, body, timeout=5))).code is Code.MALFORMED
    assert (bob.engine.jobs, bob.serving.busy, bob.transport.faults) == ([], 0, 0)


async def test_one_callers_flood_delays_another_by_one_request(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    engine = FakeEngine(says=lambda job: "so " * 10, pause=0.1, model=model(slots=1))
    alice, bob, carol = await swarm(3, engine=engine, limits=LimitsConfig(peer_calls=8, queue=4), patience=Patience(queue=60.0))
    refused: list[RemoteError] = []

    async def flood() -> None:
        try:
            await infer(alice, bob)
        except RemoteError as error:
            refused.append(error)

    for _ in range(8):
        nursery.start_soon(flood)
    await until(lambda: bob.serving.busy == 5)
    started = trio.current_time()
    assert (await infer(carol, bob))[0].startswith("so")
    assert trio.current_time() - started <= 2.3, "what ran, and its own second"
    assert len(refused) == 4, "three had no place, and one gave its own to the other caller"
    before = trio.current_time()
    await local(bob)
    assert trio.current_time() - before <= 2.1


async def test_retry_after_is_measured(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    engine = FakeEngine(says=lambda job: "so " * 10, pause=1.0, model=model(slots=1))
    alice, bob = await swarm(2, engine=engine, limits=LimitsConfig(queue=1))
    await infer(alice, bob)
    for _ in range(2):
        nursery.start_soon(failure_or_none, alice, bob)
    await until(lambda: bob.serving.busy == 2)
    refused = await failure(infer(alice, bob))
    assert refused.code is Code.OVERLOADED
    assert refused.retry_after == pytest.approx(20.0, rel=0.1), "two before it, ten seconds each"


async def failure_or_none(asker: Peer, server: Peer) -> None:
    with contextlib.suppress(RemoteError):
        await infer(asker, server)
