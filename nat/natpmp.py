"""NAT-PMP's messages (RFC 6886 section 3): asking a gateway for its outside address and for a port of it. Codec alone."""

import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct, error

PORT = 5351
ANNOUNCED_PORT = 5350
"""Where gateways say by multicast to 224.0.0.1 that they lost their mappings (RFC 6886 section 3.2.1, RFC 6887 section 14.1)."""

VERSION = 0
_ADDRESS, _UDP, _TCP, _ANSWER = 0, 1, 2, 128
_MAP = Struct("!BBHHHI")
_ADDRESS_ANSWER = Struct("!BBHI4s")
_MAP_ANSWER = Struct("!BBHIHHI")
_REFUSAL = Struct("!BBH")


class Protocol(IntEnum):
    """Their numbers in IP headers, as PCP names them too."""

    TCP = 6
    UDP = 17


RESULTS = {1: "unsupported version", 2: "not authorized", 3: "network failure", 4: "out of resources", 5: "unsupported opcode"}
"""Result codes of RFC 6886 section 3.5."""


@dataclass(frozen=True, slots=True)
class OutsideAddress:
    """The gateway's own address outside; `epoch` is its seconds since it last lost its mappings."""

    host: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """The gateway passes what comes to its `external_port` on to our `internal_port`, for `lifetime` seconds."""

    protocol: Protocol
    internal_port: int
    external_port: int
    lifetime: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The gateway said no; `code` is its result code."""

    code: int

    def __str__(self) -> str:
        return RESULTS.get(self.code, f"result {self.code}")


def ask_address() -> bytes:
    """Which address have you outside?"""
    return bytes((VERSION, _ADDRESS))


def ask_mapping(protocol: Protocol, internal_port: int, external_port: int, lifetime: int) -> bytes:
    """Map a port; `external_port` is a wish (0: any). A `lifetime` of 0 seconds removes it, and its wish must be 0."""
    opcode = _TCP if protocol is Protocol.TCP else _UDP
    return _MAP.pack(VERSION, opcode, 0, internal_port, external_port, lifetime)


def decode(raw: bytes) -> OutsideAddress | Mapped | Refusal | None:
    """A gateway's answer, None where it is none. Longer ones are cut, as a later version may append."""
    try:
        version, opcode, result = _REFUSAL.unpack_from(raw)
        if version != VERSION or opcode not in (_ANSWER + _ADDRESS, _ANSWER + _UDP, _ANSWER + _TCP):
            return None
        if result:
            return Refusal(result)
        if opcode == _ANSWER + _ADDRESS:
            _, _, _, epoch, packed = _ADDRESS_ANSWER.unpack_from(raw)
            return OutsideAddress(str(ipaddress.IPv4Address(packed)), epoch)
        _, _, _, epoch, internal, external, lifetime = _MAP_ANSWER.unpack_from(raw)
    except error:
        return None
    return Mapped(Protocol.TCP if opcode == _ANSWER + _TCP else Protocol.UDP, internal, external, lifetime, epoch)
