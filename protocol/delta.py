"""A piece of an answer: text, parts of tool calls, log-probabilities; and its bytes as an item of a stream. Moves no bytes."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec

from protocol.extras import MAX_CALLS, MAX_TOP_LOGPROBS
from protocol.wire.errors import malformed

MAX_ITEM_CHARS = 16 << 10
"""Characters of one item's text: at 4 bytes each still one 64 KiB chunk."""

MAX_ITEM_ARGUMENTS = 8 << 10
"""Characters of one item's arguments: JSON writes a control character in 6 bytes."""

MAX_ITEM_TOKENS = 1
"""Tokens with log-probabilities in one item: one may hold 21 names of 128 characters and their bytes, 40 KiB as JSON."""

_SHORT_CHARS = 2048
"""Text that fits beside it."""

_MARK = b"\xc1"
"""First byte of an item that is more than text: UTF-8 never has it."""

TokenText = Annotated[str, msgspec.Meta(max_length=128)]
TokenBytes = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=255)]], msgspec.Meta(max_length=256)]


class FunctionDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The name, once, and the arguments' JSON text bit by bit."""

    name: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    arguments: Annotated[str, msgspec.Meta(max_length=MAX_ITEM_ARGUMENTS)] | None = None


class CallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A part of tool call number `index`, as OpenAI streams it."""

    index: Annotated[int, msgspec.Meta(ge=0, lt=MAX_CALLS)]
    id: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta | None = None


class TopToken(msgspec.Struct, frozen=True):
    """A token that could have stood there."""

    token: TokenText
    logprob: float
    bytes: TokenBytes | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer, its natural-log probability and its likeliest rivals."""

    token: TokenText
    logprob: float
    bytes: TokenBytes | None = None
    top_logprobs: Annotated[tuple[TopToken, ...], msgspec.Meta(max_length=MAX_TOP_LOGPROBS)] = ()


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of an answer."""

    text: Annotated[str, msgspec.Meta(max_length=MAX_ITEM_CHARS)] = ""
    tool_calls: Annotated[tuple[CallDelta, ...], msgspec.Meta(max_length=MAX_CALLS)] = ()
    logprobs: Annotated[tuple[TokenLogprob, ...], msgspec.Meta(max_length=MAX_ITEM_TOKENS)] = ()
    tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_ITEM_CHARS)] = 1
    """That the text stands for, at least: where several came at once they travel as one piece."""


_decoder = msgspec.json.Decoder(Delta)


def delta_items(
    text: str, tool_calls: tuple[CallDelta, ...] = (), logprobs: tuple[TokenLogprob, ...] = (), tokens: int = 1
) -> Iterator[bytes]:
    """The bodies of the items that carry a piece: a token and its log-probability together, else the text and then the rest.

    `tokens` are those that the text stands for.
    """
    if len(logprobs) == 1 and len(text) <= _SHORT_CHARS:
        yield _MARK + msgspec.json.encode(Delta(text, (), logprobs))
        text, logprobs = "", ()
    for start in range(0, len(text), MAX_ITEM_CHARS):
        part = text[start : start + MAX_ITEM_CHARS]
        counted = min(tokens, len(part))
        tokens = max(1, tokens - counted)
        yield part.encode() if counted == 1 else _MARK + msgspec.json.encode(Delta(part, tokens=counted))
    for call in tool_calls:
        yield from (_MARK + msgspec.json.encode(Delta(tool_calls=(part,))) for part in _parts(call))
    for start in range(0, len(logprobs), MAX_ITEM_TOKENS):
        yield _MARK + msgspec.json.encode(Delta(logprobs=logprobs[start : start + MAX_ITEM_TOKENS]))


def read_delta(body: bytes) -> Delta:
    """The piece in an item; raises RemoteError(malformed)."""
    try:
        delta = _decoder.decode(body[1:]) if body.startswith(_MARK) else Delta(body.decode())
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise malformed("a piece of an answer is neither UTF-8 nor a delta") from None
    if delta.tokens > max(1, len(delta.text)):
        raise malformed("a piece of an answer counts more tokens than it has characters")
    return delta


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    """The same pieces, text that follows text being one: what a reader that was late is told at once."""
    found: list[Delta] = []
    texts: list[str] = []
    tokens = 0
    for delta in deltas:
        if delta.tool_calls or delta.logprobs:
            if texts:
                found.append(Delta("".join(texts), tokens=tokens))
                texts, tokens = [], 0
            found.append(delta)
        elif delta.text:
            texts.append(delta.text)
            tokens += delta.tokens
    return [*found, Delta("".join(texts), tokens=tokens)] if texts else found


def _parts(call: CallDelta) -> Iterator[CallDelta]:
    arguments = call.function.arguments if call.function is not None else None
    if call.function is None or arguments is None or len(arguments) <= MAX_ITEM_ARGUMENTS:
        yield call
        return
    head = FunctionDelta(call.function.name, arguments[:MAX_ITEM_ARGUMENTS])
    yield CallDelta(call.index, call.id, call.type, head)
    for start in range(MAX_ITEM_ARGUMENTS, len(arguments), MAX_ITEM_ARGUMENTS):
        yield CallDelta(call.index, function=FunctionDelta(arguments=arguments[start : start + MAX_ITEM_ARGUMENTS]))
