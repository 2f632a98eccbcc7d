"""The rest of an answer that another peer began: the real engine, cut at every token, says what one peer alone would have."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from daemon.engine.catalog import models_folder
from daemon.engine.completions import CompletionClient
from daemon.engine.continuing import CannotContinue, Remainder, Resumption, resumed_request, resumptions
from daemon.engine.dialect import ANY_SERVER, LLAMA_CPP, VLLM, CompletionEvent, JsonObject, completion_request
from daemon.engine.embedded import EmbeddedSettings, embedded_engine
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import Chunk, EngineRefused
from protocol.inference import Begun
from protocol.job import Job, Role, Sampling, Turn, Usage

Running = Callable[[HttpEngine], AbstractAsyncContextManager[HttpEngine]]

QUESTIONS = ["sort hgcabdfe", "add 47 38", "rev kwertyui", "what is this", "bool not (t and f)"]


def job(text: str, **sampling: object) -> Job:
    return Job((Turn(Role.USER, text),), Sampling(**{"max_tokens": 24, **sampling}))  # type: ignore[arg-type]


async def finish(engine: HttpEngine, wanted: Job, begun: Begun | None = None) -> tuple[list[str], str | None, Usage | None]:
    async with engine.generate(wanted, begun) as chunks:
        got = [chunk async for chunk in chunks]
    return [chunk.text for chunk in got if chunk.text], got[-1].finish_reason, got[-1].usage


@asynccontextmanager
async def tiny(running: Running, run_folder: Path, model: str = "tiny-all") -> AsyncIterator[HttpEngine]:
    settings = EmbeddedSettings(models_folder() / f"{model}.gguf", name=model, slots=2)
    async with running(embedded_engine(settings, run_folder, Random(1))) as engine:
        yield engine


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-all", "tiny-sort-bool"])
@pytest.mark.parametrize("sampling", [{}, {"temperature_milli": 1500, "seed": 5}, {"temperature_milli": 900, "seed": 12}])
async def test_a_cut_at_any_token_changes_nothing(
    running: Running, run_folder: Path, model: str, sampling: dict[str, object]
) -> None:
    cuts = 0
    async with tiny(running, run_folder, model) as engine:
        for question in QUESTIONS:
            wanted = job(question, **sampling)
            texts, reason, used = await finish(engine, wanted)
            pieces = "".join(texts)  # a token of these models is one character, and a piece is as many as came at once
            for cut in range(1, len(pieces) + 1):
                begun = Begun(pieces[:cut], cut)
                rest, again, counted = await finish(engine, wanted, begun)
                assert counted is not None
                assert used is not None
                assert begun.text + "".join(rest) == pieces
                assert again == reason
                assert counted.completion_tokens >= len(pieces)
                cuts += 1
    assert cuts > 15


@pytest.mark.live
@pytest.mark.slow
async def test_the_greedy_rest_alone_is_generated_and_the_limit_and_the_stop_hold_for_the_whole(
    running: Running, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[JsonObject] = []
    stream = CompletionClient.stream

    def noting(self: CompletionClient, body: JsonObject) -> AbstractAsyncContextManager[AsyncIterator[list[CompletionEvent]]]:
        asked.append(body)
        return stream(self, body)

    async with tiny(running, run_folder) as engine:
        monkeypatch.setattr(CompletionClient, "stream", noting)
        rest, reason, usage = await finish(engine, job("sort hgcabdfe", max_tokens=6), Begun("abcd", 4))
        assert ("".join(rest), reason) == ("ef", "length")
        assert usage is not None
        assert usage.completion_tokens == 6
        assert [(body["max_tokens"], body["messages"][-1]["content"]) for body in asked] == [(2, "abcd")]
        rest, reason, _ = await finish(engine, job("sort hgcabdfe", stop=("ef",)), Begun("ab", 2))
        assert ("".join(rest), reason) == ("cd", "stop")
        assert (await finish(engine, job("sort hgcabdfe"), Begun("abcdefgh", 8)))[:2] == ([], "stop")


@pytest.mark.live
@pytest.mark.slow
async def test_what_the_engine_would_not_have_said_is_not_continued(running: Running, run_folder: Path) -> None:
    async with tiny(running, run_folder) as engine:
        with pytest.raises(CannotContinue):
            await finish(engine, job("sort hgcabdfe", temperature_milli=700), Begun("zzz", 3))
        with pytest.raises(CannotContinue):  # longer than all that it says
            await finish(engine, job("sort hgcabdfe", temperature_milli=1), Begun("abcdefghabc", 11))


@pytest.mark.live
@pytest.mark.slow
async def test_a_way_that_the_engine_refuses_is_followed_by_saying_it_all_again(running: Running, run_folder: Path) -> None:
    turns = (Turn(Role.USER, "sort hgcabdfe"), Turn(Role.ASSISTANT, "ab"))  # llama.cpp completes one assistant's turn, not two
    async with tiny(running, run_folder) as engine:
        rest, reason, _ = await finish(engine, Job(turns, Sampling(max_tokens=24)), Begun("cd", 2))
    assert ("".join(rest), reason) == ("efgh", "stop")


def test_each_engine_is_given_what_it_can_complete() -> None:
    begun = Begun("one two ", 3)
    again = Resumption("", "one two ")
    assert list(resumptions(job("x"), begun, LLAMA_CPP)) == [Resumption("one two ", ""), again]
    assert list(resumptions(job("x"), begun, VLLM)) == [Resumption("one two", " "), again]
    assert list(resumptions(job("x"), begun, ANY_SERVER)) == [again]
    assert list(resumptions(job("x"), Begun(" \n", 1), VLLM)) == [Resumption("", " \n")]
    assert list(resumptions(job("x", temperature_milli=1), begun, LLAMA_CPP)) == [again]
    assert list(resumptions(job("x"), Begun("caf\ufffd", 4), LLAMA_CPP)) == [Resumption("", "caf\ufffd")]


def test_vllm_is_told_to_go_on_with_the_last_turn() -> None:
    wanted = completion_request(job("x", max_tokens=10), "m", VLLM)
    body = resumed_request(wanted, Resumption("one two", " "), Begun("one two ", 3), VLLM)
    assert (body["continue_final_message"], body["add_generation_prompt"], body["max_tokens"]) == (True, False, 7)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
    assert wanted["messages"] == [{"role": "user", "content": "x"}]
    assert resumed_request(wanted, Resumption("", "one"), Begun("one", 1), VLLM) == wanted


@pytest.mark.parametrize("pieces", [["one two"], ["o", "ne t", "wo"], ["one", " tw", "o three"], list("one two three")])
def test_what_was_said_before_is_taken_off_however_it_is_cut(pieces: list[str]) -> None:
    remainder = Remainder(Resumption("", "one tw"), Begun("one tw", 4))
    rest = [remainder.of(Chunk(piece)) for piece in pieces]
    last = remainder.of(Chunk("", "stop", Usage(5, 9)))
    assert "".join(chunk.text for chunk in rest) == "".join(pieces)[len("one tw") :]
    assert last.usage == Usage(5, 9)
    assert Remainder(Resumption("one tw", ""), Begun("one tw", 4)).of(last).usage == Usage(1, 13)


def test_another_answer_is_refused_and_so_is_a_shorter_one() -> None:
    with pytest.raises(EngineRefused, match="does not say the same"):
        Remainder(Resumption("", "one"), Begun("one", 1)).of(Chunk("on the"))
    short = Remainder(Resumption("", "one"), Begun("one", 1))
    short.of(Chunk("on"))
    with pytest.raises(CannotContinue):
        short.of(Chunk("", "stop", Usage(1, 1)))
