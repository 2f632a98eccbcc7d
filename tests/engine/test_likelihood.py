"""An engine is made to say a text: grammars and vLLM's replies as pure functions, and llama.cpp itself, directly and by URL."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import pytest

from daemon.engine.dialect import LLAMA_CPP, VLLM
from daemon.engine.embedded import EmbeddedSettings, embedded_engine
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import Chunk, EngineError, EngineUnsupported
from daemon.engine.likelihood import gbnf_literal, grammar_request, prompt_request, read_prompt, said
from daemon.engine.url_engine import UrlSettings, url_engine
from protocol.delta import TokenLogprob
from protocol.extras import Extras
from protocol.job import Job, Role, Sampling, Turn
from protocol.likelihood import weighed
from protocol.output_check import deviations, text_of
from tests.engine.test_url_engine import bridged

Running = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]
TURNS = (Turn(Role.USER, "hello"),)
AWKWARD = 'a "b" \\n\\\n\tc [d] \N{SNOWMAN} \x07 |'


def prompt_reply(*places: dict[str, dict[str, object]] | None) -> bytes:
    return json.dumps({"prompt_logprobs": places, "choices": []}).encode()


def place(word: str, logprob: float, **others: float) -> dict[str, dict[str, object]]:
    rows = {"1": {"logprob": logprob, "rank": 3, "decoded_token": word}}
    return rows | {str(n): {"logprob": p, "decoded_token": other} for n, (other, p) in enumerate(others.items(), start=2)}


def test_a_literal_escapes_what_grammars_know_and_no_more() -> None:
    assert gbnf_literal('a"\\\n\x07\N{SNOWMAN}') == '"a\\"\\\\\\n\\U00000007\N{SNOWMAN}"'


def test_requests_name_their_fields() -> None:
    body = grammar_request(TURNS, "ab", 7, "m", LLAMA_CPP)
    assert (body["grammar"], body["max_tokens"], body["top_logprobs"], body["stream"]) == ('root ::= "ab"', 7, 20, True)
    body = prompt_request(TURNS, "ab", "m", VLLM)
    assert body["messages"][-1] == {"role": "assistant", "content": "ab"}
    assert (body["prompt_logprobs"], body["max_tokens"], body["continue_final_message"]) == (20, 1, True)
    assert not {"stream", "structured_outputs", "logprobs"} & set(body)


def test_a_prompt_is_followed_back_to_where_the_text_begins() -> None:
    raw = prompt_reply(None, place("user", -9.0), place("hel", -0.5, hal=-1.0), place("lo", -0.1, la=-2.5, le=-0.05))
    found = read_prompt(raw, "hello", 9)
    assert [(token.token, token.logprob) for token in found] == [("hel", -0.5), ("lo", -0.1)]
    assert [rival.token for rival in found[1].top_logprobs] == ["le", "lo", "la"]
    assert len(read_prompt(raw, "hello", 1)) == 1


@pytest.mark.parametrize("raw", [b"[", prompt_reply(place("hel", -0.5), place("lx", -0.1)), prompt_reply(place("llo", -0.5))])
def test_a_prompt_that_does_not_end_in_the_text_is_an_error(raw: bytes) -> None:
    with pytest.raises(EngineError):
        read_prompt(raw, "hello", 9)


def test_an_engine_that_knows_neither_way_is_unsupported() -> None:
    with pytest.raises(EngineUnsupported):
        read_prompt(b'{"choices": []}', "hello", 9)
    with pytest.raises(EngineUnsupported):
        said([Chunk("other", logprobs=(TokenLogprob("other", -0.1),))], "hello")
    with pytest.raises(EngineUnsupported):
        said([Chunk("hello")], "hello")


@pytest.mark.live
@pytest.mark.slow
async def test_llama_cpp_says_a_given_text_and_weighs_its_own_answer_alike(
    write_model: Callable[..., Path], run_folder: Path, running: Running, tmp_path: Path
) -> None:
    settings = EmbeddedSettings(write_model(tmp_path / "ascii.gguf", ascii=True), slots=2)
    async with running(embedded_engine(settings, run_folder, Random(1))) as engine:
        tokens: list[TokenLogprob] = []
        async with engine.generate(Job(TURNS, Sampling(max_tokens=9), extras=Extras(top_logprobs=20))) as chunks:
            async for chunk in chunks:
                tokens += chunk.logprobs
        text, claimed = text_of(weighed(tokens))
        scored = weighed(await engine.likelihood(TURNS, text, len(claimed)))
        assert len(claimed) > 3
        assert max(deviations(claimed, scored, greedy=True)) < 2_000
        awkward = await engine.likelihood(TURNS, AWKWARD, 100)
        assert b"".join(token.token for token in weighed(awkward)).decode() == AWKWARD
        assert all(len(token.top_logprobs) == 20 for token in awkward)

        command = engine._serving.command
        assert command is not None
        key_file = tmp_path / "key"
        key_file.write_text(command.key + "\n")
        key_file.chmod(0o600)
        async with bridged(command.socket) as url, running(url_engine(UrlSettings(url, key_file=key_file), Random(1))) as distant:
            assert max(deviations(claimed, weighed(await distant.likelihood(TURNS, text, len(claimed))), greedy=True)) < 2_000
            assert distant._forcings == ["grammar"]  # it is no vLLM, and that is not tried again
