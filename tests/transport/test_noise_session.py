"""The Noise transport phase: any cut of the wire gives the same plaintext, and one wrong byte gives none."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.transport.noise_session import MAX_PLAINTEXT, CipherFault, Sealer

KEY = bytes(range(32))


def opened(opener: Sealer, wire: bytes, cut: int) -> bytes:
    received, plaintext = bytearray(), deque[bytes]()
    for at in range(0, len(wire), cut):
        received += wire[at : at + cut]
        opener.open(received, plaintext)
    assert not received
    return b"".join(plaintext)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=6), st.integers(1, 400))
def test_any_cut_of_the_wire_gives_the_same_plaintext(messages: list[bytes], cut: int) -> None:
    sealer = Sealer(KEY, 0)
    wire = b"".join(sealer.seal(message) for message in messages)
    assert opened(Sealer(KEY, 0), wire, cut) == b"".join(messages)


def test_long_plaintext_is_cut_into_messages_of_the_largest_size() -> None:
    plaintext = b"x" * (2 * MAX_PLAINTEXT + 1)
    wire = Sealer(KEY, 5).seal(plaintext)
    assert wire[:2] == b"\xff\xff"
    assert len(wire) == len(plaintext) + 3 * (2 + 16)
    assert opened(Sealer(KEY, 5), wire, 65536) == plaintext


def test_nonces_count_up_so_that_no_message_can_be_replayed() -> None:
    sealer, opener = Sealer(KEY, 0), Sealer(KEY, 0)
    first, second = sealer.seal(b"a"), sealer.seal(b"a")
    assert first != second
    assert opened(opener, first, 100) == b"a"
    with pytest.raises(CipherFault):
        opener.open(bytearray(first), deque())


@pytest.mark.parametrize("wire", [b"\x00\x00", b"\x00\x05hello", b"\x00\x40" + b"z" * 64], ids=["empty", "short", "random"])
def test_what_does_not_authenticate_is_a_fault(wire: bytes) -> None:
    with pytest.raises(CipherFault):
        Sealer(KEY, 0).open(bytearray(wire), deque())


@pytest.mark.parametrize("position", [2, 10, -1])
def test_one_flipped_bit_is_a_fault(position: int) -> None:
    wire = bytearray(Sealer(KEY, 0).seal(b"the quick brown fox"))
    wire[position] ^= 1
    with pytest.raises(CipherFault):
        Sealer(KEY, 0).open(wire, deque())


def test_an_unfinished_message_waits() -> None:
    received, plaintext = bytearray(Sealer(KEY, 0).seal(b"hello")[:-1]), deque[bytes]()
    Sealer(KEY, 0).open(received, plaintext)
    assert not plaintext
    assert received
