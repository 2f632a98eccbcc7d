"""The real `openai` client on a real embedded engine, through the API and our own serving: what is asked for is what comes."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from random import Random
from typing import Any

import openai
import pytest
import trio

from daemon.api.app import build_app
from daemon.api.backend import AskRequest, EmbedRequest, EmbedResult, Emit
from daemon.api.listeners import open_tcp
from daemon.api.server import HttpLimits, HttpServer, Listener
from daemon.asking import Asking
from daemon.config import LimitsConfig
from daemon.embedding import Embedding
from daemon.engine.http_engine import HttpEngine
from daemon.metrics import Metrics
from daemon.own_offer import features_of
from daemon.selector import Candidate
from daemon.serving import Serving
from protocol.wire.ids import PeerId

pytestmark = [pytest.mark.live, pytest.mark.slow]

Running = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]
Call = Callable[[Callable[[openai.OpenAI], Any]], Any]

ME = PeerId("12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3")
ASKED: Any = [{"role": "user", "content": "weather?"}]
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}


class OneEngine:
    """The part of a node that answers with its own engine alone."""

    def __init__(self, engine: HttpEngine) -> None:
        assert engine.model is not None
        features = features_of(engine.model)
        mine = Candidate(ME, engine.model.name, 2, "local", features=features)
        serving = Serving(engine, LimitsConfig(), Metrics())
        calls: Any = None  # nobody else is there to be called
        self._asking = Asking(serving, calls, lambda model: [mine], lambda served: None, Random(1))

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        return await Embedding(self._asking).embed(request)

    async def ask(self, request: AskRequest, emit: Emit) -> None:
        await self._asking.route(request, emit)


@asynccontextmanager
async def client_of(engine: HttpEngine) -> AsyncIterator[Call]:
    """Runs a function of a client in a thread of its own, as the client blocks."""
    backend: Any = OneEngine(engine)
    app = build_app(backend, Metrics().registry, None, lambda: 1000.0, lambda: "id1")
    server = HttpServer(app, HttpLimits(), lambda scope, status: None)
    listener, port = await open_tcp("127.0.0.1", 0, False)

    async def on_tcp(stream: trio.SocketStream) -> None:
        await server.serve(stream, Listener("tcp", port))

    def run(function: Callable[[openai.OpenAI], Any]) -> Any:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", max_retries=0) as client:
            return function(client)

    async def call(function: Callable[[openai.OpenAI], Any]) -> Any:
        return await trio.to_thread.run_sync(run, function)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        nursery.start_soon(trio.serve_listeners, on_tcp, [listener])
        yield call
        nursery.cancel_scope.cancel()


def create(asked: dict[str, Any], client: openai.OpenAI) -> Any:
    return client.chat.completions.create(**asked)


async def test_a_tool_is_called_whole_and_streamed_and_its_result_goes_back(tool_engine: HttpEngine, running: Running) -> None:
    async with running(tool_engine) as engine, client_of(engine) as call:
        asked: Any = {"model": "", "messages": ASKED, "tools": [TOOL], "tool_choice": "required", "max_tokens": 2000}
        asked |= {"temperature": 1.0, "parallel_tool_calls": False}
        whole = await call(lambda client: client.chat.completions.create(**asked))
        (made,) = whole.choices[0].message.tool_calls
        assert whole.choices[0].finish_reason == "tool_calls"
        assert made.function.name == "weather"
        assert json.loads(made.function.arguments)["city"] in ("Paris", "Rome")

        pieces = await call(lambda client: list(client.chat.completions.create(**asked, stream=True)))
        deltas = [one for piece in pieces for choice in piece.choices for one in choice.delta.tool_calls or ()]
        assert deltas[0].id
        assert "".join(one.function.name or "" for one in deltas) == "weather"
        assert "".join(one.function.arguments or "" for one in deltas) == made.function.arguments
        assert pieces[-1].choices[0].finish_reason == "tool_calls"

        result = {"role": "tool", "tool_call_id": made.id, "content": "sunny"}
        asked |= {"messages": [*ASKED, whole.choices[0].message, result], "tool_choice": "none", "max_tokens": 8}
        assert (await call(lambda client: client.chat.completions.create(**asked))).usage.completion_tokens == 8


async def test_tools_are_called_in_parallel(tool_engine: HttpEngine, running: Running) -> None:
    async with running(tool_engine) as engine, client_of(engine) as call:
        asked: Any = {"model": "", "messages": ASKED, "tools": [TOOL], "tool_choice": "required", "max_tokens": 2000}
        found = []
        for seed in range(4):
            once = asked | {"temperature": 1.0, "seed": seed}
            reply = await call(partial(create, once))
            found.append(reply.choices[0].message.tool_calls or [])
        assert max(map(len, found)) > 1
        made = [one for calls in found for one in calls]
        assert len({one.id for one in made}) == len(made)
        assert {json.loads(one.function.arguments)["city"] for one in made} <= {"Paris", "Rome"}


async def test_a_schema_and_log_probabilities(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        asked: Any = {"model": "", "messages": ASKED, "response_format": FORM, "max_tokens": 200}
        asked |= {"logprobs": True, "top_logprobs": 2}
        whole = await call(lambda client: client.chat.completions.create(**asked))
        assert json.loads(whole.choices[0].message.content)["city"] in ("Paris", "Rome")
        tokens = whole.choices[0].logprobs.content
        assert "".join(token.token for token in tokens).startswith(whole.choices[0].message.content)
        assert {len(token.top_logprobs) for token in tokens} == {2}

        pieces = await call(lambda client: list(client.chat.completions.create(**asked, stream=True)))
        streamed = [token for piece in pieces for choice in piece.choices if choice.logprobs for token in choice.logprobs.content]
        assert [token.token for token in streamed] == [token.token for token in tokens]


async def test_an_engine_without_tools_is_a_400_that_names_them(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        with pytest.raises(openai.BadRequestError) as refused:
            await call(lambda client: client.chat.completions.create(model="", messages=ASKED, tools=[TOOL]))
        assert (refused.value.param, refused.value.code) == ("tools", "unsupported")


async def test_a_wish_that_no_peer_meets_is_a_404_that_names_it(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        asked: Any = {"model": "", "messages": ASKED, "max_tokens": 2}
        wishes: list[dict[str, Any]] = [{"ignore": [ME]}, {"only": []}]
        for wish in wishes:
            with pytest.raises(openai.NotFoundError) as refused:
                await call(partial(create, asked | {"extra_body": {"peer": wish}}))
            assert refused.value.param == "peer"
        near = {"peer": {"only": [ME], "max_rtt_ms": 0, "sort": "load"}}
        assert (await call(lambda client: client.chat.completions.create(**asked, extra_body=near))).usage.completion_tokens == 2


async def test_the_head_says_what_all_but_the_engine_took(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        asked: Any = {"model": "", "messages": ASKED, "max_tokens": 300}
        raw = await call(lambda client: client.chat.completions.with_raw_response.create(**asked))
        assert (raw.headers["x-swarmd-peer"], raw.headers["x-swarmd-attempts"]) == (ME, "1")
        assert 0 <= float(raw.headers["x-swarmd-overhead-ms"]) < 5000
        several = await call(lambda client: client.chat.completions.with_raw_response.create(**asked, n=2))
        assert several.headers["x-swarmd-attempts"] == "2"
        assert "x-swarmd-overhead-ms" not in several.headers


async def test_responses_are_cut_where_they_were_asked_to_be(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        reply = await call(lambda client: client.responses.create(model="", input="hello", max_output_tokens=3))
        assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert reply.usage.output_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_have_seeds_of_their_own(tiny_engine: HttpEngine, running: Running, stream: bool) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        asked: Any = {"model": "", "messages": ASKED, "max_tokens": 12, "temperature": 1.5}

        def text(reply: Any, index: int) -> str:
            if not stream:
                return str(reply.choices[index].message.content)
            found = [choice for piece in reply for choice in piece.choices if choice.index == index]
            assert [choice.finish_reason for choice in found if choice.finish_reason] == ["length"]
            return "".join(choice.delta.content or "" for choice in found)

        async def ask(**more: Any) -> Any:
            def create(client: openai.OpenAI) -> Any:
                reply = client.chat.completions.create(**asked, **more, stream=stream)
                return list(reply) if stream else reply

            return await call(create)

        several = await ask(n=3, seed=5)
        texts = [text(several, index) for index in range(3)]
        assert len(set(texts)) == 3
        assert texts == [text(await ask(seed=seed), 0) for seed in (5, 6, 7)]
        if not stream:
            assert several.usage.completion_tokens == 36
