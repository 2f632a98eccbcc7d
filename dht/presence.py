"""The signed heartbeat that says a peer is there now. Decides what makes one valid; `directory` decides what follows from it."""

from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dht.offers import CLOCK_SLACK_MS, Count
from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import open_envelope, seal
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import HashField, PeerId, PeerIdField
from protocol.wire.limits import MAX_RECORD_BYTES

DOMAIN = "presence"
TOPIC = "/swarmd/presence/1"

MAX_PRESENCE_BYTES = MAX_RECORD_BYTES + 512
"""A heartbeat around a whole offer."""

MAX_BUSY = 4096
"""What a heartbeat can say of requests that run or wait."""

MAX_TOLD_MS = 3_600_000
"""The longest time that a heartbeat can say: no call lasts longer than an hour."""

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOLD_MS)]


class Presence(Message, frozen=True):
    """`peer` is there: `beat` counts its heartbeats within `epoch`, `offer_hash` names its offer, `busy` counts slots in use.

    `wall` is its clock in unix milliseconds. `offer` is the signed offer itself in some heartbeats and empty in most.

    The rest is its own measurement, 0 where there is none yet: how many of `busy` wait for a slot, the median and the 95th
    percentile of the time to the first token of requests that did not wait, and how long a request holds its slot.
    """

    peer: PeerIdField
    epoch: Count
    beat: Count
    offer_hash: HashField
    busy: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUSY)]
    wall: Count
    offer: Annotated[bytes, msgspec.Meta(max_length=MAX_RECORD_BYTES)] = b""
    waiting: Annotated[int, msgspec.Meta(ge=0, le=MAX_BUSY)] = 0
    first_token_ms: Milliseconds = 0
    first_token_p95_ms: Milliseconds = 0
    slot_ms: Milliseconds = 0


def sign_presence(presence: Presence, key: Ed25519PrivateKey) -> bytes:
    """The gossip payload of one heartbeat."""
    return seal(DOMAIN, encode(presence), key)


def open_presence(author: PeerId, raw: bytes, wall_ms: int) -> Presence:
    """Verify a heartbeat that `author` gossiped, at `wall_ms`.

    Raises RemoteError: refused where the two clocks differ by more than five minutes, which bounds replays and is no malice;
    malformed, oversized or bad_signature for a fault.
    """
    opened = open_envelope(DOMAIN, raw, MAX_PRESENCE_BYTES)
    presence = decode(Presence, opened.payload, MAX_PRESENCE_BYTES)
    if not presence.peer == opened.signer == author:
        raise malformed("a heartbeat speaks for another peer than its signer and author")
    if abs(presence.wall - wall_ms) > CLOCK_SLACK_MS:
        raise RemoteError(Code.REFUSED, f"a heartbeat's clock differs from ours by {abs(presence.wall - wall_ms) // 1000} s")
    return presence
