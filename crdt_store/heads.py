"""How far a replica goes: heads of logs and the hashes over them. Small enough to gossip; knows no claim's content."""

from collections.abc import Iterable
from typing import Annotated

import msgspec

from crdt_store.claims import MAX_LOG_CLAIMS, Epoch
from protocol.wire.codec import Message, encode
from protocol.wire.ids import Hash, HashField, PeerId, PeerIdField, sha256

MAX_EPOCHS = 1_024
"""Logs of one issuer in one message: 46 KiB. A replica keeps no more."""


class LogHead(Message, frozen=True):
    """One log: its epoch, its length, and the hash of its last claim, which commits to all before it."""

    epoch: Epoch
    length: Annotated[int, msgspec.Meta(ge=1, le=MAX_LOG_CLAIMS)]
    hash: HashField


class IssuerHeads(Message, frozen=True):
    """All logs held of one issuer, by epoch; `frozen_from` is the epoch of its fork or None."""

    issuer: PeerIdField
    logs: Annotated[tuple[LogHead, ...], msgspec.Meta(max_length=MAX_EPOCHS)]
    frozen_from: Epoch | None = None


def issuer_digest(heads: IssuerHeads) -> Hash:
    """A hash over one issuer's heads. Which proof of a fork is held does not enter: any one of them freezes alike."""
    return sha256(b"swarmd/1/issuer", encode(heads))


def replica_digest(issuers: Iterable[tuple[PeerId, Hash]]) -> Hash:
    """A hash over all issuers' digests, given in sorted order."""
    return sha256(b"swarmd/1/replica", *(part for issuer, digest in issuers for part in (issuer.encode(), digest)))
