"""How an engine is made to say a given text, and what it tells of each token then. Pure; builds requests and reads replies.

llama.cpp has no log-probabilities of a prompt. A grammar that allows one text alone makes it generate that text, and what it
gives then are the log-probabilities of before the grammar. vLLM gives those of a prompt that ends in the text.
"""

from collections.abc import Sequence

import msgspec

from daemon.engine.dialect import Dialect, JsonObject, choice_request
from daemon.engine.interface import Chunk, EngineError, EngineUnsupported
from protocol.delta import TokenLogprob, TopToken
from protocol.extras import MAX_TOP_LOGPROBS, Extras
from protocol.job import Role, Turn

_OPEN_TURN = {"continue_final_message": True, "add_generation_prompt": False}
"""vLLM's fields for a last turn that is not closed; other servers ignore them."""

LISTENING = Extras(top_logprobs=MAX_TOP_LOGPROBS)
"""What a completion that is made to say a text is read with."""

MAX_PROMPT_REPLY_BYTES = 8 << 20
"""vLLM tells of every token of the prompt, 2 KB each."""


def grammar_request(turns: Sequence[Turn], text: str, tokens: int, model: str, dialect: Dialect) -> JsonObject:
    """A completion that can say `text` and nothing else, `tokens` tokens of it."""
    body = choice_request(turns, (), model, dialect, MAX_TOP_LOGPROBS)
    return body | {"max_tokens": tokens, "grammar": f"root ::= {gbnf_literal(text)}"}


def prompt_request(turns: Sequence[Turn], text: str, model: str, dialect: Dialect) -> JsonObject:
    """A completion after `text`, for the log-probabilities of its prompt; not streamed, as vLLM refuses them in a stream."""
    body = choice_request((*turns, Turn(Role.ASSISTANT, text)), (), model, dialect, 0) | dict(dialect.prefill or _OPEN_TURN)
    del body["stream"], body["stream_options"]
    return body | {"prompt_logprobs": MAX_TOP_LOGPROBS}


def gbnf_literal(text: str) -> str:
    """`text` as a literal of llama.cpp's grammars, whose escapes are fewer than JSON's."""
    return '"' + "".join(_escaped(character) for character in text) + '"'


def said(chunks: Sequence[Chunk], text: str) -> tuple[TokenLogprob, ...]:
    """The tokens of a forced completion; raises EngineUnsupported where it said something else: the engine knows no grammar."""
    heard = "".join(chunk.text for chunk in chunks)
    tokens = tuple(token for chunk in chunks for token in chunk.logprobs)
    if not tokens or not text.startswith(heard):
        raise EngineUnsupported("'logprobs' of a given text are not to be had from this engine")
    return tokens


class _PromptToken(msgspec.Struct):
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class _PromptReply(msgspec.Struct):
    prompt_logprobs: list[dict[str, _PromptToken] | None] | None = None


def read_prompt(raw: bytes, text: str, tokens: int) -> tuple[TokenLogprob, ...]:
    """The first `tokens` tokens of `text` out of vLLM's reply; raises EngineError, EngineUnsupported where it tells none.

    Each place lists the prompt's own token first. Its tokens are followed back from the end until they spell the text.
    """
    try:
        places = msgspec.json.decode(raw, type=_PromptReply).prompt_logprobs
    except (msgspec.DecodeError, RecursionError):
        raise EngineError("the engine's log-probabilities of a prompt are malformed") from None
    if not places:
        raise EngineUnsupported("'logprobs' of a given text are not to be had from this engine")
    found: list[TokenLogprob] = []
    left = text
    for place in reversed(places):
        if not place or not left:
            break
        own, *_ = place.values()
        word = own.decoded_token or ""
        if not word or not left.endswith(word):
            break
        left = left[: -len(word)]
        likeliest = sorted(place.values(), key=lambda one: -one.logprob)[:MAX_TOP_LOGPROBS]
        rivals = tuple(TopToken((one.decoded_token or "")[:128], one.logprob) for one in likeliest)
        found.append(TokenLogprob(word[:128], own.logprob, None, rivals))
    if left:
        raise EngineError("the engine's prompt does not end in the given text, token by token")
    return tuple(reversed(found))[:tokens]


def _escaped(character: str) -> str:
    plain = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}
    if character in plain:
        return plain[character]
    return character if character.isprintable() else f"\\U{ord(character):08X}"
