"""What engines are asked and how their answers are read, without any engine."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.choices import SPOKEN_CHOICE_NATS, FirstToken, normalised, unlisted
from daemon.engine.dialect import (
    ANY_SERVER,
    LLAMA_CPP,
    LONG_PROMPT_BYTES,
    VLLM,
    CompletionEvent,
    Dialect,
    Transcriber,
    choice_request,
    completion_request,
    decode_event,
    plain_sentence,
)
from daemon.engine.interface import Chunk, EngineError
from protocol.extras import Extras
from protocol.job import Job, Role, Sampling, Turn, Usage

TURNS = (Turn(Role.SYSTEM, "be brief"), Turn(Role.USER, 'say "A"'))
SAMPLED = {"max_tokens", "temperature", "top_p", "seed"}
ALWAYS = {"model", "messages", "stream", "stream_options"}


def token(listed: dict[str, float], said: str = "A") -> CompletionEvent:
    top = [{"token": name, "logprob": value} for name, value in listed.items()]
    content = [{"token": said, "logprob": listed[said], "top_logprobs": top}]
    return decode_event(json.dumps({"choices": [{"delta": {"content": said}, "logprobs": {"content": content}}]}))


@pytest.mark.parametrize(
    ("dialect", "extra"),
    [(LLAMA_CPP, {"top_k", "min_p"}), (VLLM, set()), (ANY_SERVER, set())],
)
def test_a_completion_request_has_these_fields_and_no_others(dialect: Dialect, extra: set[str]) -> None:
    job = Job(TURNS, Sampling(max_tokens=9, temperature_milli=700, top_p_milli=950, seed=4, stop=("\n",)))
    body = completion_request(job, "owner/model", dialect)
    assert set(body) == ALWAYS | SAMPLED | extra | {"stop"}
    assert body["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": 'say "A"'}]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["seed"], body["stop"]) == (9, 0.7, 0.95, 4, ["\n"])
    assert body["stream"] is True
    assert "stop" not in completion_request(Job(TURNS), "m", dialect)


def test_progress_is_asked_for_where_a_prompt_takes_more_than_one_batch() -> None:
    for size, wants in ((LONG_PROMPT_BYTES, False), (LONG_PROMPT_BYTES + 1, True)):
        long = Job((Turn(Role.USER, "x" * size),))
        assert ("return_progress" in completion_request(long, "m", LLAMA_CPP)) is wants
        assert "return_progress" not in completion_request(long, "m", VLLM)


def test_each_engine_is_constrained_in_its_own_way() -> None:
    llama = choice_request(TURNS, ("A", 'B"'), "m", LLAMA_CPP, 20)
    assert llama["grammar"] == r'root ::= "A" | "B\""'
    vllm = choice_request(TURNS, ("A", "B"), "m", VLLM, 20)
    assert vllm["structured_outputs"] == {"choice": ["A", "B"]}
    assert "guided_choice" not in vllm
    plain = choice_request(TURNS, ("A", "B"), "m", ANY_SERVER, 5)
    assert set(plain) == ALWAYS | {"max_tokens", "temperature", "logprobs", "top_logprobs"}
    assert (plain["max_tokens"], plain["temperature"], plain["top_logprobs"]) == (1, 0.0, 5)
    assert "logprobs" not in choice_request(TURNS, ("A", "B"), "m", ANY_SERVER, 0)


def test_a_short_question_of_a_judge_is_read_anew_and_a_long_one_is_not() -> None:
    for size, anew in ((LONG_PROMPT_BYTES, True), (LONG_PROMPT_BYTES + 1, False)):
        asked = (Turn(Role.USER, "x" * size),)
        assert (choice_request(asked, ("A", "B"), "m", LLAMA_CPP, 5).get("cache_prompt") is False) is anew
        assert "cache_prompt" not in choice_request(asked, (), "m", LLAMA_CPP, 5), "a text that is said again"
        assert "cache_prompt" not in choice_request(asked, ("A", "B"), "m", VLLM, 5)
    assert "cache_prompt" not in completion_request(Job((Turn(Role.USER, "x"),)), "m", LLAMA_CPP)


def test_choices_are_normalised_over_the_choices() -> None:
    said = FirstToken.of([token({"A": math.log(0.3), "B": math.log(0.1), "C": math.log(0.6)})])
    assert [round(math.exp(p), 6) for p in normalised(said, ("A", "B"))] == [0.75, 0.25]


def test_a_letter_with_and_without_a_space_is_one_choice() -> None:
    said = FirstToken.of([token({"A": math.log(0.2), " A": math.log(0.2), "B": math.log(0.1)})])
    assert math.exp(normalised(said, ("A", "B"))[0]) == pytest.approx(0.8)


def test_a_choice_outside_the_list_lies_below_the_least_likely_listed_one() -> None:
    said = FirstToken.of([token({"A": -0.1, "x": -7.0})])
    assert unlisted(said, ("A", "B")) == ["B"]
    a, b = normalised(said, ("A", "B"))
    assert a - b == pytest.approx(-0.1 + 8.0)


def test_masked_tokens_do_not_disturb_the_choices() -> None:
    """vLLM writes -9999 for what its constraint forbids."""
    said = FirstToken.of([token({"A": math.log(0.9), "B": math.log(0.1), "C": -9999.0, "x": -9999.0})])
    assert [round(math.exp(p), 6) for p in normalised(said, ("A", "B"))] == [0.9, 0.1]


def test_without_log_probabilities_the_letter_counts_with_a_bounded_weight() -> None:
    said = FirstToken(" B".strip(), {})
    a, b = normalised(said, ("A", "B"))
    assert b - a == pytest.approx(SPOKEN_CHOICE_NATS)
    with pytest.raises(EngineError, match="named none"):
        normalised(FirstToken("maybe", {}), ("A", "B"))


@given(
    listed=st.dictionaries(st.sampled_from(["A", "B", "C", " A", "x", "\n"]), st.floats(-1e4, 0), min_size=1),
    choices=st.lists(st.sampled_from(["A", "B", "C", "D"]), min_size=2, unique=True),
)
def test_choices_sum_to_one_whatever_is_listed(listed: dict[str, float], choices: list[str]) -> None:
    found = normalised(FirstToken.of([token(listed, next(iter(listed)))]), choices)
    assert math.fsum(math.exp(p) for p in found) == pytest.approx(1.0)
    assert all(math.isfinite(p) for p in found)


def event(text: str | None = None, finish: str | None = None, usage: tuple[int, int] | None = None) -> CompletionEvent:
    choices = [] if usage else [{"delta": {"content": text} if text is not None else {}, "finish_reason": finish}]
    reported = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    return decode_event(json.dumps({"id": "x", "choices": choices, "usage": reported, "timings": {"a": 1}}))


@pytest.mark.parametrize(("finish", "meaning"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop")])
def test_the_last_chunk_says_why_and_how_much(finish: str, meaning: str) -> None:
    transcriber = Transcriber()
    events = (event(None), event("Hel"), event("lo"), event(None, finish), event(usage=(7, 2)))
    assert "".join(c.text for c in map(transcriber.chunk_of, events) if c is not None) == "Hello"
    assert transcriber.last() == Chunk("", meaning, Usage(7, 2))  # type: ignore[arg-type]


def test_a_stream_that_just_ends_is_an_error() -> None:
    transcriber = Transcriber()
    transcriber.chunk_of(event("half"))
    with pytest.raises(EngineError, match="before it was complete"):
        transcriber.last()


@pytest.mark.parametrize("finish", ["abort", "error"])
def test_an_engine_that_gives_up_has_not_answered(finish: str) -> None:
    with pytest.raises(EngineError, match="gave up"):
        Transcriber().chunk_of(event("half", finish))


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "{",
        "[]",
        "null",
        '{"choices":3}',
        '{"choices":[{"delta":{"content":5}}]}',
        '{"usage":{"prompt_tokens":-1}}',
        "[" * 10**5,
    ],
)
def test_events_that_are_none(raw: str) -> None:
    with pytest.raises(EngineError, match="no chat completion"):
        decode_event(raw)


def test_an_error_event_is_told_without_paths() -> None:
    with pytest.raises(EngineError, match=r"^the engine gave up: cannot open \(path\) now$"):
        decode_event('{"error":{"message":"cannot open /home/someone/model.gguf\\nnow"}}')


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a\x1b[31mred\x00 b", "a[31mred b"),
        ("see '/etc/x' and (/y) or http://z/q", "see (path) and (path) or (path)"),
        ("x " * 500, ("x " * 100)[:200]),
    ],
)
def test_foreign_sentences_are_made_plain(text: str, plain: str) -> None:
    assert plain_sentence(text) == plain


def test_what_came_at_once_is_one_piece_but_a_token_with_its_logprobs_stays_one() -> None:
    events = [decode_event(json.dumps({"choices": [{"delta": {"content": text}}]})) for text in ("a", "b", "", "c")]
    assert Transcriber().chunks_of(events) == [Chunk("abc", tokens=3)]
    assert Transcriber().chunks_of([]) == []
    told = [token({name: -0.5}, name) for name in ("x", "y")]
    chunks = Transcriber(Extras(top_logprobs=0)).chunks_of([*events, *told, events[0]])
    seen = [(chunk.text, chunk.tokens, len(chunk.logprobs)) for chunk in chunks]
    assert seen == [("abc", 3, 0), ("x", 1, 1), ("y", 1, 1), ("a", 1, 0)]
