"""Tools, forms of the answer and log-probabilities: how each engine is asked, and that the embedded one does it."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from daemon.engine.dialect import (
    ANY_SERVER,
    LLAMA_CPP,
    VLLM,
    Dialect,
    Transcriber,
    check_features,
    completion_request,
    decode_event,
)
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import Chunk, EngineError, EngineUnsupported
from protocol.delta import CallDelta, FunctionDelta
from protocol.extras import Extras, TurnNote
from protocol.job import Job, Role, Sampling, Turn, check_job

Running = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]

CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
SCHEMA = {"type": "object", "properties": {"ok": {"enum": ["yes", "no"]}}, "required": ["ok"], "additionalProperties": False}


def tools(*names: str) -> bytes:
    return json.dumps([{"type": "function", "function": {"name": name, "parameters": CITY}} for name in names]).encode()


def job(extras: Extras | None, tokens: int = 200) -> Job:
    return Job((Turn(Role.USER, "weather?"),), Sampling(max_tokens=tokens), extras=extras)


FUNCTION = {"name": "weather", "arguments": '{"city":"Rome"}'}
CALLED = json.dumps([{"id": "call_1", "type": "function", "function": FUNCTION}]).encode()
CONVERSATION = Job(
    (Turn(Role.USER, "weather?"), Turn(Role.ASSISTANT, ""), Turn(Role.USER, "sunny")),
    Sampling(max_tokens=8),
    extras=Extras(tools("weather"), notes=(TurnNote(1, tool_calls=CALLED), TurnNote(2, "call_1"))),
)


def body_of(extras: Extras, dialect: Dialect) -> dict[str, Any]:
    return completion_request(job(extras), "m", dialect)


@pytest.mark.parametrize(("dialect", "named"), [(LLAMA_CPP, "required"), (VLLM, None), (ANY_SERVER, None)])
def test_how_each_engine_is_asked_for_tools(dialect: Dialect, named: str | None) -> None:
    asked = body_of(Extras(tools("weather", "other"), parallel_tool_calls=False), dialect)
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["weather", "other"]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("auto", False)
    by_name = body_of(Extras(tools("weather", "other"), tool_choice="function:other"), dialect)
    assert by_name["tool_choice"] == (named or {"type": "function", "function": {"name": "other"}})
    assert len(by_name["tools"]) == (1 if named else 2)


def test_schema_and_log_probabilities_are_asked_for_by_openai_names() -> None:
    form = body_of(Extras(response_format="json_schema", schema_name="x", schema=json.dumps(SCHEMA).encode()), VLLM)
    assert form["response_format"] == {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    assert body_of(Extras(response_format="json_object"), VLLM)["response_format"] == {"type": "json_object"}
    chances = body_of(Extras(top_logprobs=3), VLLM)
    assert (chances["logprobs"], chances["top_logprobs"]) == (True, 3)
    assert not {"tools", "response_format", "logprobs"} & set(body_of(Extras(), VLLM))


def test_a_doubled_key_reaches_no_engine() -> None:
    twice = b'[{"type":"function","function":{"name":"a","description":"seen","description":"kept"}}]'
    assert body_of(Extras(twice), VLLM)["tools"] == [{"type": "function", "function": {"name": "a", "description": "kept"}}]


def test_calls_and_results_go_back_as_messages() -> None:
    messages = completion_request(CONVERSATION, "m", VLLM)["messages"]
    assert messages[1]["tool_calls"] == json.loads(CALLED)
    assert messages[2] == {"role": "tool", "content": "sunny", "tool_call_id": "call_1"}


def test_a_call_without_arguments_goes_back_as_one_of_none() -> None:
    called = b'[{"id":"c","type":"function","function":{"name":"now","arguments":""}}]'
    asked = Job((Turn(Role.ASSISTANT, ""),), extras=Extras(notes=(TurnNote(0, tool_calls=called),)))
    sent = completion_request(check_job(asked), "m", VLLM)["messages"][0]["tool_calls"]
    assert sent == [{"id": "c", "type": "function", "function": {"name": "now", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("extras", "named"),
    [
        (Extras(tools("a")), "tools"),
        (Extras(response_format="json_object"), "response_format"),
        (Extras(top_logprobs=0), "logprobs"),
    ],
)
def test_an_engine_without_says_which_parameter(extras: Extras, named: str) -> None:
    with pytest.raises(EngineUnsupported, match=f"'{named}'"):
        check_features(job(extras), frozenset())
    check_features(job(extras), frozenset((named,)))  # type: ignore[arg-type]
    check_features(job(None), frozenset())


def event(delta: dict[str, Any], finish: str | None = None) -> Any:
    return decode_event(json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}))


def test_calls_are_passed_on_to_who_asked_alone() -> None:
    call = {"tool_calls": [{"index": 1, "id": "c", "type": "function", "function": {"name": "weather", "arguments": "{"}}]}
    asked = Transcriber(Extras(tools("weather")))
    assert asked.chunk_of(event(call)) == Chunk("", tool_calls=(CallDelta(1, "c", "function", FunctionDelta("weather", "{")),))
    asked.chunk_of(event({}, "tool_calls"))
    assert asked.last().finish_reason == "tool_calls"
    plain = Transcriber()
    assert plain.chunk_of(event(call)) is None
    plain.chunk_of(event({}, "tool_calls"))
    assert plain.last().finish_reason == "stop"
    with pytest.raises(EngineError, match="more tool calls"):
        asked.chunk_of(event({"tool_calls": [{"index": 64}]}))


def test_odd_bytes_of_a_token_are_left_out() -> None:
    rival = {"token": "y", "logprob": -2, "bytes": [121]}
    token = {"token": "x" * 500, "logprob": -1.0, "bytes": [300], "top_logprobs": [rival] * 30}
    raw = {"choices": [{"delta": {"content": "x"}, "logprobs": {"content": [token]}}]}
    chunk = Transcriber(Extras(top_logprobs=2)).chunk_of(decode_event(json.dumps(raw)))
    assert chunk is not None
    (only,) = chunk.logprobs
    assert (len(only.token), only.bytes, len(only.top_logprobs), only.top_logprobs[0].bytes) == (128, None, 2, [121])


# --- the embedded engine --------------------------------------------------------------------------------------------------------


async def answer(engine: HttpEngine, asked: Job) -> tuple[list[Chunk], Chunk]:
    async with engine.generate(asked) as chunks:
        found = [chunk async for chunk in chunks]
    return found[:-1], found[-1]


def calls_of(chunks: list[Chunk]) -> list[tuple[str, str]]:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for call in (call for chunk in chunks for call in chunk.tool_calls):
        assert call.function is not None
        names[call.index] = names.get(call.index, "") + (call.function.name or "")
        arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    return [(names[index], arguments[index]) for index in sorted(names)]


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", "function:weather"])
async def test_the_embedded_engine_calls_a_tool(tool_engine: HttpEngine, running: Running, choice: str) -> None:
    async with running(tool_engine) as engine:
        assert engine.model is not None
        assert engine.model.features == {"tools", "response_format", "logprobs"}
        chunks, last = await answer(engine, job(Extras(tools("weather"), choice, parallel_tool_calls=False)))
        ((name, arguments),) = calls_of(chunks)
        assert name == "weather"
        assert json.loads(arguments)["city"] in ("Paris", "Rome")
        assert last.finish_reason == "tool_calls"
        assert (await answer(engine, CONVERSATION))[1].finish_reason in ("length", "stop")


@pytest.mark.live
@pytest.mark.slow
async def test_the_embedded_engine_keeps_to_a_schema_and_gives_logprobs(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine:
        assert engine.model is not None
        assert engine.model.features == {"response_format", "logprobs"}  # its template shows no tools to the model
        with pytest.raises(EngineUnsupported, match="'tools'"):
            await answer(engine, job(Extras(tools("weather"))))
        schema = Extras(response_format="json_schema", schema=json.dumps(SCHEMA).encode(), top_logprobs=2)
        chunks, last = await answer(engine, job(schema))
        assert json.loads("".join(chunk.text for chunk in chunks))["ok"] in ("yes", "no")
        assert last.finish_reason == "stop"
        tokens = [token for chunk in chunks for token in chunk.logprobs]
        assert last.usage is not None
        assert last.usage.completion_tokens - len(tokens) in (0, 1)  # the end of the answer is a token too
        assert {len(token.top_logprobs) for token in tokens} == {2}
        assert all(token.logprob <= 0 for token in tokens)
        assert (await answer(engine, job(schema, tokens=2)))[1].finish_reason == "length"
