"""The records that this peer holds for the mesh. Decides what is kept, what wins and what gives way; checks no signature itself.

A flood finds every limit in its way: 8 KiB a record, a share for each sender and each network, 32 MiB in all. What is ours, and
what stands so close to us that it is ours to hold, never gives way to a stranger's.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dht.contacts import Contact
from dht.keyspace import place_of
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import PeerId
from protocol.wire.limits import MAX_RECORD_BYTES

MAX_NAME_BYTES = 128

REMEMBERED_MS = 3_600_000
"""How long the rank of an expired record still keeps older ones out: no offer that is older lives longer than that."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A record found valid: `order` decides which of two wins, `expires` is in unix milliseconds, `issuer` None: unsigned."""

    order: tuple[int, int, bytes]
    expires: int
    issuer: PeerId | None = None


OpenRecord = Callable[[str, bytes, int], Opened]
"""(key, value, wall in unix ms) -> what it says; raises RemoteError where it may not stand there now."""


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """Counts and bytes; an eighth of all places is the most that one /16 may take, a thirty-second the most of one /24."""

    records: int = 4096
    total_bytes: int = 32 << 20
    per_sender: int = 32
    per_narrow: int = 128
    per_wide: int = 512


@dataclass(frozen=True, slots=True)
class _Held:
    value: bytes
    opened: Opened
    sender: Contact | None
    """None: our own."""


class RecordStore:
    """What the peer at `me` holds. `close_bits`: records that share so many bits with us are ours to hold (set by upkeep)."""

    def __init__(self, me: int, open_record: OpenRecord, limits: RecordLimits | None = None) -> None:
        self.close_bits = 0
        self.size = 0
        self.refused: Counter[str] = Counter()
        self._me = me
        self._open = open_record
        self._limits = limits or RecordLimits()
        self._held: dict[bytes, _Held] = {}
        self._order: list[tuple[int, bytes]] = []
        self._shares: Counter[str] = Counter()
        self._floors: dict[bytes, Opened] = {}

    def __len__(self) -> int:
        return len(self._held)

    def put_own(self, key: str, value: bytes, wall: int) -> None:
        """Keep a record of ours; raises RemoteError where it is not valid or an older one than we hold."""
        self._put(key.encode(), value, None, wall)

    def put(self, name: bytes, value: bytes, sender: Contact, wall: int) -> None:
        """Keep a stranger's record; raises RemoteError with the reason where it is not kept. The same again is welcome."""
        try:
            self._put(name, value, sender, wall)
        except RemoteError as error:
            self.refused[str(error.code)] += 1
            raise

    def get(self, name: bytes, wall: int) -> bytes | None:
        """The record under `name`, while it is valid."""
        held = self._held.get(name)
        return held.value if held is not None and held.opened.expires > wall else None

    def names(self) -> tuple[bytes, ...]:
        """Under which names records are held."""
        return tuple(self._held)

    def own(self) -> tuple[bytes, ...]:
        """Under which names our own records stand."""
        return tuple(name for name, held in self._held.items() if held.sender is None)

    def expire(self, wall: int) -> int:
        """Forget what is past its time; how many."""
        gone = [name for name, held in self._held.items() if held.opened.expires <= wall]
        for name in gone:
            self._floors.pop(name, None)
            self._floors[name] = self._held[name].opened
            self._remove(name)
        forgotten = [name for name, floor in self._floors.items() if floor.expires + REMEMBERED_MS <= wall]
        for name in (*forgotten, *list(self._floors)[: max(0, len(self._floors) - self._limits.records)]):
            self._floors.pop(name, None)
        return len(gone)

    def _put(self, name: bytes, value: bytes, sender: Contact | None, wall: int) -> None:
        key = _key_of(name)
        if len(value) > MAX_RECORD_BYTES:
            raise RemoteError(Code.OVERSIZED, f"a record of {len(value)} bytes is over the limit of {MAX_RECORD_BYTES}")
        standing = self._held.get(name)
        if standing is not None and standing.value == value:
            return
        # The shares come before the signature: refusing a flood must not cost what checking it would.
        if sender is not None and (standing is None or standing.sender is None or standing.sender.peer != sender.peer):
            self._check_share(sender)
        opened = self._open(key, value, wall)
        floor = self._floors.get(name)
        worse = standing is not None and opened.order <= standing.opened.order
        if worse or (floor is not None and opened.order < floor.order and floor.expires + REMEMBERED_MS > wall):
            raise RemoteError(Code.REFUSED, f"a better record stands under {key}, or stood there")
        if standing is not None and standing.sender is None and sender is not None:
            raise RemoteError(Code.REFUSED, f"{key} is ours")
        self._make_room(name, value, standing, sender)
        if standing is not None:
            self._remove(name)
        self._add(name, _Held(value, opened, sender))

    def _check_share(self, sender: Contact) -> None:
        limits, network = self._limits, sender.network
        full = self._shares[f"p{sender.peer}"] >= limits.per_sender
        if network is not None:
            full = full or self._shares[f"n{network.narrow}"] >= limits.per_narrow
            full = full or self._shares[f"w{network.wide}"] >= limits.per_wide
        if full:
            raise RemoteError(Code.OVERLOADED, "this peer or its network has stored its share of records here")

    def _make_room(self, name: bytes, value: bytes, standing: _Held | None, sender: Contact | None) -> None:
        """Let the farthest records of strangers go; raises RemoteError where those left are nearer, ours, or ours to hold."""
        more = len(value) - (len(standing.value) if standing is not None else 0)
        count = 0 if standing is not None else 1
        distance = place_of(name) ^ self._me
        index = len(self._order) - 1
        victims: list[bytes] = []
        while len(self._held) + count - len(victims) > self._limits.records or self.size + more > self._limits.total_bytes:
            while index >= 0 and (self._held[self._order[index][1]].sender is None or self._order[index][1] == name):
                index -= 1
            far = self._order[index] if index >= 0 else None
            close = far is not None and self.close_bits > 0 and far[0].bit_length() <= 256 - self.close_bits
            if far is None or (sender is not None and (far[0] <= distance or close)):
                raise RemoteError(Code.OVERLOADED, "no room for a record that stands farther than those held")
            victims.append(far[1])
            more -= len(self._held[far[1]].value)
            index -= 1
        for victim in victims:
            self._remove(victim)

    def _add(self, name: bytes, held: _Held) -> None:
        self._held[name] = held
        self.size += len(held.value)
        insort(self._order, (place_of(name) ^ self._me, name))
        for share in _shares_of(held.sender):
            self._shares[share] += 1

    def _remove(self, name: bytes) -> None:
        held = self._held.pop(name)
        self.size -= len(held.value)
        del self._order[bisect_left(self._order, (place_of(name) ^ self._me, name))]
        for share in _shares_of(held.sender):
            self._shares[share] -= 1
            if not self._shares[share]:
                del self._shares[share]


def _shares_of(sender: Contact | None) -> tuple[str, ...]:
    if sender is None:
        return ()
    if sender.network is None:
        return (f"p{sender.peer}",)
    return f"p{sender.peer}", f"n{sender.network.narrow}", f"w{sender.network.wide}"


def _key_of(name: bytes) -> str:
    if len(name) > MAX_NAME_BYTES:
        raise malformed(f"a record's key has at most {MAX_NAME_BYTES} bytes")
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise malformed("a record's key is no text") from None
