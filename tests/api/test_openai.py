"""The OpenAI surface as its users meet it: the real `openai` client over loopback and curl over the Unix socket."""

import json
import shutil
from typing import Any

import httpx
import openai
import pytest
import trio

from daemon.api.backend import AskRequest, Emit, PeerWish
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_TOKENS

PEER = "12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"

pytestmark = pytest.mark.live


def _client(api: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", api_key="unused", max_retries=0)


async def test_openai_client_whole(api: Any) -> None:
    def call() -> Any:
        with _client(api) as client:
            return client.chat.completions.create(model="tiny-all", messages=[{"role": "user", "content": "add 40 2"}], seed=3)

    reply = await trio.to_thread.run_sync(call)
    assert reply.choices[0].message.content == "forty two"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == 5
    assert api.backend.asked[0].job.model == "tiny-all"
    assert api.backend.asked[0].job.sampling.seed == 3
    assert api.backend.asked[0].timeout_s >= MAX_TOKENS / 3  # seconds, at three tokens a second


NOTHING = {
    "chat/completions": {
        "messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": None}, "service_tier": "auto",
        "modalities": ["text"], "safety_identifier": "me", "prompt_cache_key": "k", "frequency_penalty": 0.0, "logprobs": False,
    } | dict.fromkeys(("stream", "max_tokens", "stop", "n", "tools", "audio", "reasoning_effort", "a_field_of_tomorrow")),
    "completions": {"prompt": "hi", "echo": False} | dict.fromkeys(("stream", "logprobs", "stream_options", "best_of")),
    "responses": {
        "input": "hi", "reasoning": {"effort": None}, "text": {"format": {"type": "text"}, "verbosity": None}
    } | dict.fromkeys(("stream", "conversation", "prompt", "max_tool_calls", "stream_options")),
}  # fmt: skip


@pytest.mark.parametrize("path", NOTHING)
async def test_what_asks_for_nothing_is_no_reason_to_refuse(api: Any, path: str) -> None:
    def call() -> Any:
        with _client(api) as client:
            return client.post(f"/{path}", body={"model": "tiny-all", **NOTHING[path]}, cast_to=object)

    assert "forty two" in str(await trio.to_thread.run_sync(call))


@pytest.mark.parametrize("kind", ["chat", "responses"])
async def test_no_share_at_all_is_the_least_share(api: Any, kind: str) -> None:
    def call() -> None:
        with _client(api) as client:
            if kind == "chat":
                client.chat.completions.create(model="tiny-all", messages=[{"role": "user", "content": "hi"}], top_p=0)
            else:
                client.responses.create(model="tiny-all", input="hi", top_p=0)

    await trio.to_thread.run_sync(call)
    assert api.backend.asked[0].job.sampling.top_p_milli == 1


@pytest.mark.parametrize("where", ["chat", "completions", "responses", "control"])
async def test_an_answer_by_chance_is_another_each_time_unless_its_seed_is_named(api: Any, where: str) -> None:
    paths = {
        "chat": "v1/chat/completions",
        "completions": "v1/completions",
        "responses": "v1/responses",
        "control": "swarmd/v1/ask",
    }
    texts: dict[str, Any] = {"chat": {"messages": [{"role": "user", "content": "hi"}]}, "responses": {"input": "hi"}}
    text = texts.get(where, {"prompt": "hi"})
    named = [] if where == "responses" else [{"temperature": 1, "seed": 7}] * 2  # OpenAI's responses know no seed
    transport = httpx.HTTPTransport(uds=str(api.socket))

    def call() -> None:
        with httpx.Client(transport=transport, base_url="http://swarmd") as client:
            for sampling in (*[{"temperature": 1}] * 2, {}, {}, *named):
                assert client.post(f"/{paths[where]}", json=text | sampling).status_code == 200

    await trio.to_thread.run_sync(call)
    first, second, *others = [ask.job.sampling.seed for ask in api.backend.asked]
    assert first != second
    assert others == [0, 0] + [7] * len(named)


async def test_a_wish_for_peers_reaches_the_node(api: Any) -> None:
    def call() -> Any:
        with _client(api) as client:
            block = {"peer": {"only": [PEER], "ignore": [PEER], "sort": "latency", "max_rtt_ms": 20}}
            messages: Any = [{"role": "user", "content": "hi"}]
            return client.chat.completions.create(model="tiny-all", messages=messages, extra_body=block)

    await trio.to_thread.run_sync(call)
    assert api.backend.asked[0].wish == PeerWish(frozenset([PEER]), frozenset([PEER]), "latency", 0.02)


