"""What a client may send: JSON bodies read strictly into typed requests, every unsupported field refused by name."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar, cast

import msgspec

from daemon.api.backend import ASK_SECONDS, AskRequest, PeerWish, ProbeRequest, Strategy
from daemon.api.errors import ApiError, of_remote
from protocol.extras import MAX_TOP_LOGPROBS, Extras, wanted
from protocol.job import ROUND_TOKENS, ROUTE_TOKENS, Job, Role, Sampling, Turn, check_job
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import is_model_name, is_peer_id, sha256
from protocol.wire.limits import MAX_COMMITTEE, MAX_TOKENS

R = TypeVar("R", bound=msgspec.Struct)

ROUND_MODELS: Mapping[str, Strategy] = {"swarm/rank": "rank", "swarm/majority": "majority", "swarm/auto": "auto"}
"""Model names that run a round instead of routing to one peer."""

NO_PEER_ID = "is not a peer id (12D3KooW...); swarmd peers lists them"

_NAMED_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`")
_PEER_ID = "Expected `str` matching regex '^12D3KooW"

MAX_CHOICES = 8
"""Of one request: each is a call of its own, and a peer gives one caller no more at once."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "user": (),
    "safety_identifier": (),
    "prompt_cache_key": (),
    "store": (None, False),
    "metadata": (None, {}),
    "service_tier": (None, "auto", "default"),
    "modalities": (None, ["text"]),
}
"""Known OpenAI fields that the mesh does not offer, with the values that ask for nothing; () accepts any value unread."""


PeerList = Annotated[list[str], msgspec.Meta(max_length=64)]


class TextPart(msgspec.Struct, frozen=True):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, frozen=True):
    """One OpenAI chat message; "developer" is the newer name of "system"."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenAI's stream_options."""

    include_usage: bool | None = None


class PeerBlock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Our own `peer` field: who may answer, and who is asked first. `min_score` is a share of right answers."""

    only: PeerList | None = None
    ignore: PeerList | None = None
    sort: Literal["latency", "load"] | None = None
    max_rtt_ms: Annotated[float, msgspec.Meta(ge=0, le=60_000)] | None = None
    min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Common(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that chat completions and completions share."""

    model: str = ""
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHOICES)] | None = None
    peer: PeerBlock | None = None


class ChatRequest(Common, frozen=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], msgspec.Meta(min_length=1, max_length=256)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


class CompletionRequest(Common, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=1)]
    """Many clients send a list, also of one; several prompts are several requests."""


