"""Signed envelopes and the one Ed25519 verdict: every edge on which libraries disagree is refused."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.wire.codec import decode, encode
from protocol.wire.envelope import Envelope, open_envelope, public_bytes, seal, statement_hash
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import peer_id_of
from protocol.wire.signature import verify

ORDER = (1 << 252) + 27742317777372353535851937790883648493
PRIME = (1 << 255) - 19
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = public_bytes(KEY)

# The eight points of small order as "Taming the many EdDSAs" (2020), table 1, lists their canonical encodings.
SMALL_ORDER = [
    bytes.fromhex(point)
    for point in (
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    )
]
NON_CANONICAL = [(PRIME + y).to_bytes(32, "little") for y in range(19)] + [
    ((PRIME + y) | (1 << 255)).to_bytes(32, "little") for y in range(19)
]


def code_of(raw: bytes, domain: str = "claim", limit: int = 4096) -> Code:
    with pytest.raises(RemoteError) as refused:
        open_envelope(domain, raw, limit)
    return refused.value.code


def test_an_envelope_opens_in_its_own_domain_alone() -> None:
    raw = seal("claim", b"payload", KEY)
    opened = open_envelope("claim", raw)
    assert (opened.signer, opened.payload) == (peer_id_of(PUBLIC), b"payload")
    assert opened.hash == statement_hash("claim", opened.signer, b"payload")
    assert code_of(raw, "offer") is Code.BAD_SIGNATURE


def test_domains_do_not_run_into_payloads() -> None:
    signature = decode(Envelope, seal("claim", b"xyz", KEY)).signature
    forged = encode(Envelope(peer_id_of(PUBLIC), b"yz", signature))
    assert code_of(forged, "claim\0x") is not None
    assert statement_hash("a", peer_id_of(PUBLIC), b"bc") != statement_hash("ab", peer_id_of(PUBLIC), b"c")


def test_any_flipped_bit_is_refused() -> None:
    raw = seal("claim", b"payload", KEY)
    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= 1
        assert code_of(bytes(changed)) in (Code.BAD_SIGNATURE, Code.MALFORMED)


def test_an_oversized_or_short_envelope_is_refused() -> None:
    raw = seal("claim", bytes(5000), KEY)
    assert code_of(raw) is Code.OVERSIZED
    assert code_of(seal("claim", b"", KEY)[:-1]) is Code.MALFORMED


def test_one_statement_has_one_address_whatever_its_signature() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    opened = [open_envelope("claim", seal("claim", b"x", key)) for key in (KEY, KEY, other)]
    assert opened[0].hash == opened[1].hash != opened[2].hash


def test_s_plus_the_group_order_is_refused() -> None:
    signature = KEY.sign(b"message")
    malleable = signature[:32] + (int.from_bytes(signature[32:], "little") + ORDER).to_bytes(32, "little")
    assert verify(PUBLIC, signature, b"message")
    assert not verify(PUBLIC, malleable, b"message")


@pytest.mark.parametrize("point", SMALL_ORDER)
def test_keys_and_nonces_of_small_order_are_refused(point: bytes) -> None:
    identity = SMALL_ORDER[0]
    assert not verify(point, identity + bytes(32), b"message")
    assert not verify(point, KEY.sign(b"message"), b"message")
    assert not verify(PUBLIC, point + KEY.sign(b"message")[32:], b"message")


@pytest.mark.parametrize("point", NON_CANONICAL)
def test_points_outside_the_field_are_refused(point: bytes) -> None:
    assert not verify(point, KEY.sign(b"message"), b"message")
    assert not verify(PUBLIC, point + bytes(32), b"message")


@pytest.mark.parametrize(
    ("key", "signature"), [(b"", bytes(64)), (PUBLIC + b"\0", bytes(64)), (PUBLIC, b""), (PUBLIC, bytes(65))]
)
def test_wrong_lengths_are_refused(key: bytes, signature: bytes) -> None:
    assert not verify(key, signature, b"message")


def test_a_point_off_the_curve_is_refused() -> None:
    assert not verify((2).to_bytes(32, "little"), KEY.sign(b"message"), b"message")


# RFC 8032 section 7.1, tests 1 to 3: public key, message, signature.
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_the_vectors_of_rfc_8032_verify(key: str, message: str, signature: str) -> None:
    assert verify(bytes.fromhex(key), bytes.fromhex(signature), bytes.fromhex(message))