async def test_a_stream_has_its_request_id_in_its_head(api: Any) -> None:
    def call() -> tuple[str, list[Any]]:
        with _client(api) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            raw = client.chat.completions.with_raw_response.create(model="tiny-all", messages=messages, stream=True)
            return raw.headers["x-request-id"], list(raw.parse())

    request_id, chunks = await trio.to_thread.run_sync(call)
    assert {chunk.id for chunk in chunks} == {request_id}


@pytest.mark.parametrize("kind", ["chat", "completions", "responses", "n"])
async def test_a_stream_says_in_its_head_who_answers(api: Any, kind: str) -> None:
    def call() -> Any:
        with _client(api) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            if kind == "completions":
                return client.completions.with_raw_response.create(model="tiny-all", prompt="hi", stream=True).headers
            if kind == "responses":
                return client.responses.with_raw_response.create(model="tiny-all", input="hi", stream=True).headers
            count = 2 if kind == "n" else None
            chat = client.chat.completions.with_raw_response
            return chat.create(model="tiny-all", messages=messages, n=count, stream=True).headers

    headers = await trio.to_thread.run_sync(call)
    said = [headers.get(f"x-swarmd-{name}") for name in ("peer", "path", "attempts")]
    assert said == ([None] * 3 if kind == "n" else [PEER, "direct", "2"])
    asked = sorted(request.id for request in api.backend.asked)
    assert asked == ([f"{headers['x-request-id']}-{place}" for place in range(2)] if kind == "n" else [headers["x-request-id"]])


async def test_openai_client_streamed_with_usage(api: Any) -> None:
    def call() -> list[Any]:
        with _client(api) as client:
            options: Any = {"include_usage": True}
            messages: Any = [{"role": "user", "content": "hi"}]
            return list(client.chat.completions.create(model="tiny-all", messages=messages, stream=True, stream_options=options))

    chunks = await trio.to_thread.run_sync(call)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "forty two"
    assert chunks[-1].usage.completion_tokens == 2


@pytest.mark.parametrize("count", [1, 3])
async def test_the_client_s_own_helper_follows_choices_in_whatever_order_they_come(
    api: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, ended = api.backend, [trio.Event() for _ in range(count)]

    async def last_one_first(request: AskRequest, emit: Emit) -> None:
        place = request.job.sampling.seed - 7
        if place + 1 < count:
            await ended[place + 1].wait()
        await type(backend)._answer(backend, request, emit)
        ended[place].set()

    monkeypatch.setattr(backend, "_answer", last_one_first)

    def call() -> tuple[list[Any], Any]:
        asked: Any = {"model": "tiny-all", "messages": [{"role": "user", "content": "hi"}], "seed": 7, "n": count}
        with _client(api) as client, client.chat.completions.stream(**asked) as stream:
            chunks = [event.chunk for event in stream if event.type == "chunk"]
            return chunks, stream.get_final_completion()

    chunks, whole = await trio.to_thread.run_sync(call)
    assert [(one.index, one.message.role, one.message.content) for one in whole.choices] == [
        (place, "assistant", "forty two") for place in range(count)
    ]
    assert sum(chunk.choices[0].delta.role is not None for chunk in chunks) == count
    assert ("" in [chunk.choices[0].delta.content for chunk in chunks]) is (count > 1)


async def test_openai_client_completions_and_models(api: Any) -> None:
    def call() -> tuple[Any, list[str]]:
        with _client(api) as client:
            return client.completions.create(model="tiny-all", prompt="hi"), [model.id for model in client.models.list()]

    reply, models = await trio.to_thread.run_sync(call)
    assert reply.choices[0].text == "forty two"
    assert models == ["tiny-all", "swarm/rank", "swarm/majority", "swarm/auto"]


async def test_openai_client_retrieves_a_model_and_sends_its_prompt_in_a_list(api: Any) -> None:
    def call() -> tuple[list[str], Any]:
        with _client(api) as client:
            found = [client.models.retrieve(name).id for name in ("tiny-all", "swarm/rank")]
            with pytest.raises(openai.NotFoundError) as unknown:
                client.models.retrieve("gpt/9")
            with pytest.raises(openai.BadRequestError) as two:
                client.completions.create(model="tiny-all", prompt=["hi", "ho"])
            client.completions.create(model="tiny-all", prompt=["hi"])
            return found, [(error.value.code, error.value.param) for error in (unknown, two)]

    found, refused = await trio.to_thread.run_sync(call)
    assert found == ["tiny-all", "swarm/rank"]
    assert refused == [("model_not_found", "model"), ("invalid_value", "prompt")]
    assert [ask.job.turns[0].content for ask in api.backend.asked] == ["hi"]


@pytest.mark.parametrize("stream", [False, True])
async def test_round_model_returns_the_ranking_beside_the_answer(api: Any, stream: bool) -> None:
    def call() -> Any:
        with _client(api) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            reply: Any = client.chat.completions.create(model="swarm/rank", messages=messages, stream=stream)
            return list(reply)[-1] if stream else reply

    last = await trio.to_thread.run_sync(call)
    assert last.swarm["round"] == {"round_id": "ab", "winner": 0}
    assert api.backend.asked[0].strategy == "rank"


async def test_openai_client_sees_typed_errors(api: Any) -> None:
    api.backend.error = RemoteError(Code.NOT_FOUND, "no peer serves nope")

    def call() -> None:
        with _client(api) as client:
            client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])

    with pytest.raises(openai.NotFoundError, match="no peer serves nope"):
        await trio.to_thread.run_sync(call)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
