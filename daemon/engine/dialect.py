"""Decides what is asked of an OpenAI-compatible engine and what its answers mean. Pure; every request is built from named fields.

Engines agree on the endpoints and differ in a few fields: those are a `Dialect`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec

from daemon.engine.interface import Chunk, EngineError, EngineUnsupported
from protocol.delta import CallDelta, FunctionDelta, TokenLogprob, TopToken
from protocol.extras import MAX_CALLS, MAX_TOP_LOGPROBS, Extras, Feature, read_calls, read_schema, read_tools, wanted
from protocol.job import FinishReason, Job, Turn, Usage

LONG_PROMPT_BYTES = 128
"""No token is less than a byte, and the template adds no more than this: 256 tokens, which the embedded engine reads at once."""

TOP_LOGPROBS = (20, 5, 0)
"""Asked for in turn until the server does not refuse: OpenAI's and vLLM's ceiling, that of older servers, none."""

_PATH = re.compile(r"(?:^|[^\w<])/")
"""A slash that begins something: not that of and/or, nor that of </s>."""

_GAVE_UP = ("abort", "error", "cancelled")

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
    extra_of_long: Mapping[str, Any] = field(default_factory=dict)
    """Fields of one whose prompt has over `LONG_PROMPT_BYTES` bytes."""
    extra_of_short_choice: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a choice whose prompt has no more."""
    constrain: Callable[[Sequence[str]], JsonObject] = _no_constraint
    """Fields that allow the given choices alone."""
    constrains_raw: bool = False
    """A constraint leaves log-probabilities alone, so that a lone choice can be asked for its own."""
    gives_logprobs: bool = True
    """Known to give them, so that a refusal means something else."""
    prefill: Mapping[str, Any] | None = None
    """Fields that make it complete the last turn where that is the assistant's; None: it begins a new turn, or nobody knows."""
    prefills_space: bool = True
    """White space at the end of a begun turn is kept."""
    health_path: str = "/health"
    version_path: str | None = None
    features: frozenset[Feature] = frozenset(("tools", "response_format", "logprobs"))
    """What the server may be asked for beyond text; whether the model has it too is the description's to say."""
    forcings: Sequence[Literal["grammar", "prompt"]] = ("prompt", "grammar")
    """The ways to make it say a given text (daemon.engine.likelihood), each tried until one works."""
    embeds: bool | None = None
    """Whether it gives vectors beside text; None: it is asked for one to see."""
    names_function: bool = True
    """`tool_choice` takes a function's name; llama.cpp takes words alone, and is given the one tool instead."""


LLAMA_CPP = Dialect(
    # Progress chunks make the server write between two batches of a prompt too: only a failed write tells it that its client
    # has left. A prompt of one batch has nothing between, and two chunks less before the first token.
    # The samplers that other engines leave off are on by default.
    extra={"top_k": 0, "min_p": 0.0},
    extra_of_long={"return_progress": True},
    # An answer's tokens that were computed one by one stay in its cache, and are a last digit off those read as a prompt: a judge
    # that reads its question anew says the same whatever it did before. One batch costs next to nothing.
    extra_of_short_choice={"cache_prompt": False},
    constrain=gbnf_choice,
    constrains_raw=True,
    names_function=False,
    embeds=True,
    forcings=("grammar",),
    prefill={},  # its server always completes an assistant's last turn, and adds it behind the template as it is
)
VLLM = Dialect(
    constrain=structured_choice,
    prefill={"continue_final_message": True, "add_generation_prompt": False},
    forcings=("prompt",),
    prefills_space=False,  # most chat templates trim a turn, and the prompt ends where its trimmed text does
    version_path="/version",
    embeds=False,  # one process has either text or vectors, by its runner
)
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
    if job.extras is not None:
        _note_turns(body["messages"], job.extras)
        body |= _extra_fields(job.extras, dialect)
    return body | {"stop": list(sampling.stop)} if sampling.stop else body


def check_features(job: Job, has: frozenset[Feature]) -> None:
    """Raises EngineUnsupported, naming the parameter, where the job's extras ask for what is not there."""
    for feature in wanted(job.extras) if job.extras is not None else ():
        if feature not in has:
            raise EngineUnsupported(f"'{feature}' is not supported by this model's engine")


def _extra_fields(extras: Extras, dialect: Dialect) -> JsonObject:
    # Written anew from what was read: two readers of JSON need not agree on a doubled key.
    fields: JsonObject = {}
    if extras.tools:
        fields |= _tool_fields(extras, dialect)
    if extras.response_format == "json_object":
        fields["response_format"] = {"type": "json_object"}
    elif extras.response_format:
        named = {"name": extras.schema_name or "answer", "strict": True, "schema": read_schema(extras)}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    if extras.top_logprobs >= 0:
        # llama.cpp gives none for 0; what was not asked for is left out of the answer.
        fields |= {"logprobs": True, "top_logprobs": max(1, extras.top_logprobs)}
    return fields


def _tool_fields(extras: Extras, dialect: Dialect) -> JsonObject:
    tools: list[JsonObject] = msgspec.to_builtins(read_tools(extras))
    choice: Any = extras.tool_choice or "auto"
    name = choice.removeprefix("function:")
    if name != choice and dialect.names_function:
        choice = {"type": "function", "function": {"name": name}}
    elif name != choice:
        tools, choice = [tool for tool in tools if tool["function"]["name"] == name], "required"
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": extras.parallel_tool_calls}


