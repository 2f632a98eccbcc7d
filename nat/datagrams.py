"""The UDP datagrams of our own on the mesh port: asking what address another peer sees, and probing for a hole. Codec alone.

Each begins with a byte that no QUIC packet begins with (RFC 9000 sets bit 0x40), so that both share one socket.
"""

import ipaddress
from dataclasses import dataclass

MAGIC = b"\x05swm"
NONCE_BYTES = 16
TOKEN_BYTES = 16

_ASK, _TELL, _PROBE, _ACK, _KNOCK = 1, 2, 3, 4, 5
_HOST_BYTES = 16
_TELL_BYTES = len(MAGIC) + 1 + NONCE_BYTES + _HOST_BYTES + 2
_ASK_BYTES = 64
"""A question is longer than its answer of 39 bytes: whoever forges a source address loses traffic by it."""

PROOF_BYTES = 8
_PROBE_BYTES = {True: 42, False: 40}
"""As above: a starter's probe draws one of the other side at most, and that an ack, of 38 bytes."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What address do you see?"""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    """The address that an `Ask` came from."""

    nonce: bytes
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Probe:
    """A knock at a possible hole. `token` is known to the two peers of one session alone; `starter`: sent by who began it.

    `proof` is the sender's secret of the address that it knocks at: who can say it receives there.
    """

    token: bytes
    starter: bool
    proof: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """A probe came through here: its `proof` as `echo`, and our own secret of where it came from."""

    token: bytes
    starter: bool
    echo: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Knock:
    """A dial-back over UDP: proves to who chose the nonce that datagrams come in at this port."""

    nonce: bytes


Datagram = Ask | Tell | Probe | Ack | Knock


def encode(datagram: Datagram) -> bytes:
    """The bytes of `datagram`; raises ValueError where `Tell.host` is no IP address."""
    match datagram:
        case Ask(nonce):
            return (MAGIC + bytes([_ASK]) + nonce).ljust(_ASK_BYTES, b"\0")
        case Tell(nonce, host, port):
            ip = ipaddress.ip_address(host)
            mapped = ipaddress.IPv6Address(f"::ffff:{ip}") if ip.version == 4 else ip
            return MAGIC + bytes([_TELL]) + nonce + mapped.packed + port.to_bytes(2, "big")
        case Knock(nonce):
            return MAGIC + bytes([_KNOCK]) + nonce
        case Probe(token, starter, proof):
            return (MAGIC + bytes([_PROBE]) + token + bytes([starter]) + proof).ljust(_PROBE_BYTES[starter], b"\0")
        case Ack(token, starter, echo, proof):
            return MAGIC + bytes([_ACK]) + token + bytes([starter]) + echo + proof


def decode(raw: bytes) -> Datagram | None:
    """The datagram in `raw`, None where it is none of ours or not exact."""
    if not raw.startswith(MAGIC) or len(raw) <= len(MAGIC):
        return None
    kind, rest = raw[len(MAGIC)], raw[len(MAGIC) + 1 :]
    if kind == _ASK and len(raw) == _ASK_BYTES:
        return Ask(rest[:NONCE_BYTES])
    if kind == _TELL and len(raw) == _TELL_BYTES:
        ip = ipaddress.IPv6Address(rest[NONCE_BYTES : NONCE_BYTES + _HOST_BYTES])
        return Tell(rest[:NONCE_BYTES], str(ip.ipv4_mapped or ip), int.from_bytes(rest[-2:], "big"))
    if kind == _KNOCK and len(rest) == NONCE_BYTES:
        return Knock(rest)
    return _of_session(kind, rest) if kind in (_PROBE, _ACK) else None


def _of_session(kind: int, rest: bytes) -> Probe | Ack | None:
    token, starter, said = rest[:TOKEN_BYTES], rest[TOKEN_BYTES : TOKEN_BYTES + 1], rest[TOKEN_BYTES + 1 :]
    if starter not in (b"\0", b"\1"):
        return None
    by_starter = starter == b"\1"
    if kind == _PROBE and len(MAGIC) + 1 + len(rest) == _PROBE_BYTES[by_starter]:
        return Probe(token, by_starter, said[:PROOF_BYTES])
    if kind == _ACK and len(said) == 2 * PROOF_BYTES:
        return Ack(token, by_starter, said[:PROOF_BYTES], said[PROOF_BYTES:])
    return None
