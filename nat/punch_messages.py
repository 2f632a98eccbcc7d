"""What two peers tell each other over their relayed connection before they punch: addresses, kinds of NAT. Codec alone."""

from typing import Annotated, TypeVar

import msgspec

from nat.observed import Mapping
from nat.port_count import PortCount
from protocol.wire.codec import Message, decode, encode
from protocol.wire.ids import PeerIdField

PROTOCOL = "/swarmd/punch/1"
WITNESS_PROTOCOL = "/swarmd/witness/1"
MAX_MESSAGE_BYTES = 8192
MAX_CANDIDATES = 8

DIAL_BYTES = 240
"""What a TCP dial of a punch sends at most to an address that is silent: SYNs after 0, 1 and 3 s, of 80 bytes over IPv6."""

KNOCK_BYTES = 90
"""A probe over IPv6, with headers."""

KNOCKS = 24
"""To one address that is silent."""

MOST_KNOCKS = 64
"""To all of them of a session."""

_MAPPINGS = tuple(Mapping)
"""Their places are their numbers on the wire; new ones are appended."""

Token = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Number = Annotated[int, msgspec.Meta(ge=0, le=255)]
STEP_ORIGIN = 32768
PortStep = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class Endpoint(Message, frozen=True):
    """An IP address, as text, and a port."""

    host: Annotated[str, msgspec.Meta(max_length=39)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Hello(Message, frozen=True):
    """Where we can be reached and what stands in the way: sent by the starter, answered by the other.

    `udp` is empty where we have no UDP. Of a NAT that counts, the one that answers tells `step` (what is added each time, plus
    32768) and `following` (the port that should come next, 0: not known). The session's token is the exclusive or of both tokens.
    `padding` makes it as long as what it has the other side send blind: the addresses may be somebody else's.
    """

    token: Token
    tcp: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=MAX_CANDIDATES)] = ()
    udp: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=MAX_CANDIDATES)] = ()
    tcp_mapping: Number = 0
    udp_mapping: Number = 0
    step: PortStep = STEP_ORIGIN
    following: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    padding: Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE_BYTES)] = b""


class Go(Message, frozen=True):
    """Start now: the starter waits half a round trip after sending it. `step` and `following` as in a Hello, of its NAT."""

    version: Number = 1
    step: PortStep = STEP_ORIGIN
    following: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


H = TypeVar("H", Hello, Go)


class WitnessRequest(Message, frozen=True):
    """Asked of a relay: does `peer`, to whom you carry a circuit of ours, come to you from the IP address `host`?"""

    peer: PeerIdField
    host: Annotated[str, msgspec.Meta(max_length=39)]


class WitnessReply(Message, frozen=True):
    """Yes or no; no where there is no such circuit."""

    yes: bool


def counted(message: H, count: PortCount | None) -> H:
    """`message` with the count of its sender's NAT, where that is known."""
    if count is None:
        return message
    return msgspec.structs.replace(message, step=count.step + STEP_ORIGIN, following=count.following)


def padded(hello: Hello) -> Hello:
    """`hello`, long enough to pay for what its addresses cost the other side."""
    cost = DIAL_BYTES * len(hello.tcp) + KNOCK_BYTES * min(MOST_KNOCKS, KNOCKS * len(hello.udp))
    return msgspec.structs.replace(hello, padding=bytes(max(0, cost - len(encode(hello)))))


def count_in(message: Hello | Go) -> PortCount | None:
    """The count of the sender's NAT; None where it tells none."""
    step = message.step - STEP_ORIGIN
    return PortCount(message.following, step) if message.following and step else None


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
