"""Decides what is asked of an OpenAI-compatible engine and what its answers mean. Pure; every request is built from named fields.

Engines agree on the endpoints and differ in a few fields: those are a `Dialect`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec

from daemon.engine.interface import Chunk, EngineError
from protocol.job import FinishReason, Job, Turn, Usage

TOP_LOGPROBS = (20, 5, 0)
"""Asked for in turn until the server does not refuse: OpenAI's and vLLM's ceiling, that of older servers, none."""

_PATH = re.compile(r"(?:^|[^\w<])/")
"""A slash that begins something: not that of and/or, nor that of </s>."""

_GAVE_UP = ("abort", "error", "cancelled")

UNSEEN_CHOICE_NATS = 1.0
"""A choice outside the listed tokens is put this far below the least likely listed one: it is known to be no likelier."""

SPOKEN_CHOICE_NATS = 2.0
"""Log-odds claimed for a choice that an engine without log-probabilities has merely said: 0.88 of two."""

JsonObject = dict[str, Any]


def _no_constraint(choices: Sequence[str]) -> JsonObject:
    return {}


def gbnf_choice(choices: Sequence[str]) -> JsonObject:
    """llama.cpp: a grammar. Its log-probabilities stay those of before the mask."""
    return {"grammar": "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)}


def structured_choice(choices: Sequence[str]) -> JsonObject:
    """vLLM >= 0.12. The older `guided_choice` is ignored without a word since then."""
    return {"structured_outputs": {"choice": list(choices)}}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of engine differs from the others."""

    extra: Mapping[str, Any] = field(default_factory=dict)
    """Fields of every completion request."""
    constrain: Callable[[Sequence[str]], JsonObject] = _no_constraint
    """Fields that allow the given choices alone."""
    constrains_raw: bool = False
    """A constraint leaves log-probabilities alone, so that a lone choice can be asked for its own."""
    gives_logprobs: bool = True
    """Known to give them, so that a refusal means something else."""
    health_path: str = "/health"
    version_path: str | None = None


LLAMA_CPP = Dialect(
    # Progress chunks make the server write during the prompt too: only a failed write tells it that its client has left.
    # The samplers that other engines leave off are on by default.
    extra={"return_progress": True, "top_k": 0, "min_p": 0.0},
    constrain=gbnf_choice,
    constrains_raw=True,
)
VLLM = Dialect(constrain=structured_choice, version_path="/version")
ANY_SERVER = Dialect(gives_logprobs=False, health_path="/v1/models")


# --- requests ---------------------------------------------------------------------------------------------------------------


def completion_request(job: Job, model: str, dialect: Dialect) -> JsonObject:
    """The body of a chat completion of `job`. Always streamed: llama.cpp goes on with others after their client left."""
    sampling = job.sampling
    body = _request(job.turns, model, dialect) | {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature_milli / 1000,
        "top_p": sampling.top_p_milli / 1000,
        "seed": sampling.seed,
    }
    return body | {"stop": list(sampling.stop)} if sampling.stop else body


def choice_request(turns: Sequence[Turn], choices: Sequence[str], model: str, dialect: Dialect, top: int) -> JsonObject:
    """The body that asks for one token and its `top` likeliest rivals; 0 asks for no log-probabilities."""
    asked = {"max_tokens": 1, "temperature": 0.0} | ({"logprobs": True, "top_logprobs": top} if top else {})
    return _request(turns, model, dialect) | asked | dialect.constrain(choices)


def _request(turns: Sequence[Turn], model: str, dialect: Dialect) -> JsonObject:
    return {
        **dialect.extra,
        "model": model,
        "messages": [{"role": str(turn.role), "content": turn.content} for turn in turns],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# --- answers ----------------------------------------------------------------------------------------------------------------


class _TopToken(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_TopToken] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    completion_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0


class _ErrorBody(msgspec.Struct):
    message: str = ""


class CompletionEvent(msgspec.Struct):
    """One server-sent event of a chat completion; fields that are not used here are ignored."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _ErrorBody | None = None


_event_decoder = msgspec.json.Decoder(CompletionEvent)


def decode_event(raw: str) -> CompletionEvent:
    """Raises EngineError for anything that is not a completion event, an error event included."""
    try:
        event = _event_decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError, ValueError):
        raise EngineError("the engine sent an event that is no chat completion") from None
    if event.error is not None:
        raise EngineError(f"the engine gave up: {plain_sentence(event.error.message)}")
    return event


class Transcriber:
    """Turns events into chunks; the last chunk, and only that one, carries the finish reason and the usage."""

    def __init__(self) -> None:
        self._finish: FinishReason | None = None
        self._usage = Usage()

    def text_of(self, event: CompletionEvent) -> str:
        """The new text of `event`, often none."""
        if event.usage is not None:
            self._usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens)
        if not event.choices:
            return ""
        choice = event.choices[0]
        if choice.finish_reason in _GAVE_UP:
            raise EngineError("the engine gave up in the middle of its answer")
        if choice.finish_reason is not None:
            self._finish = "length" if choice.finish_reason == "length" else "stop"
        return choice.delta.content or ""

    def last(self) -> Chunk:
        """Raises EngineError where the stream ended without saying why: half an answer is none."""
        if self._finish is None:
            raise EngineError("the engine ended its answer before it was complete")
        return Chunk("", self._finish, self._usage)


# --- choices ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FirstToken:
    """What was said for a choice: the text, and the log-probability of each listed token; empty where the engine gives none."""

    text: str
    logprobs: Mapping[str, float]

    @staticmethod
    def of(events: Sequence[CompletionEvent]) -> "FirstToken":
        choices = [event.choices[0] for event in events if event.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for c in choices if c.logprobs is not None for token in c.logprobs.content or []]
        listed = [_TopToken(tokens[0].token, tokens[0].logprob), *(tokens[0].top_logprobs or [])] if tokens else []
        sums: dict[str, float] = {}
        for name, found in {entry.token: entry.logprob for entry in listed if math.isfinite(entry.logprob)}.items():
            word = name.strip()
            sums[word] = _log_sum((sums[word], found)) if word in sums else found
        return FirstToken(text.strip(), sums)


def unlisted(said: FirstToken, choices: Sequence[str]) -> list[str]:
    """The choices whose log-probability is not known."""
    return [choice for choice in choices if choice not in said.logprobs]


def normalised(said: FirstToken, choices: Sequence[str]) -> tuple[float, ...]:
    """Log-probabilities over `choices` that sum to one; raises EngineError where nothing was said that bears on them."""
    if not said.logprobs:
        return _spoken(said.text, choices)
    floor = min(said.logprobs.values()) - UNSEEN_CHOICE_NATS
    raw = [said.logprobs.get(choice, floor) for choice in choices]
    total = _log_sum(raw)
    return tuple(value - total for value in raw)


def _spoken(text: str, choices: Sequence[str]) -> tuple[float, ...]:
    if text not in choices:
        raise EngineError("the engine gives no log-probabilities and named none of the choices")
    raw = [SPOKEN_CHOICE_NATS if choice == text else 0.0 for choice in choices]
    total = _log_sum(raw)
    return tuple(value - total for value in raw)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def plain_sentence(text: str) -> str:
    """Foreign text made fit to pass on: one line, at most 200 characters, no control characters, no absolute paths."""
    words = ("".join(c for c in word if c.isprintable()) for word in text.split())
    return " ".join("(path)" if _PATH.search(word) or "://" in word else word for word in words)[:200]
