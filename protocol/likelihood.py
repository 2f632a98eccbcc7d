"""What crosses the wire when one peer asks another how likely its model finds a text. Moves no bytes.

Log-probabilities are natural and travel as whole millionths of a nat below zero, which is finer than any two builds agree.
"""

import math
from collections.abc import Iterable
from typing import Annotated

import msgspec

from protocol.delta import TokenLogprob
from protocol.extras import MAX_TOP_LOGPROBS
from protocol.job import Job, check_job
from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import malformed
from protocol.wire.limits import MAX_FRAME_BYTES

METHOD = "likelihood"
"""Unary: the body is a LikelihoodRequest, the answer a Likelihood."""

MAX_WEIGHED_TOKENS = 128
"""Of one text. With 20 rivals each some 40 KiB; a handful already tells a model from its 4-bit copy."""

MAX_TEXT_BYTES = 16 << 10
MAX_REPLY_BYTES = 512 << 10
FLOOR_MICRO = 100_000_000
"""100 nats: what is less likely than that is not told apart."""

Micro = Annotated[int, msgspec.Meta(ge=0, le=FLOOR_MICRO)]
TokenBytes = Annotated[bytes, msgspec.Meta(max_length=256)]


class Rival(Message, frozen=True):
    """A token that could have stood there. `below_micro`: its log-probability, in millionths of a nat below zero."""

    token: TokenBytes
    below_micro: Micro


class Weighed(Message, frozen=True):
    """A token of the text, b"" where the model ends it, and its likeliest rivals, itself often among them."""

    token: TokenBytes
    below_micro: Micro
    rivals: Annotated[tuple[Rival, ...], msgspec.Meta(max_length=MAX_TOP_LOGPROBS)] = ()


class LikelihoodRequest(Message, frozen=True):
    """How likely is `text` as the answer to `job`, whose sampling does not matter? `config_digest` (hex) is who is to say it.

    `tokens` is how many at most are wanted.
    """

    job: Job
    config_digest: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_TEXT_BYTES)]
    tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_WEIGHED_TOKENS)] = MAX_WEIGHED_TOKENS


class Likelihood(Message, frozen=True):
    """The text as the model cuts it, from its first token on."""

    tokens: Annotated[tuple[Weighed, ...], msgspec.Meta(max_length=MAX_WEIGHED_TOKENS)]


def read_request(body: bytes) -> LikelihoodRequest:
    """The body of a call; raises RemoteError(malformed | oversized)."""
    request = decode(LikelihoodRequest, body, MAX_FRAME_BYTES)
    check_job(request.job)
    if request.job.extras is not None:
        raise malformed("a text is weighed after turns alone: without tools, forms or log-probabilities of its own")
    if len(request.text.encode()) > MAX_TEXT_BYTES:
        raise malformed(f"a text to be weighed has {MAX_TEXT_BYTES} bytes at most")
    return request


def read_reply(body: bytes) -> tuple[Weighed, ...]:
    """The tokens of an answer; raises RemoteError(malformed | oversized)."""
    return decode(Likelihood, body, MAX_REPLY_BYTES).tokens


def write_reply(tokens: Iterable[Weighed]) -> bytes:
    """The bytes of an answer; what would not fit is left out at the end."""
    kept: list[Weighed] = []
    size = 0
    for token in tokens:
        size += len(token.token) + sum(len(rival.token) + 8 for rival in token.rivals) + 16
        if len(kept) == MAX_WEIGHED_TOKENS or size > MAX_REPLY_BYTES:
            break
        kept.append(token)
    return encode(Likelihood(tuple(kept)))


def weighed(tokens: Iterable[TokenLogprob]) -> tuple[Weighed, ...]:
    """What an engine says of an answer's tokens, in whole numbers."""
    return tuple(
        Weighed(
            _octets(one.token, one.bytes),
            _below(one.logprob),
            tuple(Rival(_octets(rival.token, rival.bytes), _below(rival.logprob)) for rival in one.top_logprobs),
        )
        for one in tokens
    )


def _octets(text: str, octets: list[int] | None) -> bytes:
    return (text.encode(errors="replace") if octets is None else bytes(octets))[:256]


def _below(logprob: float) -> int:
    if not math.isfinite(logprob):
        return FLOOR_MICRO
    return round(max(0.0, min(float(FLOOR_MICRO), -logprob * 1_000_000)))  # bounded first: a peer may say 1e308
