"""PCP's MAP request and answer (RFC 6887 sections 7 and 11), the successor of NAT-PMP on the same port. Codec alone."""

import ipaddress
from dataclasses import dataclass
from struct import Struct, error

from nat.natpmp import Protocol

VERSION = 2
NONCE_BYTES = 12
UNSUPPORTED_VERSION = 1
_ANNOUNCE, _MAP, _ANSWER = 0, 1, 0x80
_REQUEST_HEADER = Struct("!BBHI16s")
_ANSWER_HEADER = Struct("!BBBBII12x")
_MAPPING = Struct("!12sB3xHH16s")
_MAX_BYTES = 1100

RESULTS = {
    1: "unsupported version", 2: "not authorized", 3: "malformed request", 4: "unsupported opcode", 5: "unsupported option",
    6: "malformed option", 7: "network failure", 8: "out of resources", 9: "unsupported protocol", 10: "quota exceeded",
    11: "cannot provide that address", 12: "a NAT stands between us and it", 13: "too many remote peers",
}  # fmt: skip
"""Result codes of RFC 6887 section 7.4."""


@dataclass(frozen=True, slots=True)
class MapRequest:
    """Map `internal_port` of `client` (our IP as the gateway sees it). The nonce must be the same in renewals; 0 s removes."""

    nonce: bytes
    protocol: Protocol
    client: str
    internal_port: int
    external_port: int = 0
    external_host: str = "0.0.0.0"  # noqa: S104 - on the wire: any
    lifetime: int = 0


@dataclass(frozen=True, slots=True)
class Mapped:
    """Granted for `lifetime` seconds; `epoch` is the gateway's seconds since it last lost its mappings."""

    nonce: bytes
    protocol: Protocol
    internal_port: int
    external_host: str
    external_port: int
    lifetime: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The gateway said no, and for `lifetime` seconds will say nothing else; `code` is its result code."""

    code: int
    lifetime: int

    def __str__(self) -> str:
        return RESULTS.get(self.code, f"result {self.code}")


def encode(request: MapRequest) -> bytes:
    """The 60 bytes of `request`; raises ValueError where an address is none."""
    header = _REQUEST_HEADER.pack(VERSION, _MAP, 0, request.lifetime, _packed(request.client))
    wish = _packed(request.external_host)
    return header + _MAPPING.pack(request.nonce, request.protocol, request.internal_port, request.external_port, wish)


def decode(raw: bytes) -> Mapped | Refusal | None:
    """A gateway's answer, None where it is none. One that speaks only NAT-PMP refuses in its own format (RFC 6887 section 9)."""
    if len(raw) > _MAX_BYTES:
        return None
    if len(raw) >= 4 and raw[0] == 0 and raw[1] & _ANSWER:
        return Refusal(UNSUPPORTED_VERSION, 0)
    try:
        version, opcode, _, result, lifetime, epoch = _ANSWER_HEADER.unpack_from(raw)
        if opcode != _ANSWER | _MAP:
            return None
        if result or version != VERSION:
            return Refusal(result or UNSUPPORTED_VERSION, lifetime)
        nonce, protocol, internal, external, packed = _MAPPING.unpack_from(raw, _ANSWER_HEADER.size)
        known = Protocol(protocol)
    except (error, ValueError):
        return None
    ip = ipaddress.IPv6Address(packed)
    return Mapped(nonce, known, internal, str(ip.ipv4_mapped or ip), external, lifetime, epoch)


def announced_epoch(raw: bytes) -> int | None:
    """The epoch in an ANNOUNCE (RFC 6887 section 14.1), which a gateway sends once it has lost its mappings; None for none."""
    try:
        version, opcode, _, result, _, epoch = _ANSWER_HEADER.unpack_from(raw)
    except error:
        return None
    return epoch if (version, opcode, result) == (VERSION, _ANSWER | _ANNOUNCE, 0) and len(raw) <= _MAX_BYTES else None


def _packed(host: str) -> bytes:
    ip = ipaddress.ip_address(host)
    return (ipaddress.IPv6Address(f"::ffff:{ip}") if ip.version == 4 else ip).packed
