"""Vectors by a chosen peer: who is asked, who takes over, and what a peer cannot make us believe."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing
from msgspec import structs

from daemon.api.backend import EmbedRequest, PeerWish
from daemon.calls import InboundCall
from daemon.config import LimitsConfig
from daemon.embedding import Embedding
from daemon.engine.interface import EngineError, Vectors
from protocol.embedding import METHOD, Embedded, EmbedJob, write_vector
from protocol.wire.codec import encode
from protocol.wire.errors import Code
from tests.daemon.conftest import FakeEngine, Peer, Swarm, failure, full, model, until
from tests.daemon.test_asking import several

Clock = trio.testing.MockClock
JOB = EmbedJob(("one", "two", "three"), "tiny")
EMBEDS = replace(model("tiny"), embeds=True)


async def embed(peer: Peer, job: EmbedJob = JOB, **options: object) -> object:
    return await Embedding(peer.asking).embed(EmbedRequest(job, **options))  # type: ignore[arg-type]


async def test_only_who_offers_vectors_is_asked_and_all_come_from_one(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (_, able) = await several(swarm, FakeEngine(), FakeEngine(model=EMBEDS))
    result = await Embedding(asker.asking).embed(EmbedRequest(JOB, id="embd-abcdef"))
    assert (result.peer_id, result.path, result.prompt_tokens) == (able.id, "direct", 3)
    assert result.config_digest == EMBEDS.config_digest
    assert able.engine is not None
    assert result.vectors == (await able.engine.embed(JOB.texts)).vectors
    shown = asker.asking.notes.find("embd-abcdef").shown()
    assert (shown["kind"], shown["outcome"], shown["peer_id"]) == ("embeddings", "ok", able.id)
    assert [one["reason"] for one in shown["ruled_out"]] == ["its engine gives no embeddings"]
    own = await Embedding(able.asking).embed(EmbedRequest(JOB))
    assert (own.path, own.vectors) == ("local", result.vectors)
    assert [(one.peer, one.ok) for one in asker.served] == [(able.id, True)]


async def test_the_path_is_that_of_the_call_also_to_a_peer_that_was_met_for_it(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, _ = await several(swarm, FakeEngine(model=EMBEDS))
    found = [structs.replace(one, path="unknown") for one in asker.asking.candidates("")]
    asker.asking.candidates = lambda model: found
    assert (await Embedding(asker.asking).embed(EmbedRequest(JOB))).path == "direct"


async def test_the_next_peer_gives_all_where_one_fails(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, servers = await several(swarm, FakeEngine(model=EMBEDS), FakeEngine(model=EMBEDS))
    for server in servers:
        assert server.engine is not None
    failing, other = servers
    failing.engine.fails = EngineError("no memory")  # type: ignore[union-attr]
    asker.asking._first_tokens.note(other.id, 2.0, trio.current_time())  # the failing one is preferred
    result = await Embedding(asker.asking).embed(EmbedRequest(JOB))
    assert [(one.peer_id, one.outcome) for one in result.attempts] == [(failing.id, "engine_failed"), (other.id, "ok")]
    assert result.peer_id == other.id
    other.engine.fails = EngineError("no memory")  # type: ignore[union-attr]
    assert (await failure(embed(asker))).code is Code.ENGINE_FAILED
    assert (await failure(embed(asker))).code is Code.OVERLOADED, "they are asked again later"


async def test_nobody_to_ask_says_why(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (able,) = await several(swarm, FakeEngine(model=EMBEDS))
    assert (await failure(embed(asker, EmbedJob(("x",), "other")))).code is Code.NOT_FOUND
    error = await failure(embed(asker, wish=PeerWish(ignore=frozenset({able.id}))))
    assert (error.code, "'peer'" in error.message) == (Code.NOT_FOUND, True)


async def test_a_model_without_vectors_is_unsupported(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, _ = await several(swarm, FakeEngine())
    assert (await failure(embed(asker))).code is Code.UNSUPPORTED


async def test_texts_of_strangers_are_held_to_our_limits_and_wait_their_turn(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, (able,) = await several(swarm, FakeEngine(model=EMBEDS))
    long = EmbedJob(("x" * 900, "y" * 900), "tiny")
    able.serving._limits = LimitsConfig(prompt_bytes=1024)
    assert (await failure(embed(asker, long))).code is Code.OVERSIZED
    with full(able):
        assert (await failure(embed(asker))).code is Code.OVERLOADED
    assert (await failure(asker.calls.unary(able.id, METHOD, b"\xc1", timeout=5))).code is Code.MALFORMED
    wrong = encode(EmbedJob(("x",), "other"))
    assert (await failure(asker.calls.unary(able.id, METHOD, wrong, timeout=5))).code is Code.NOT_FOUND


async def test_leaving_stops_the_engine(swarm: Swarm, autojump_clock: Clock) -> None:
    stopped = []

    class Slow(FakeEngine):
        async def embed(self, texts: Sequence[str]) -> Vectors:
            try:
                await trio.sleep(100)
            finally:
                stopped.append(trio.current_time())
            raise AssertionError("nobody waits that long")

    asker, _ = await several(swarm, Slow(model=EMBEDS))
    with trio.move_on_after(1):
        await embed(asker)
    left = trio.current_time()
    await until(lambda: stopped, 1)
    assert stopped[0] - left < 0.2
    assert (await failure(embed(asker, timeout_s=0.5))).code is Code.DEADLINE


LIES = {
    "not a number": [[math.nan]] * 3,
    "two lengths": [[1.0], [1.0, 2.0], [1.0]],
    "too few": [[1.0]] * 2,
    "too many": [[1.0]] * 4,
    "nothing": [],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_peer_is_malformed_and_blamed(swarm: Swarm, autojump_clock: Clock, lie: str) -> None:
    asker, (liar,) = await several(swarm, FakeEngine(model=EMBEDS))

    async def handler(call: InboundCall) -> bytes:
        for vector in LIES[lie]:
            await call.send(write_vector(array("f", vector)))
        return encode(Embedded(3))

    liar.calls._handlers[METHOD] = handler
    assert (await failure(embed(asker))).code is Code.MALFORMED
    assert [(one.peer, one.ok) for one in asker.served] == [(liar.id, False)]
