"""What goes into the machine of one RPC link and what comes out. Holds values alone."""

from enum import StrEnum

import msgspec

from protocol.wire.errors import RemoteError

FRAMES_AT_ONCE = 256
"""Of what a peer sent together: others have their turn before the rest. 64 KiB hold 6,500 of the smallest, which take 30 ms."""


class Breach(StrEnum):
    """How a peer broke the contract; each closes its link alone and is a label of a counter."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    NO_HELLO = "no_hello"
    VERSION = "version"
    WRONG_SIDE = "wrong_side"
    CALL_ID = "call_id"
    TOO_MANY_CALLS = "too_many_calls"
    TOO_MANY_BYTES = "too_many_bytes"
    CREDIT = "credit"
    STRAY = "stray"
    NOT_READING = "not_reading"


class NewCall(msgspec.Struct, frozen=True):
    """What the opener asks. `deadline` is on the machine's clock in seconds; `more` says that items follow until `end`."""

    method: str
    body: bytes
    deadline: float
    more: bool = False
    priority: int = 4
    traceparent: str = ""


class IncomingCall(msgspec.Struct, frozen=True):
    """Acceptor: the peer opened a call; `deadline` is on our clock."""

    call: int
    method: str
    body: bytes
    deadline: float
    more: bool
    priority: int
    traceparent: str


class IncomingItem(msgspec.Struct, frozen=True):
    """An item came; say `consumed` once the application took it."""

    call: int
    body: bytes


class IncomingEnd(msgspec.Struct, frozen=True):
    """Acceptor: the opener's items are complete."""

    call: int
    body: bytes


class CallEnded(msgspec.Struct, frozen=True):
    """Opener: the call succeeded, with its final body."""

    call: int
    body: bytes


class CallFailed(msgspec.Struct, frozen=True):
    """The call is over without success. Acceptor: nobody waits for it any more, stop working."""

    call: int
    error: RemoteError


class CreditAvailable(msgspec.Struct, frozen=True):
    """`send_item` of this call may succeed again."""

    call: int


class LinkBroken(msgspec.Struct, frozen=True):
    """The peer broke the contract: drop the stream. Every open call has failed in the same list of effects."""

    breach: Breach
    detail: str


Effect = IncomingCall | IncomingItem | IncomingEnd | CallEnded | CallFailed | CreditAvailable | LinkBroken