async def test_a_failure_has_the_id_by_which_it_is_found(api: Any, path: str, stream: bool) -> None:
    api.backend.error = RemoteError(Code.GONE, "the peer has left")

    def call() -> None:
        asked = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
        field = {"chat/completions": "messages", "completions": "prompt", "responses": "input"}[path]
        with _client(api) as client:
            client.post(f"/{path}", body={"model": "tiny-all", field: asked[field], "stream": stream}, cast_to=object)

    with pytest.raises(openai.InternalServerError, match="the peer has left") as failed:
        await trio.to_thread.run_sync(call)
    assert failed.value.request_id == api.backend.asked[0].id != ""


@pytest.mark.parametrize(
    ("code", "status", "retry"),
    [(Code.OVERLOADED, 503, True), (Code.DEADLINE, 504, False), (Code.GONE, 502, False), (Code.REFUSED, 403, False)],
)
async def test_mesh_errors_become_http(api: Any, code: Code, status: int, retry: bool) -> None:
    api.backend.error = RemoteError(code, "no", retry_after=3.0 if retry else None)
    body = b'{"messages":[{"role":"user","content":"x"}]}'
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
    request += b"content-length: %d\r\n\r\n" % len(body)
    reply = await api.raw(request + body)
    assert reply.startswith(b"HTTP/1.1 %d" % status)
    assert (b"retry-after: 3" in reply) is retry


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_over_the_unix_socket(api: Any) -> None:
    url = "http://x/v1/chat/completions"
    body = '{"messages":[{"role":"user","content":"hi"}],"stream":true}'
    command = ["curl", "-sN", "--unix-socket", str(api.socket), url, "-H", "Content-Type: application/json", "-d", body]
    done = await trio.run_process(command, capture_stdout=True)
    lines = [line[6:] for line in done.stdout.decode().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    words = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(words) == "forty two"


@pytest.mark.parametrize("stream", ["true", "false"])
async def test_a_client_that_leaves_stops_the_work(api: Any, stream: str) -> None:
    api.backend.endless = True
    body = b'{"messages":[{"role":"user","content":"hi"}],"stream":%s}' % stream.encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += b"content-length: %d\r\n\r\n" % len(body)
    client = await trio.open_unix_socket(str(api.socket))
    await client.send_all(head + body)
    with trio.fail_after(2):
        while not api.backend.running:
            await trio.sleep(0.01)
    await client.aclose()
    with trio.fail_after(1):
        while api.backend.running:
            await trio.sleep(0.01)
    assert api.backend.cancelled == 1
    assert api.statuses == [499]


async def test_a_client_that_leaves_with_its_result_has_not_left_early(api: Any) -> None:
    body = b'{"prompt":"hi"}'
    head = b"POST /swarmd/v1/ask HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    for _ in range(5):
        client = await trio.open_unix_socket(str(api.socket))
        await client.send_all(head + body)
        received = b""
        while b'"answer"' not in received or not received.rstrip(b"0\r\n").endswith(b"}"):
            received += await client.receive_some()
        await client.aclose()
    with trio.fail_after(2):
        while len(api.statuses) < 5:
            await trio.sleep(0.01)
    assert api.statuses == [200] * 5
