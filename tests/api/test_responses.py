"""The Responses endpoint as the real `openai` client uses it, and what it refuses."""

from typing import Any

import openai
import pytest
import trio

from protocol.job import Role, Turn
from protocol.wire.errors import Code, RemoteError

pytestmark = pytest.mark.live


def client_of(api: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="unused", max_retries=0)


async def test_text_in_text_out(api: Any) -> None:
    def call() -> Any:
        with client_of(api) as client:
            asked: Any = {"max_output_tokens": 9, "temperature": 0.5, "store": False}
            return client.responses.with_raw_response.create(model="tiny-all", input="add 40 2", instructions="be brief", **asked)

    raw = await trio.to_thread.run_sync(call)
    reply = raw.parse()
    assert (reply.output_text, reply.status, reply.model) == ("forty two", "completed", "tiny-all")
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.total_tokens) == (3, 2, 5)
    assert raw.headers["x-request-id"] == reply.id
    (asked,) = api.backend.asked
    assert asked.job.turns == (Turn(Role.SYSTEM, "be brief"), Turn(Role.USER, "add 40 2"))
    assert (asked.job.sampling.max_tokens, asked.job.sampling.temperature_milli) == (9, 500)


async def test_messages_with_an_earlier_answer(api: Any) -> None:
    parts: Any = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "user", "content": "d"},
    ]

    def call() -> Any:
        with client_of(api) as client:
            return client.responses.create(model="tiny-all", input=parts)

    await trio.to_thread.run_sync(call)
    assert [turn.content for turn in api.backend.asked[0].job.turns] == ["ab", "c", "d"]


@pytest.mark.parametrize("model", ["tiny-all", "swarm/rank"])
async def test_streamed_events_come_in_their_order(api: Any, model: str) -> None:
    def call() -> list[Any]:
        with client_of(api) as client:
            return list(client.responses.create(model=model, input="hi", stream=True))

    events = await trio.to_thread.run_sync(call)
    names = [event.type for event in events]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "forty two"
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * len(deltas),
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].response.output_text == "forty two"


async def test_the_client_s_own_stream_helper_follows(api: Any) -> None:
    def call() -> Any:
        with client_of(api) as client, client.responses.stream(model="tiny-all", input="hi") as stream:
            return stream.get_final_response()

    assert (await trio.to_thread.run_sync(call)).output_text == "forty two"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"conversation": "c"}, "conversation"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "  "}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "input"),
    ],
)
async def test_what_is_not_there_is_named(api: Any, fields: dict[str, Any], param: str) -> None:
    def call() -> None:
        with client_of(api) as client:
            client.post("/responses", body={"model": "tiny-all", "input": "hi"} | fields, cast_to=object)

    with pytest.raises(openai.BadRequestError) as refused:
        await trio.to_thread.run_sync(call)
    assert refused.value.param == param
    assert not api.backend.asked


async def test_mesh_errors_are_typed(api: Any) -> None:
    api.backend.error = RemoteError(Code.NOT_FOUND, "no peer serves nope")

    def call() -> None:
        with client_of(api) as client:
            client.responses.create(model="nope", input="hi")

    with pytest.raises(openai.NotFoundError, match="no peer serves nope"):
        await trio.to_thread.run_sync(call)
