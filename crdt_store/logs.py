"""One log as a replica holds it: records one behind the other, a signed claim or a checkpoint each, and the hash of every claim.

Which claims have their own signature changes neither length nor hashes. Decides nothing on what is taken in.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from crdt_store.checkpoints import (
    CHECKPOINT_CLAIMS,
    CheckpointEntry,
    can_be_row,
    compact,
    expand,
    is_checkpoint,
    read_record,
    row_claim,
    stretch,
)
from crdt_store.claims import NO_HASH, SignedClaim
from crdt_store.heads import LogHead
from protocol.wire.ids import Hash

HASH_BYTES = 32


@dataclass(slots=True)
class Log:
    """One epoch. `ends` is the seq of each record's last claim."""

    id: bytes
    raws: list[bytes] = field(default_factory=list)
    ends: "array[int]" = field(default_factory=lambda: array("H"))
    hashes: bytearray = field(default_factory=bytearray)

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

    def append(self, entry: SignedClaim) -> None:
        """Add a record that follows the tip; a checkpoint is expanded."""
        if isinstance(entry, CheckpointEntry):
            for one in entry.before:
                self.hashes += one.hash
        self.hashes += entry.hash
        self.raws.append(entry.raw)
        self.ends.append(entry.claim.seq)

    def entry(self, seq: int) -> SignedClaim:
        """One claim that is held; its `raw` is empty where only a checkpoint vouches for it."""
        read = read_record(self.raws[bisect_left(self.ends, seq)])
        if not isinstance(read, CheckpointEntry):
            return read
        if read.claim.seq == seq:
            return read.signed
        return SignedClaim(row_claim(read, seq, self.hash(seq - 1) if seq else NO_HASH), self.hash(seq), b"")

    def entries(self, start: int = 0) -> Iterator[SignedClaim]:
        """The claims from `start` on, as `entry` gives them."""
        for index in range(bisect_left(self.ends, start), len(self.raws)):
            yield from (one for one in self._expanded(index) if one.claim.seq >= start)

    def record(self, start: int) -> SignedClaim:
        """What vouches for the claim `start` with the fewest bytes: its own envelope, or a checkpoint that begins with it."""
        index = bisect_left(self.ends, start)
        if start == self.first(index):
            return expand(read_record(self.raws[index]))
        return compact([one for one in self._expanded(index) if one.claim.seq >= start])

    def first(self, index: int) -> int:
        """The seq of a record's first claim."""
        return self.ends[index - 1] + 1 if index else 0

    def plain(self, start: int, count: int) -> tuple[bytes, ...]:
        """At most `count` claims from `start` on, in their envelopes; it ends where one has no signature of its own."""
        found: list[bytes] = []
        for seq in range(start, min(start + count, self.length)):
            raw = self.raws[bisect_left(self.ends, seq)]
            if is_checkpoint(raw):
                if self.ends[bisect_left(self.ends, seq)] != seq:
                    break
                raw = self.entry(seq).raw
            found.append(raw)
        return tuple(found)

    def records(self, start: int, count: int, folded: bool) -> Iterator[tuple[bytes, int]]:
        """At least `count` claims from `start` on as records, and how many each holds; where `folded`, in as few as may be."""
        stop = min(start + count, self.length)
        while start < stop:
            index = bisect_left(self.ends, start)
            if start != self.first(index):
                raw = self.record(start).raw
                yield raw, self.ends[index] + 1 - start
                start = self.ends[index] + 1
                continue
            run = 1
            while folded and index + run < len(self.raws) and self.ends[index + run] < min(start + CHECKPOINT_CLAIMS, stop):
                run += 1
            for raw, claims in self._joined(index, index + run):
                yield raw, claims
                start += claims

    def compact(self, keep: int, most: int) -> list[tuple[int, SignedClaim]]:
        """Put records together that end before the newest `keep` claims, into `most` new ones at most.

        Gives the first seq of each new record, and the record.
        """
        made: list[tuple[int, SignedClaim]] = []
        index = 0
        while index < len(self.raws) and len(made) < most:
            start, stop = self.first(index), self.length - keep
            end = index + 1
            while end < len(self.raws) and self.ends[end] < min(start + CHECKPOINT_CLAIMS, stop):
                end += 1
            joined = self._joined(index, end)
            if len(joined) < end - index:
                self.raws[index:end] = [raw for raw, _ in joined]
                ends = array("H")
                for raw, claims in joined:
                    ends.append(start + claims - 1)
                    if claims > 1:
                        made.append((start, read_record(raw)))
                    start += claims
                self.ends[index:end] = ends
            index += len(joined)
        return made

    def _joined(self, begin: int, end: int) -> list[tuple[bytes, int]]:
        """The records from `begin` to `end` (not with it) as few: a claim that no row can stand for ends one."""
        if end - begin == 1:
            return [(self.raws[begin], self.ends[begin] + 1 - self.first(begin))]
        made: list[tuple[bytes, int]] = []
        part: list[SignedClaim] = []
        for one in (one for index in range(begin, end) for one in self._expanded(index)):
            part.append(one)
            if not can_be_row(one) or one.claim.seq == self.ends[end - 1]:
                made.append((compact(part).raw, len(part)))
                part = []
        return made

    def _expanded(self, index: int) -> Sequence[SignedClaim]:
        said = stretch(expand(read_record(self.raws[index])))
        end = said[-1]
        return (*said[:-1], end.signed) if isinstance(end, CheckpointEntry) else said
