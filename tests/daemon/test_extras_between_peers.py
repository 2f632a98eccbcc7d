"""Tools and log-probabilities from one peer to another: given piece by piece, refused by name where they are not had."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest
import trio.testing

from daemon.api.backend import TokenEvent
from daemon.engine.dialect import check_features
from daemon.engine.interface import Chunk
from protocol.delta import CallDelta, FunctionDelta, TokenLogprob
from protocol.extras import Extras
from protocol.inference import Begun
from protocol.job import Job, Usage
from protocol.wire.errors import Code, RemoteError
from tests.daemon.conftest import FakeEngine, Heard, Peer, Swarm, ask, model, until

Clock = trio.testing.MockClock

CALL = CallDelta(0, "c1", "function", FunctionDelta("weather", '{"city":'))
REST = CallDelta(0, function=FunctionDelta(arguments='"Rome"}'))
TOKEN = TokenLogprob("hm", -0.25)
TOOLS = b'[{"type":"function","function":{"name":"weather"}}]'


class ToolEngine(FakeEngine):
    """Calls a function in two pieces, if its model is one that has tools."""

    @asynccontextmanager
    async def generate(self, job: Job, begun: Begun | None = None) -> AsyncIterator[AsyncIterator[Chunk]]:
        assert self.model is not None
        check_features(job, self.model.features)
        async with aclosing(_pieces()) as pieces:
            yield pieces


async def _pieces() -> AsyncGenerator[Chunk, None]:
    yield Chunk("hm", logprobs=(TOKEN,))
    yield Chunk("", tool_calls=(CALL,))
    yield Chunk("", tool_calls=(REST,))
    yield Chunk("", "tool_calls", Usage(1, 3), engine_s=0.5)


async def asked_of(swarm: Swarm, engine: FakeEngine) -> tuple[Peer, Heard]:
    transports = swarm.mesh(2, connected=True)
    asker = await swarm.start(transports[0], no_engine=True)
    await swarm.start(transports[1], engine)
    await until(lambda: len(asker.membership.candidates("")) == 1)
    return asker, Heard()


async def test_pieces_arrive_as_they_were_made(swarm: Swarm, autojump_clock: Clock) -> None:
    has = replace(model("tiny"), features=frozenset(("tools", "logprobs")))
    asker, heard = await asked_of(swarm, ToolEngine(model=has))
    request = ask()
    wanted = replace(request, job=Job(request.job.turns, extras=Extras(TOOLS, "auto", top_logprobs=0)))
    events: list[TokenEvent] = []

    async def emit(event: object) -> None:
        if isinstance(event, TokenEvent):
            events.append(event)
        await heard.emit(event)  # type: ignore[arg-type]

    await asker.asking.route(wanted, emit)
    assert events == [TokenEvent("hm", (), (TOKEN,)), TokenEvent("", (CALL,)), TokenEvent("", (REST,))]
    assert (heard.result.answer, heard.result.finish_reason, heard.result.engine_s) == ("hm", "tool_calls", 0.5)


async def test_a_peer_without_says_which_parameter_and_is_not_blamed(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, heard = await asked_of(swarm, ToolEngine(model=model("tiny")))
    request = ask()
    with pytest.raises(RemoteError, match="'tools' is not supported") as refused:
        await asker.asking.route(replace(request, job=Job(request.job.turns, extras=Extras(TOOLS))), heard.emit)
    assert refused.value.code is Code.UNSUPPORTED
    assert asker.served == []