def _note_turns(messages: list[JsonObject], extras: Extras) -> None:
    for note in extras.notes:
        if note.tool_call_id:
            messages[note.turn] |= {"role": "tool", "tool_call_id": note.tool_call_id}
        else:
            messages[note.turn] |= {"role": "assistant", "tool_calls": msgspec.to_builtins(read_calls(note))}


def choice_request(turns: Sequence[Turn], choices: Sequence[str], model: str, dialect: Dialect, top: int) -> JsonObject:
    """The body that asks for one token and its `top` likeliest rivals, 0 for none; any token where there are no choices."""
    asked = {"max_tokens": 1, "temperature": 0.0} | ({"logprobs": True, "top_logprobs": top} if top else {})
    request = _request(turns, model, dialect) | asked
    if not choices:
        return request
    return {**request, **dialect.constrain(choices), **({} if _is_long(turns) else dialect.extra_of_short_choice)}


def _is_long(turns: Sequence[Turn]) -> bool:
    return sum(len(turn.content.encode()) for turn in turns) > LONG_PROMPT_BYTES


def _request(turns: Sequence[Turn], model: str, dialect: Dialect) -> JsonObject:
    return {
        **dialect.extra,
        **(dialect.extra_of_long if _is_long(turns) else {}),
        "model": model,
        "messages": [{"role": str(turn.role), "content": turn.content} for turn in turns],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# --- answers ----------------------------------------------------------------------------------------------------------------


class ListedToken(msgspec.Struct):
    """A token that could have stood at a place, and its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class _Token(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[ListedToken] | None = None
    bytes: list[int] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0)] = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class Delta(msgspec.Struct):
    """What an event adds to the answer."""

    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: Delta = msgspec.field(default_factory=Delta)
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

    def __init__(self, extras: Extras | None = None) -> None:
        self._with_calls = extras is not None and bool(extras.tools)
        self._top = extras.top_logprobs if extras is not None else -1
        self._called = False
        self._finish: FinishReason | None = None
        self._usage = Usage()

    def chunk_of(self, event: CompletionEvent) -> Chunk | None:
        """What is new in `event`, often nothing; raises EngineError where the engine gave up or made too many calls."""
        if event.usage is not None:
            self._usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens)
        if not event.choices:
            return None
        choice = event.choices[0]
        if choice.finish_reason in _GAVE_UP:
            raise EngineError("the engine gave up in the middle of its answer")
        text = choice.delta.content or ""
        calls = tuple(_call_delta(call) for call in choice.delta.tool_calls or ()) if self._with_calls else ()
        self._called = self._called or bool(calls)
        if choice.finish_reason is not None:
            ended: FinishReason = "tool_calls" if self._called else "stop"
            self._finish = "length" if choice.finish_reason == "length" else ended
        tokens = choice.logprobs.content or () if choice.logprobs is not None and self._top >= 0 else ()
        logprobs = tuple(_token_logprob(token, self._top) for token in tokens)
        return Chunk(text, tool_calls=calls, logprobs=logprobs) if text or calls or logprobs else None

    def chunks_of(self, events: Sequence[CompletionEvent]) -> list[Chunk]:
        """What is new in events that came together: text in one piece, calls and log-probabilities token by token."""
        chunks: list[Chunk] = []
        texts: list[str] = []
        for event in events:
            chunk = self.chunk_of(event)
            if chunk is None:
                continue
            if chunk.tool_calls or chunk.logprobs:
                chunks += _joined(texts)
                texts = []
                chunks.append(chunk)
            else:
                texts.append(chunk.text)
        return chunks + _joined(texts)

    def last(self) -> Chunk:
        """Raises EngineError where the stream ended without saying why: half an answer is none."""
        if self._finish is None:
            raise EngineError("the engine ended its answer before it was complete")
        return Chunk("", self._finish, self._usage)


def _joined(texts: list[str]) -> list[Chunk]:
    return [Chunk("".join(texts), tokens=len(texts))] if texts else []


def _call_delta(call: _Call) -> CallDelta:
    if call.index >= MAX_CALLS:
        raise EngineError("the engine made more tool calls at once than are passed on")
    # Ids and names are the model's own words: one that is too long is cut, and the caller finds no such function.
    return CallDelta(
        call.index,
        call.id[:64] if call.id else None,
        "function" if call.id else None,
        FunctionDelta(call.function.name[:64] if call.function.name else None, call.function.arguments),
    )


def _token_logprob(token: _Token, top: int) -> TokenLogprob:
    rivals = (token.top_logprobs or [])[: min(top, MAX_TOP_LOGPROBS)]
    listed = tuple(TopToken(rival.token[:128], rival.logprob, _octets(rival.bytes)) for rival in rivals)
    return TokenLogprob(token.token[:128], token.logprob, _octets(token.bytes), listed)


def _octets(found: list[int] | None) -> list[int] | None:
    return found if found is not None and len(found) <= 256 and all(0 <= one <= 255 for one in found) else None


def plain_sentence(text: str) -> str:
    """Foreign text made fit to pass on: one line, at most 200 characters, no control characters, no absolute paths."""
    words = ("".join(c for c in word if c.isprintable()) for word in text.split())
    return " ".join("(path)" if _PATH.search(word) or "://" in word else word for word in words)[:200]
