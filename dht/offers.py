"""A peer's signed, expiring statement of what it serves. Decides which offer is valid and which of two wins; stores none."""

from random import Random
from typing import Annotated, Literal

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import open_envelope, seal
from protocol.wire.errors import Code, LocalError, RemoteError, malformed
from protocol.wire.ids import Hash, PeerIdField, is_model_name
from protocol.wire.limits import MAX_NAME_CHARS, MAX_RECORD_BYTES

DOMAIN = "offer"

LIFETIME_MS = 60 * 60 * 1000
"""An offer says nothing after 60 minutes. IPFS keeps provider records 48 hours; boxes that serve models come and go faster."""

RENEWAL_SECONDS = 15 * 60
"""A quarter of the lifetime, so that three lost renewals in a row change nothing."""

CLOCK_SLACK_MS = 300_000
"""How far an issuer's clock may be ahead of ours: what libp2p allows a record."""

MAX_ADDRESSES = 16
MAX_ADDRESS_CHARS = 256
MAX_FEATURES = 16
EMBEDDINGS = "embeddings"
"""The feature of a model whose engine gives vectors for texts."""
MAX_COUNT = 2**53 - 1

Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
Address = Annotated[str, msgspec.Meta(pattern=r"^/[!-~]+\Z", max_length=MAX_ADDRESS_CHARS)]
Feature = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]*\Z", max_length=32)]
Label = Annotated[str, msgspec.Meta(pattern=r"^[ -~]*\Z", max_length=64)]


class Offer(Message, frozen=True):
    """What `peer` serves. `epoch` rises at each of its starts and `version` with each change; together they decide which wins.

    `model` "" offers presence alone: then the engine's fields are empty and `slots` is 0. `config_digest` is hex SHA-256 over
    weights, dtype, quantization, engine and version. `issued` and `expires` are unix milliseconds, at most LIFETIME_MS apart.
    `withdrawn` is the signed leave. `features` are words for what it serves beyond text, such as "embeddings".
    """

    peer: PeerIdField
    epoch: Count
    version: Count
    model: Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]
    config_digest: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
    engine: Label
    engine_version: Label
    judge_prompt: Literal["compact", "instructed", ""]
    context_tokens: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
    slots: Annotated[int, msgspec.Meta(ge=0, le=4096)]
    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)]
    issued: Count
    expires: Count
    withdrawn: bool = False
    features: Annotated[tuple[Feature, ...], msgspec.Meta(max_length=MAX_FEATURES)] = ()


class SignedOffer(msgspec.Struct, frozen=True):
    """A verified offer, its address, and the bytes that it came in and travels on in."""

    offer: Offer
    hash: Hash
    raw: bytes


def sign_offer(offer: Offer, key: Ed25519PrivateKey) -> SignedOffer:
    """Sign `offer`; raises LocalError where others would refuse it."""
    raw = seal(DOMAIN, encode(offer), key)
    try:
        return open_offer(raw, offer.issued)
    except RemoteError as error:
        raise LocalError(f"refused to sign an invalid offer: {error.message}") from error


def open_offer(raw: bytes, wall_ms: int) -> SignedOffer:
    """Verify an encoded offer at `wall_ms` (unix milliseconds).

    Raises RemoteError: malformed, oversized or bad_signature for a fault, gone for an offer that has expired.
    """
    signed = open_any_offer(raw)
    offer = signed.offer
    if offer.issued > wall_ms + CLOCK_SLACK_MS:
        raise RemoteError(Code.REFUSED, "an offer was issued in the future")
    if offer.expires <= wall_ms:
        raise RemoteError(Code.GONE, "an offer has expired")
    return signed


def open_any_offer(raw: bytes) -> SignedOffer:
    """As `open_offer`, at no particular time."""
    opened = open_envelope(DOMAIN, raw, MAX_RECORD_BYTES)
    offer = decode(Offer, opened.payload, MAX_RECORD_BYTES)
    if offer.peer != opened.signer:
        raise malformed("an offer is signed by another peer than its own")
    if not offer.issued < offer.expires <= offer.issued + LIFETIME_MS:
        raise malformed("an offer's lifetime is not between 1 ms and 60 minutes")
    _check_model(offer)
    return SignedOffer(offer, opened.hash, raw)


def better(first: SignedOffer, second: SignedOffer) -> SignedOffer:
    """Which of two offers of one peer stands: the higher epoch, then version; the hash decides only between contradictions."""
    return max(first, second, key=rank)


def rank(signed: SignedOffer) -> tuple[int, int, bytes]:
    """The order of one peer's offers: total, so that every peer settles on the same one whatever came first."""
    return signed.offer.epoch, signed.offer.version, signed.hash


def renewed(offer: Offer, wall_ms: int) -> Offer:
    """The same offer, issued anew."""
    return msgspec.structs.replace(offer, version=offer.version + 1, issued=wall_ms, expires=wall_ms + LIFETIME_MS)


def withdraw(offer: Offer, wall_ms: int) -> Offer:
    """The signed leave: stands until it expires, so that no older offer comes back."""
    return msgspec.structs.replace(renewed(offer, wall_ms), withdrawn=True)


def renewal_delay(rng: Random) -> float:
    """Seconds until the next renewal: 15 minutes, give or take a fifth, so that a mesh started at once does not renew at once."""
    return RENEWAL_SECONDS * rng.uniform(0.8, 1.2)


def _check_model(offer: Offer) -> None:
    if not offer.model:
        if offer.slots or offer.config_digest or offer.context_tokens or offer.features:
            raise malformed("an offer without a model offers capacity")
        return
    if not is_model_name(offer.model):
        raise malformed("an offer's model is no name")
    if not (offer.config_digest and offer.slots and offer.context_tokens and offer.judge_prompt and offer.engine):
        raise malformed("an offer of a model lacks its digest, engine, context, slots or judge prompt")
