"""The eight frames of "/swarmd/rpc/1" and their bounds. Decides what may stand in a frame; the machine in rpc.py decides when.

Each frame is a MessagePack array whose first element is its tag, behind a 4-byte length. Tags and fields are appended, never
reused or moved.
"""

from typing import Annotated, Final

import msgspec

from protocol.wire.codec import Message
from protocol.wire.limits import MAX_CHUNK_BYTES, MAX_FRAME_BYTES

PROTOCOL: Final = "/swarmd/rpc/1"
VERSION: Final = 1
OLDEST_VERSION: Final = 1

MAX_BODY_BYTES = MAX_FRAME_BYTES - (4 << 10)
"""Body of a request or of a final reply: one frame less 4 KiB for the other fields."""

MAX_OPEN_CALLS = 256
"""Calls open on one link at once; a peer that opens more breaks the contract."""

MAX_OPEN_REQUEST_BYTES = 8 << 20
"""Request bodies of all open calls of one link together: what a stranger can make us hold before any handler ran."""

WINDOW_BYTES = 256 << 10
"""Credit of a fresh call in each direction, as a Yamux stream's: four full chunks."""

MIN_WINDOW_BYTES = 128 << 10
"""The least window a Hello may offer: a full chunk and its overhead always fit."""

ITEM_OVERHEAD_BYTES = 64
"""What an item costs of the credit beside its body, so that empty items are not free."""

MAX_DEADLINE_MS = 24 * 3600 * 1000
MAX_METHOD_CHARS = 48
MAX_TRACEPARENT_CHARS = 64
"""W3C Trace Context version 00 has 55 characters; later versions may append."""

MAX_FAULT_CHARS = 512
MAX_CREDIT_BYTES = 1 << 31

MAX_PACKED_RATIO = 32
"""How many times its size a packed frame may unpack to: a byte on the line costs its reader no more than this."""

CallId = Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
Method = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9._-]*\Z", max_length=MAX_METHOD_CHARS)]
Body = Annotated[bytes, msgspec.Meta(max_length=MAX_BODY_BYTES)]
Capability = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9._-]*\Z", max_length=32)]


class Hello(Message, frozen=True, tag=1):
    """First frame each way: versions spoken, and what this side accepts of the other. `window` is in bytes."""

    version: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)] = VERSION
    oldest: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)] = OLDEST_VERSION
    capabilities: Annotated[tuple[Capability, ...], msgspec.Meta(max_length=32)] = ()
    max_calls: Annotated[int, msgspec.Meta(ge=1, le=MAX_OPEN_CALLS)] = MAX_OPEN_CALLS
    window: Annotated[int, msgspec.Meta(ge=MIN_WINDOW_BYTES, le=MAX_CREDIT_BYTES)] = WINDOW_BYTES


class Request(Message, frozen=True, tag=2):
    """Opens a call. `deadline_ms` is the time left when the frame left; `more` says that the opener's items follow until its End.

    `priority` runs from 0 (most urgent) to 7. `traceparent` is passed on untouched, "" where there is none.
    """

    call: CallId
    method: Method
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEADLINE_MS)]
    body: Body = b""
    more: bool = False
    priority: Annotated[int, msgspec.Meta(ge=0, le=7)] = 4
    traceparent: Annotated[str, msgspec.Meta(max_length=MAX_TRACEPARENT_CHARS)] = ""


class Item(Message, frozen=True, tag=3):
    """One item of a stream, either way; costs len(body) + ITEM_OVERHEAD_BYTES of the receiver's credit."""

    call: CallId
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_CHUNK_BYTES)]


class End(Message, frozen=True, tag=4):
    """From the acceptor: the call succeeded, with its final body. From the opener: no more items follow."""

    call: CallId
    body: Body = b""


class Fault(Message, frozen=True, tag=5):
    """From the acceptor: the call failed. `code` is one of `Code`; a reader takes an unknown one for internal."""

    call: CallId
    code: Annotated[str, msgspec.Meta(max_length=32)]
    message: Annotated[str, msgspec.Meta(max_length=MAX_FAULT_CHARS)] = ""
    retry_after_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_DEADLINE_MS)] | None = None


class Cancel(Message, frozen=True, tag=6):
    """From the opener: it wants nothing more of this call; no answer follows."""

    call: CallId


class Credit(Message, frozen=True, tag=7):
    """`allowance` more bytes may be sent on this call to whoever sends this frame."""

    call: CallId
    allowance: Annotated[int, msgspec.Meta(ge=1, le=MAX_CREDIT_BYTES)]


class Packed(Message, frozen=True, tag=8):
    """A Request, Item or End whose encoding of `size` bytes is compressed (zlib, RFC 1950); only to who offers "deflate"."""

    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_FRAME_BYTES)]
    body: Annotated[bytes, msgspec.Meta(max_length=MAX_FRAME_BYTES)]


AnyFrame = Hello | Request | Item | End | Fault | Cancel | Credit | Packed
