"""How far a replica goes: heads of logs and the hashes over them. Small enough to gossip; knows no claim's content."""

from collections.abc import Iterable
from hashlib import blake2b
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


FROZEN = 0xFFFF
"""In place of a log's length: the issuer is frozen, and a proof can be had."""

_ID_BYTES = 8
_LENGTH_BYTES = 2
ROW_HEAD_BYTES = 3


class LogRow(msgspec.Struct, frozen=True, gc=False):
    """One log in 13 bytes: enough to see that two replicas differ in it. `head` is the beginning of its last claim's hash.

    Ids and heads are cut short, so that someone could make two of a kind; then the replicas' digests differ though their rows
    are equal, and whole hashes are compared (`sync_messages.HeadsRequest.after`).
    """

    id: bytes
    length: int
    head: bytes

    def pack(self) -> bytes:
        return self.id + self.length.to_bytes(_LENGTH_BYTES, "big") + self.head

    @staticmethod
    def unpack(packed: bytes) -> "LogRow":
        return LogRow(packed[:8], int.from_bytes(packed[8:10], "big"), packed[10:13])


def log_id(issuer: PeerId, epoch: int) -> bytes:
    """The short name of a log in sketches and requests."""
    return blake2b(f"{issuer} {epoch}".encode(), digest_size=_ID_BYTES, person=b"swarmd/1/log").digest()


def fork_id(issuer: PeerId) -> bytes:
    """The short name of an issuer's fork proof."""
    return blake2b(issuer.encode(), digest_size=_ID_BYTES, person=b"swarmd/1/fork").digest()


def log_row(log: bytes, head: LogHead, whole: bool = False) -> LogRow:
    """The row of a log whose id is `log`; with the `whole` hash it is too long to be packed."""
    return LogRow(log, head.length, head.hash if whole else head.hash[:ROW_HEAD_BYTES])


def fork_row(issuer: PeerId, epoch: int) -> LogRow:
    """The row that says that `issuer` is frozen from `epoch` on."""
    return LogRow(fork_id(issuer), FROZEN, (epoch & 0xFFFFFF).to_bytes(ROW_HEAD_BYTES, "big"))
