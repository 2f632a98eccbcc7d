"""What two peers tell each other over their relayed connection before they punch: addresses, kinds of NAT. Codec alone."""

from typing import Annotated

import msgspec

from nat.observed import Mapping
from protocol.wire.codec import Message, decode
from protocol.wire.ids import PeerIdField

PROTOCOL = "/swarmd/punch/1"
WITNESS_PROTOCOL = "/swarmd/witness/1"
MAX_MESSAGE_BYTES = 4096
MAX_CANDIDATES = 8

_MAPPINGS = tuple(Mapping)
"""Their places are their numbers on the wire; new ones are appended."""

Token = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Number = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Endpoint(Message, frozen=True):
    """An IP address, as text, and a port."""

    host: Annotated[str, msgspec.Meta(max_length=39)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Hello(Message, frozen=True):
    """Where we can be reached and what stands in the way: sent by the starter, answered by the other.

    `udp` is empty where we have no UDP. `step` is the distance of the ports that a predictable NAT hands out, offset by 32768.
    The session's token is the exclusive or of both tokens.
    """

    token: Token
    tcp: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=MAX_CANDIDATES)] = ()
    udp: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=MAX_CANDIDATES)] = ()
    tcp_mapping: Number = 0
    udp_mapping: Number = 0
    step: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 32768


class Go(Message, frozen=True):
    """Start now: the starter waits half a round trip after sending it."""

    version: Number = 1


class WitnessRequest(Message, frozen=True):
    """Asked of a relay: does `peer`, to whom you carry a circuit of ours, come to you from the IP address `host`?"""

    peer: PeerIdField
    host: Annotated[str, msgspec.Meta(max_length=39)]


class WitnessReply(Message, frozen=True):
    """Yes or no; no where there is no such circuit."""

    yes: bool


def number_of(mapping: Mapping) -> int:
    """How `mapping` travels."""
    return _MAPPINGS.index(mapping)


def mapping_of(number: int) -> Mapping:
    """What `number` stands for; UNKNOWN for one of a later version."""
    return _MAPPINGS[number] if number < len(_MAPPINGS) else Mapping.UNKNOWN


def decode_hello(raw: bytes) -> Hello:
    """A Hello; raises RemoteError."""
    return decode(Hello, raw, MAX_MESSAGE_BYTES)


def joint_token(one: bytes, other: bytes) -> bytes:
    """The session's token, the same for both sides; neither chooses it alone."""
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