class ControlAsk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /swarmd/v1/ask."""

    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    strategy: Strategy = "route"
    committee: Annotated[int, msgspec.Meta(ge=2, le=MAX_COMMITTEE)] | None = None
    peer: str | None = None
    model: str | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] | None = None
    verify: bool = False
    rationale: bool = False


class ControlProbe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """POST /swarmd/v1/probe."""

    peer: str | None = None
    skill: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    count: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 10
    rounds: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0


_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.USER,  # that it is a tool's result stands in the job's notes
}


def read_openai(kind: type[R], body: bytes, unoffered: Mapping[str, tuple[object, ...]] = NEUTRAL) -> R:
    """Read an OpenAI request; raises ApiError 400 naming the first field that is unsupported or wrong."""
    try:  # most have no field but ours, and are read once
        request: R = msgspec.json.decode(body, type=_without_others(kind))
        return request
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _read_with_others(kind, body, unoffered)


@lru_cache
def _without_others(kind: type[R]) -> type[R]:
    """`kind`, read from nothing that has more fields."""
    closed = msgspec.defstruct(kind.__name__, [], bases=(kind,), frozen=True, kw_only=True, forbid_unknown_fields=True)
    return cast("type[R]", closed)


def _read_with_others(kind: type[R], body: bytes, unoffered: Mapping[str, tuple[object, ...]]) -> R:
    fields = read_body(dict[str, msgspec.Raw], body)
    for name, raw in fields.items():
        if name in kind.__struct_fields__:
            continue
        neutral = unoffered.get(name)
        if neutral == () or (value := read_body(Any, bytes(raw))) is None:  # which clients write for "not given"
            continue
        if neutral is None:
            raise ApiError(400, "unsupported_parameter", f"the parameter '{name[:64]}' is not supported", name[:64])
        if isinstance(value, dict):
            value = {key: inner for key, inner in value.items() if inner is not None}
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):  # 0 is not False
            raise ApiError(400, "unsupported_parameter", f"'{name}' is not supported by the mesh yet; leave it out", name)
    request: R = read_body(kind, body)
    return request


def fresh_seed(unique: str) -> int:
    """A seed for a request that names none, out of a text that no other request has."""
    return int.from_bytes(sha256(unique.encode())[:4]) >> 1


def read_control(body: bytes, drawn: int) -> AskRequest:
    """Read POST /swarmd/v1/ask; `drawn` as in `asks_of`."""
    ask = read_body(ControlAsk, body)
    if (ask.prompt is None) == (ask.messages is None):
        raise ApiError(400, "invalid_value", "give either 'prompt' or 'messages'", "prompt")
    messages = ask.messages if ask.messages is not None else [ChatMessage("user", ask.prompt or "")]
    if ask.peer is not None and not is_peer_id(ask.peer):
        raise ApiError(400, "invalid_value", f"{ask.peer[:64]!r} {NO_PEER_ID}", "peer")
    if ask.rationale and ask.strategy in ("route", "majority"):
        raise ApiError(400, "invalid_value", "'rationale' is what judges say: it goes with strategy rank or auto", "rationale")
    temperature = ask.temperature or 0.0
    tokens = ask.max_tokens or _tokens(ask.strategy)
    sampling = Sampling(tokens, round(temperature * 1000), seed=_seed(ask.seed, temperature, drawn))
    job = _job(messages, sampling, ask.model or "")
    return AskRequest(
        job, ask.strategy, ask.committee, ask.peer, ask.timeout_s or ASK_SECONDS, verify=ask.verify, rationale=ask.rationale
    )


def read_probe(body: bytes) -> ProbeRequest:
    """Read POST /swarmd/v1/probe."""
    probe: ControlProbe = read_body(ControlProbe, body)
    if probe.peer is not None and not is_peer_id(probe.peer):
        raise ApiError(400, "invalid_value", f"{probe.peer[:64]!r} {NO_PEER_ID}", "peer")
    if probe.peer is not None and probe.rounds:
        raise ApiError(400, "invalid_value", "'rounds' choose their members themselves; leave the peer out", "rounds")
    return ProbeRequest(probe.peer, probe.skill, probe.count, probe.rounds)


def asks_of(request: Common, messages: list[ChatMessage], drawn: int, extras: Extras | None = None) -> list[AskRequest]:
    """The asks behind an OpenAI request, one for each choice, whose seeds count up from the request's own, or from `drawn`
    where it names none and is to be answered by chance: who asks again wants another answer.
    """
    strategy = ROUND_MODELS.get(request.model, "route")
    count = request.n or 1
    wish = wish_of(request.peer)
    if strategy != "route":
        named = "n" if count > 1 else "peer" if wish is not None else next(wanted(extras), None) if extras is not None else None
        if named is not None:
            raise ApiError(400, "unsupported_parameter", f"'{named}' is not supported in a round ({request.model})", named)
    sampling = _sampling(request, strategy, drawn)
    job = _job(messages, sampling, "" if strategy != "route" else request.model, extras)
    seeds = [(sampling.seed + number) % 2**31 for number in range(count)]
    jobs = [msgspec.structs.replace(job, sampling=msgspec.structs.replace(sampling, seed=seed)) for seed in seeds]
    return [AskRequest(one, strategy, wish=wish) for one in jobs]


def wish_of(block: PeerBlock | None) -> PeerWish | None:
    """The `peer` field; raises ApiError 400 that names what is wrong in it."""
    if block is None:
        return None
    for name, listed in (("only", block.only), ("ignore", block.ignore)):
        for peer in listed or ():
            if not is_peer_id(peer):
                raise ApiError(400, "invalid_value", f"'peer.{name}' lists peer ids (12D3KooW...)", f"peer.{name}")
    only = None if block.only is None else frozenset(block.only)
    max_rtt = None if block.max_rtt_ms is None else block.max_rtt_ms / 1000
    min_score = None if block.min_score is None else round(block.min_score * 1000)
    return PeerWish(only, frozenset(block.ignore or ()), block.sort, max_rtt, min_score)


def _seed(named: int | None, temperature: float, drawn: int) -> int:
    return named if named is not None else drawn if temperature else 0


def _tokens(strategy: Strategy) -> int:
    return ROUTE_TOKENS if strategy == "route" else ROUND_TOKENS


def _sampling(request: Common, strategy: Strategy, drawn: int) -> Sampling:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > 4 or not all(1 <= len(stop) <= 64 for stop in stops):
        raise ApiError(400, "invalid_value", "'stop' takes at most 4 texts of 1 to 64 characters", "stop")
    temperature = 0.0 if request.temperature is None else request.temperature
    return Sampling(
        request.max_completion_tokens or request.max_tokens or _tokens(strategy),
        round(temperature * 1000),
        max(1, round((1.0 if request.top_p is None else request.top_p) * 1000)),
        _seed(request.seed, temperature, drawn),
        tuple(stops),
    )


def _job(messages: list[ChatMessage], sampling: Sampling, model: str, extras: Extras | None = None) -> Job:
    if not messages or len(messages) > 256:
        raise ApiError(400, "invalid_value", "'messages' takes 1 to 256 messages", "messages")
    if model and not is_model_name(model):
        raise ApiError(404, "model_not_found", f"'{model[:64]}' is not a model's name", "model")
    turns = tuple(Turn(_ROLES[m.role], _text(m)) for m in messages)
    if not any(turn.content.strip() for turn in turns):
        raise ApiError(400, "invalid_value", "the prompt is empty", "messages")
    try:
        return check_job(Job(turns, sampling, model, extras))
    except RemoteError as error:
        if error.code is Code.OVERSIZED:
            raise ApiError(413, "prompt_too_long", error.message, "messages") from None
        raise ApiError(400, "invalid_value", error.message, of_remote(error).param) from None


def _text(message: ChatMessage) -> str:
    content = message.content
    if content is None and not message.tool_calls:
        raise ApiError(400, "invalid_value", "a message has no content", "messages")
    if (message.role == "tool") != (message.tool_call_id is not None) or (message.tool_calls and message.role != "assistant"):
        raise ApiError(400, "invalid_value", "tool_call_id goes with the role tool, tool_calls with assistant", "messages")
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def read_body(kind: Any, body: bytes) -> Any:
    """`body` as JSON of exactly `kind`; raises ApiError(400) naming the field at fault."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        sentence, field = _fault(str(error))
        raise ApiError(400, "invalid_value", sentence, field) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ApiError(400, "invalid_json", "the body is not valid JSON") from None


def _fault(text: str) -> tuple[str, str | None]:
    """What msgspec's `text` says, as a sentence that begins with the field, and the field at fault."""
    found, _, where = text.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    if (named := _NAMED_FIELD.match(found)) is not None:
        path = f"{path}.{named[2]}" if path else named[2]
        sentence = " is missing" if named[1] == "missing required" else " is not a field here"
    elif found.startswith(_PEER_ID):
        sentence = f" {NO_PEER_ID}"
    else:
        sentence = f": {found[:1].lower()}{found[1:].replace('`', '')}"
    return (f"'{path[:64]}'" if path else "the body") + sentence, path.partition("[")[0][:64] or None
