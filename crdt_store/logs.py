"""One log as a replica holds it: records one behind the other, a signed claim or a checkpoint each, and the hash of every claim.

Which claims have their own signature changes neither length nor hashes. Decides nothing on what is taken in.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from crdt_store.checkpoints import (
    CHECKPOINT_CLAIMS,
    CheckpointEntry,
    can_be_row,
    checkpoint_of,
    compact,
    is_checkpoint,
    read_record,
    row_claim,
)
from crdt_store.claims import NO_HASH, SignedClaim
from crdt_store.heads import LogHead
from protocol.wire.ids import Hash

HASH_BYTES = 32


@dataclass(slots=True)
class Log:
    """One epoch. `ends` is the seq of each record's last claim, `odd` those of claims that no row can stand for, ascending."""

    id: bytes
    raws: list[bytes] = field(default_factory=list)
    ends: "array[int]" = field(default_factory=lambda: array("H"))
    odd: "array[int]" = field(default_factory=lambda: array("H"))
    hashes: bytearray = field(default_factory=bytearray)
    settled: int = 0
    """Records before this one are as few as may be, whatever comes."""

    @property
    def length(self) -> int:
        """Claims held."""
        return len(self.hashes) // HASH_BYTES

    @property
    def size(self) -> int:
        """Bytes of records held."""
        return sum(map(len, self.raws))

    def hash(self, seq: int) -> Hash:
        return Hash(bytes(self.hashes[HASH_BYTES * seq : HASH_BYTES * (seq + 1)]))

    def tip(self) -> Hash:
        return Hash(bytes(self.hashes[-HASH_BYTES:])) if self.hashes else NO_HASH

    def head(self, epoch: int) -> LogHead:
        return LogHead(epoch, self.length, self.tip())

    def append(self, entry: SignedClaim) -> int:
        """Add a record that follows the tip, expanded if it is a checkpoint; how many claims it holds."""
        claims = 1
        if isinstance(entry, CheckpointEntry):
            self.hashes += b"".join([one.hash for one in entry.before])
            claims += len(entry.before)
        self.hashes += entry.hash
        self.raws.append(entry.raw)
        self.ends.append(entry.claim.seq)
        if not can_be_row(entry):
            self.odd.append(entry.claim.seq)
        return claims

    def entry(self, seq: int) -> SignedClaim:
        """One claim that is held; its `raw` is empty where only a checkpoint vouches for it."""
        return self._held(read_record(self.raws[bisect_left(self.ends, seq)]), seq)

    def entries(self) -> Iterator[SignedClaim]:
        """All claims, as `entry` gives them."""
        return self._claims(0, len(self.raws))

    def record(self, start: int) -> SignedClaim:
        """What vouches for the claim `start` with the fewest bytes: its own envelope, or a checkpoint that begins with it."""
        index = bisect_left(self.ends, start)
        return compact(list(self._claims(index, index + 1, start)))

    def first(self, index: int) -> int:
        """The seq of a record's first claim."""
        return self.ends[index - 1] + 1 if index else 0

    def plain(self, start: int, count: int) -> tuple[bytes, ...]:
        """At most `count` claims from `start` on, in their envelopes; it ends where one has no signature of its own."""
        found: list[bytes] = []
        first = bisect_left(self.ends, start)
        for seq, index in enumerate(range(first, min(first + count, len(self.raws))), start):
            if self.ends[index] != seq:
                break
            raw = self.raws[index]
            found.append(self._held(read_record(raw), seq).raw if is_checkpoint(raw) else raw)
        return tuple(found)

    def records(self, start: int, count: int, folded: bool) -> Iterator[tuple[bytes, int]]:
        """At least `count` claims from `start` on as records, and how many each holds; where `folded`, in as few as may be."""
        stop = min(start + count, self.length)
        while start < stop:
            index = bisect_left(self.ends, start)
            whole = start == self.first(index)
            end = self._run(index, stop) if folded and whole else index + 1
            if end - index > 1:
                raw = checkpoint_of(list(self._claims(index, end))).raw
            else:
                raw = self.raws[index] if whole else self.record(start).raw
            following = self.ends[end - 1] + 1
            yield raw, following - start
            start = following

    def compact(self, keep: int, most: int) -> list[CheckpointEntry]:
        """Put records together that end before the newest `keep` claims, into `most` new ones at most, which it gives."""
        made: list[CheckpointEntry] = []
        stop = self.length - keep
        index = self.settled
        while len(made) < most and index < len(self.raws) and self.ends[index] < stop:
            end = self._run(index, stop)
            if end < len(self.raws) and self.ends[end] < stop:
                self.settled = index + 1
            if end - index > 1:
                made.append(checkpoint_of(list(self._claims(index, end))))
                self.raws[index:end] = [made[-1].raw]
                del self.ends[index : end - 1]
            index += 1
        return made

    def _run(self, index: int, stop: int) -> int:
        """Behind the last record that one checkpoint can hold with the record `index`, of those that end before `stop`."""
        start = self.first(index)
        odd = bisect_left(self.odd, start)
        if odd < len(self.odd):
            if self.odd[odd] == self.ends[index]:
                return index + 1
            stop = min(stop, self.odd[odd] + 1)
        return bisect_left(self.ends, min(stop, start + CHECKPOINT_CLAIMS), index + 1)

    def _claims(self, begin: int, end: int, start: int = 0) -> Iterator[SignedClaim]:
        """The claims of the records from `begin` to `end` (not with it), those before `start` left out."""
        for index in range(begin, end):
            read = read_record(self.raws[index])
            yield from (self._held(read, seq) for seq in range(max(start, self.first(index)), self.ends[index] + 1))

    def _held(self, read: SignedClaim, seq: int) -> SignedClaim:
        """A claim of a record that was verified before it was held."""
        if not isinstance(read, CheckpointEntry):
            return read
        if seq == read.claim.seq:
            return read.signed
        return SignedClaim(row_claim(read, seq, self.hash(seq - 1) if seq else NO_HASH), self.hash(seq), b"")
