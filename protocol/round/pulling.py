"""Fetching a round's messages by address: RPC "round.pull". Decides how many fit into one reply."""

from typing import Annotated

import msgspec

from protocol.wire.codec import Message, decode
from protocol.wire.ids import Hash, HashField

MAX_PULLED = 128
"""Addresses in one request: a step of the largest committee, twice."""

MAX_REPLY_BYTES = 768 << 10
"""Messages of one reply together; what does not fit is asked for again."""

_MAX_REQUEST_BYTES = 64 + MAX_PULLED * 40


class PullRequest(Message, frozen=True):
    """Give me these messages of that round."""

    round: HashField
    hashes: Annotated[tuple[HashField, ...], msgspec.Meta(min_length=1, max_length=MAX_PULLED)]


class PullReply(Message, frozen=True):
    """Those of them that the sender holds: whole envelopes, in any order."""

    messages: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_PULLED)]


def read_request(body: bytes) -> PullRequest:
    """Raises RemoteError(malformed | oversized)."""
    return decode(PullRequest, body, _MAX_REQUEST_BYTES)


def read_reply(body: bytes) -> tuple[bytes, ...]:
    """Raises RemoteError(malformed | oversized)."""
    return decode(PullReply, body).messages


def fitting(raws: list[bytes]) -> PullReply:
    """As many of `raws` as one reply may carry, in order; at least the first, which is under MAX_REPLY_BYTES by itself."""
    kept: list[bytes] = []
    size = 0
    for raw in raws[:MAX_PULLED]:
        size += len(raw)
        if kept and size > MAX_REPLY_BYTES:
            break
        kept.append(raw)
    return PullReply(tuple(kept))


def as_hashes(request: PullRequest) -> tuple[Hash, ...]:
    """The addresses asked for."""
    return tuple(Hash(hash_) for hash_ in request.hashes)
