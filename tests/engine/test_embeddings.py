"""Vectors for texts: what an engine's reply may be, and the real `openai` client on the real embedded engine."""

import base64
import json
from array import array
from typing import Any

import openai
import pytest

from daemon.engine.embeddings import BATCH_TEXTS, read_vectors
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import EngineError
from tests.engine.test_openai_client import ME, Running, client_of

ONE = base64.b64encode(array("f", [0.5, -1.0]).tobytes()).decode()


def reply(*vectors: object, tokens: int = 3, places: tuple[int, ...] | None = None) -> bytes:
    numbered = zip(places or range(len(vectors)), vectors, strict=True)
    entries = [{"index": place, "embedding": vector} for place, vector in numbered]
    return json.dumps({"data": entries, "usage": {"prompt_tokens": tokens}}).encode()


def test_decimals_and_base64_are_the_same_vector_and_order_is_by_index() -> None:
    made = read_vectors(reply(ONE, [0.5, -1.0]), 2)
    assert made.vectors == (array("f", [0.5, -1.0]),) * 2
    assert made.prompt_tokens == 3
    assert list(read_vectors(reply([1.0], [2.0], places=(1, 0)), 2).vectors[0]) == [2.0]


@pytest.mark.parametrize(
    "raw",
    [
        b"{", b"{}", reply(), reply(ONE, ONE), reply(ONE, places=(1,)), reply("###"), reply("AAA="), reply(""), reply([]),
        reply([1e400]), reply(["x"]), reply(ONE, tokens=-1), reply(ONE, tokens=2**31), reply("A" * 300_000),
        b'{"data": [{"index": 0, "embedding": [NaN]}]}',
    ],
    ids=repr,
)  # fmt: skip
def test_what_no_engine_may_say(raw: bytes) -> None:
    with pytest.raises(EngineError):
        read_vectors(raw, 1)


def test_vectors_of_two_lengths_are_refused() -> None:
    with pytest.raises(EngineError):
        read_vectors(reply([1.0], [1.0, 2.0]), 2)


@pytest.mark.live
@pytest.mark.slow
async def test_the_openai_client_gets_vectors_and_text_from_one_engine(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        assert engine.model is not None
        name = engine.model.name
        chat: Any = {"model": name, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, "logprobs": True}
        before = await call(lambda client: client.chat.completions.create(**chat))
        texts = [f"text {place}" for place in range(BATCH_TEXTS + 3)]
        made = await call(lambda client: client.embeddings.create(model=name, input=texts))
        assert [entry.index for entry in made.data] == list(range(len(texts)))
        assert made.usage.prompt_tokens == made.usage.total_tokens > len(texts)
        vectors = [entry.embedding for entry in made.data]
        assert {len(vector) for vector in vectors} == {len(vectors[0])}
        assert all(sum(number * number for number in vector) == pytest.approx(1.0, abs=1e-4) for vector in vectors)
        assert len({tuple(vector) for vector in vectors}) == len(texts)

        plain = await call(lambda client: client.embeddings.create(model=name, input=texts[3], encoding_format="float"))
        assert plain.data[0].embedding == pytest.approx(vectors[3], abs=1e-5)
        raw = await call(
            lambda client: client.embeddings.with_raw_response.create(model=name, input="x", encoding_format="base64")
        )
        assert raw.headers["x-swarmd-peer"] == ME
        assert raw.headers["x-request-id"] == "embd-id1"
        body = json.loads(raw.text if isinstance(raw.text, str) else raw.text())
        assert len(base64.b64decode(body["data"][0]["embedding"])) == 4 * len(vectors[0])
        assert body["swarm"]["attempts"] == [{"peer_id": ME, "outcome": "ok"}]

        given = {"model": name, "input": texts[3], "encoding_format": None, "dimensions": None}
        sent = await call(lambda client: client.post("/embeddings", body=given, cast_to=dict))
        assert sent["data"][0]["embedding"] == plain.data[0].embedding

        after = await call(lambda client: client.chat.completions.create(**chat))
        assert after.choices[0].message.content == before.choices[0].message.content
        assert [one.logprob for one in after.choices[0].logprobs.content] == [
            one.logprob for one in before.choices[0].logprobs.content
        ]


@pytest.mark.live
@pytest.mark.slow
async def test_bad_requests_for_vectors_are_named(tiny_engine: HttpEngine, running: Running) -> None:
    async with running(tiny_engine) as engine, client_of(engine) as call:
        assert engine.model is not None
        name = engine.model.name
        bad: list[tuple[dict[str, Any], str, int]] = [
            ({"input": "x", "model": ""}, "model", 400),
            ({"input": "x", "model": "a b"}, "model", 404),
            ({"input": "", "model": name}, "input", 400),
            ({"input": ["x", ""], "model": name}, "input", 400),
            ({"input": [], "model": name}, "input", 400),
            ({"input": [1, 2], "model": name}, "input", 400),
            ({"input": [[1, 2]], "model": name}, "input", 400),
            ({"input": ["x"] * 257, "model": name}, "input", 400),
            ({"input": "x" * (257 << 10), "model": name}, "input", 413),
            ({"input": "x", "model": name, "dimensions": 2}, "dimensions", 400),
            ({"input": "x", "model": name, "extra_body": {"truncate": 5}}, "truncate", 400),
            ({"input": "x", "model": name, "extra_body": {"peer": {"ignore": [ME]}}}, "peer", 404),
        ]
        for asked, param, status in bad:

            def create(client: openai.OpenAI, asked: dict[str, Any] = asked) -> Any:
                return client.embeddings.create(**asked)

            with pytest.raises(openai.APIStatusError) as refused:
                await call(create)
            assert (refused.value.status_code, refused.value.param) == (status, param), asked
        with pytest.raises(openai.APIStatusError) as refused:
            await call(lambda client: client.embeddings.create(model=name, input="word " * 20_000))
        assert refused.value.status_code == 413
        assert str(refused.value.request_id).startswith("embd-id")
        assert "context" in refused.value.message
