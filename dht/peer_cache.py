"""The peers that a restarted daemon tries first. Decides which are kept and in which order; touches no file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from dht.offers import MAX_ADDRESSES, Address, Count
from protocol.wire.ids import PeerId, PeerIdField

MAX_ENTRIES = 256
MAX_BYTES = 2 << 20

ANCHORS = 3
"""Peers of longest standing go first: who poisons a table waits for the restart (on Ethereum in 2018 two hosts were enough), and
nobody makes himself old by meeting us often."""


class CachedPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A peer that we were connected to: its addresses, and when a connection first and last held (unix ms)."""

    peer: PeerIdField
    addresses: tuple[Address, ...]
    first_success: Count
    last_success: Count
    successes: Count = 1


class _File(msgspec.Struct, frozen=True):
    peers: tuple[CachedPeer, ...]
    version: int = 1


@dataclass(frozen=True, slots=True)
class PeerCache:
    """At most MAX_ENTRIES peers; every change gives a new cache."""

    entries: tuple[CachedPeer, ...] = ()

    def seen(self, peer: PeerId, addresses: Sequence[str], wall_ms: int) -> "PeerCache":
        """After a connection to `peer` at these addresses held. A full cache drops its stalest peer that is no anchor."""
        known = {entry.peer: entry for entry in self.entries}
        old = known.get(peer)
        first, times = (old.first_success, old.successes + 1) if old else (wall_ms, 1)
        kept = tuple(addresses[:MAX_ADDRESSES]) or (old.addresses if old else ())
        known[peer] = CachedPeer(peer, kept, first, wall_ms, times)
        return PeerCache(_bounded(known.values()))

    def ordered(self) -> tuple[CachedPeer, ...]:
        """Whom to try, in this order: the anchors, then whoever was reached latest."""
        anchors = _anchors(self.entries)
        rest = sorted((e for e in self.entries if e not in anchors), key=lambda e: (-e.last_success, e.peer))
        return (*anchors, *rest)

    def encode(self) -> bytes:
        """The file's bytes: JSON, for people who look."""
        return msgspec.json.format(msgspec.json.encode(_File(self.entries)), indent=1)


def decode_cache(raw: bytes) -> PeerCache:
    """The cache in a file's bytes; an empty one where they are damaged, because a start without a cache is only slower."""
    if len(raw) > MAX_BYTES:
        return PeerCache()
    try:
        file = msgspec.json.decode(raw, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return PeerCache()
    return PeerCache(_bounded({entry.peer: entry for entry in file.peers}.values()))


def _anchors(entries: Iterable[CachedPeer]) -> list[CachedPeer]:
    """The peers whose connections span the longest time."""
    return sorted(entries, key=lambda e: (e.first_success - e.last_success, e.peer))[:ANCHORS]


def _bounded(entries: Iterable[CachedPeer]) -> tuple[CachedPeer, ...]:
    return PeerCache(tuple(entries)).ordered()[:MAX_ENTRIES]
