"""A storage that forgets with the process: for tests, simulations, and daemons told to keep nothing."""

from collections.abc import Sequence

from crdt_store.claims import SignedClaim
from crdt_store.forks import ForkProof
from crdt_store.outcomes import Compacted, Forked, Inserted
from crdt_store.own_log import next_epoch
from crdt_store.store import Change, Stored
from protocol.wire.ids import PeerId


class MemoryStorage:
    """Keeps claims in dictionaries, by the rules of `store.Storage`."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, int, int], bytes] = {}
        self._own: set[tuple[str, int, int]] = set()
        self._proofs: dict[str, ForkProof] = {}
        self._epochs: dict[str, int] = {}

    def open_epoch(self, issuer: PeerId, above: int, now_ms: int) -> int:
        held = [epoch for name, epoch, _ in self._claims if name == issuer]
        self._epochs[issuer] = next_epoch(max([above, self._epochs.get(issuer, 0), *held]), now_ms)
        return self._epochs[issuer]

    def load(self) -> Stored:
        return Stored([raw for _, raw in sorted(self._claims.items())], list(self._proofs.values()))

    def append_own(self, entries: Sequence[SignedClaim]) -> None:
        for entry in entries:
            place = (entry.claim.issuer, entry.claim.epoch, entry.claim.seq)
            self._claims[place] = entry.raw
            self._own.add(place)

    def add_foreign(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, Forked):
                self._proofs[change.fork.issuer] = change.fork.proof
                self._drop([p for p in self._claims if p[0] == change.fork.issuer and p[1] >= change.fork.epoch])
            else:
                claim = change.entry.claim
                if isinstance(change, Compacted):
                    places = ((claim.issuer, claim.epoch, seq) for seq in range(change.entry.start, claim.seq))
                    self._drop([place for place in places if place in self._claims])
                self._claims[(claim.issuer, claim.epoch, claim.seq)] = change.entry.raw
                for gone in change.dropped if isinstance(change, Inserted) else ():
                    self._drop([p for p in self._claims if p[:2] == (gone.issuer, gone.epoch)])

    def close(self) -> None:
        """Nothing to release."""

    def _drop(self, places: Sequence[tuple[str, int, int]]) -> None:
        for place in places:
            if place not in self._own:
                del self._claims[place]
