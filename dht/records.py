"""What may stand in the DHT under which key. Pure: the caller binds the time; the transport asks before it stores or returns."""

import re
from collections.abc import Callable

from dht.offers import SignedOffer, open_offer, rank
from dht.record_store import MAX_NAME_BYTES, Opened
from protocol.wire.errors import Code, LocalError, RemoteError, malformed
from protocol.wire.ids import PeerId, is_model_name, is_peer_id

OFFER_PREFIX = "/swarmd/offer/"
MODEL_PREFIX = "/swarmd/model/"
SKILL_PREFIX = "/swarmd/skill/"
CONFIG_PREFIX = "/swarmd/config/"
CONTENT_PREFIX = "/swarmd/content/"
ANY_KEY = "/swarmd/any"
"""Provided by every peer that serves anything."""


def offer_key(peer: PeerId) -> str:
    """The record key of one peer's offer: the only kind of record that this mesh stores."""
    return OFFER_PREFIX + peer


def model_key(model: str) -> str:
    """The provider key of a model's name."""
    if not is_model_name(model):
        raise LocalError(f"{model!r} is no model name")
    return MODEL_PREFIX + model


def skill_key(skill: str) -> str:
    """The provider key of a word for what a peer serves beyond text, as in its offer's features."""
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", skill):
        raise LocalError(f"{skill!r} is no name of a skill")
    return SKILL_PREFIX + skill


def config_key(digest: str) -> str:
    """The provider key of a config digest (64 hex digits): who serves the very same weights, engine and quantization."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise LocalError(f"{digest!r} is no config digest")
    return CONFIG_PREFIX + digest


def content_key(address: bytes) -> str:
    """The provider key of a file's content address."""
    return CONTENT_PREFIX + address.hex()


def key_of(what: str) -> str:
    """The key that people mean by a peer id, a config digest, a model's name, or a key itself; raises RemoteError(malformed)."""
    if what.startswith("/swarmd/") and len(what) <= MAX_NAME_BYTES:
        return what
    if is_peer_id(what):
        return offer_key(PeerId(what))
    if re.fullmatch(r"[0-9a-f]{64}", what):
        return config_key(what)
    if is_model_name(what):
        return model_key(what)
    raise malformed(f"{what[:64]!r} is no peer id, no model's name, no config digest and no key such as {ANY_KEY}")


def open_record(key: str, value: bytes, wall_ms: int) -> SignedOffer:
    """The offer that stands under `key`; raises RemoteError for another key, another peer's offer, or an offer not valid now."""
    peer = key.removeprefix(OFFER_PREFIX)
    if not key.startswith(OFFER_PREFIX) or not is_peer_id(peer):
        raise malformed("no record may stand under this key")
    signed = open_offer(value, wall_ms)
    if signed.offer.peer != peer:
        raise malformed("a record holds another peer's offer")
    return signed


def open_for_store(key: str, value: bytes, wall_ms: int, admits: Callable[[PeerId], bool] = lambda _: True) -> Opened:
    """As `open_record`, as a record store wants it (`record_store.OpenRecord`); raises RemoteError for an issuer not admitted."""
    signed = open_record(key, value, wall_ms)
    if not admits(PeerId(signed.offer.peer)):
        raise RemoteError(Code.REFUSED, "a record's issuer is not of this mesh")
    return Opened(rank(signed), signed.offer.expires, PeerId(signed.offer.peer))
