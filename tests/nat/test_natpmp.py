"""NAT-PMP on the wire: the octets of RFC 6886 section 3, and garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat.natpmp import Mapped, OutsideAddress, Protocol, Refusal, ask_address, ask_mapping, decode

REQUESTS = {
    "3.2 outside address": (ask_address(), "0000"),
    "3.3 UDP 4711 for two hours, any port": (ask_mapping(Protocol.UDP, 4711, 0, 7200), "0001 0000 1267 0000 00001c20"),
    "3.3 TCP 4711, the same port wished for": (ask_mapping(Protocol.TCP, 4711, 4711, 3600), "0002 0000 1267 1267 00000e10"),
    "3.4 TCP 4711 no more": (ask_mapping(Protocol.TCP, 4711, 0, 0), "0002 0000 1267 0000 00000000"),
}

ANSWERS = {
    "outside address": ("0080 0000 00000e10 cb007107", OutsideAddress("203.0.113.7", 3600)),
    "UDP": ("0081 0000 00000001 1267 d431 00001c20", Mapped(Protocol.UDP, 4711, 54321, 7200, 1)),
    "TCP": ("0082 0000 00000001 1267 1267 00000e10", Mapped(Protocol.TCP, 4711, 4711, 3600, 1)),
    "not authorized": ("0082 0002 00000001 1267 0000 00000000", Refusal(2)),
    "unsupported opcode, cut": ("0082 0005", Refusal(5)),
    "a request": ("0002 0000 1267 1267 00000e10", None),
    "another version": ("0282 0000 00000001 1267 1267 00000e10", None),
    "an opcode that nobody asked": ("0085 0000 00000001 1267 1267 00000e10", None),
    "cut": ("0082 0000 00000001 1267 1267 0000", None),
    "empty": ("", None),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_the_octets_of_the_rfc(name):
    raw, octets = REQUESTS[name]
    assert raw == bytes.fromhex(octets)


@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name):
    octets, wanted = ANSWERS[name]
    assert decode(bytes.fromhex(octets)) == wanted


def test_refusals_say_why():
    assert str(Refusal(2)) == "not authorized"
    assert str(Refusal(77)) == "result 77"


@given(st.binary(max_size=64))
def test_any_bytes_give_an_answer_or_none(raw):
    decode(raw)
