"""UDP datagrams: golden bytes, answers shorter than questions, and nothing that QUIC could have sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nat.datagrams import Ack, Ask, Knock, Probe, Tell, decode, encode

NONCE = bytes(range(16))

GOLDEN = [
    (Ask(NONCE), "0573776d01000102030405060708090a0b0c0d0e0f" + "00" * 43),
    (Tell(NONCE, "203.0.113.9", 4711), "0573776d02000102030405060708090a0b0c0d0e0f00000000000000000000ffffcb0071091267"),
    (Tell(NONCE, "2001:db8::1", 1), "0573776d02000102030405060708090a0b0c0d0e0f20010db80000000000000000000000010001"),
    (Probe(NONCE, True, bytes(range(8))), "0573776d03000102030405060708090a0b0c0d0e0f01000102030405060700" + "00" * 11),
    (Probe(NONCE, False, bytes(range(8))), "0573776d03000102030405060708090a0b0c0d0e0f00000102030405060700" + "00" * 9),
    (Ack(NONCE, True, bytes(range(8)), bytes(8)), "0573776d04000102030405060708090a0b0c0d0e0f010001020304050607" + "00" * 8),
    (Knock(NONCE), "0573776d05000102030405060708090a0b0c0d0e0f"),
]


@pytest.mark.parametrize(("datagram", "golden"), GOLDEN)
def test_datagrams_keep_their_bytes(datagram, golden):
    assert encode(datagram).hex() == golden
    assert decode(bytes.fromhex(golden)) == datagram


def test_an_answer_is_shorter_than_its_question():
    assert len(encode(Tell(NONCE, "2001:db8::ffff:ffff", 65535))) < len(encode(Ask(NONCE)))
    sizes = [len(encode(sent)) for sent in (Ack(NONCE, True, bytes(8), bytes(8)), Probe(NONCE, False, bytes(8)))]
    assert sizes == sorted({*sizes})
    assert sizes[-1] < len(encode(Probe(NONCE, True, bytes(8))))


def test_none_can_be_mistaken_for_quic():
    assert all(not encode(datagram)[0] & 0x40 for datagram, _ in GOLDEN), "QUIC sets bit 0x40 of its first byte (RFC 9000)"


@given(st.binary(max_size=64))
def test_whatever_comes_is_decoded_or_not(raw):
    decode(raw)
    found = decode(b"\x05swm" + raw)
    assert found is None or encode(found) == b"\x05swm" + raw or isinstance(found, Ask | Tell | Probe)


@pytest.mark.parametrize("golden", [golden for datagram, golden in GOLDEN if not isinstance(datagram, Ask)])
def test_one_of_another_length_is_none(golden):
    assert decode(bytes.fromhex(golden) + b"\0") is None
    assert decode(bytes.fromhex(golden)[:-1]) is None
