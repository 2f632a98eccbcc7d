"""Who may take how much of a replica: local policy, so that a crowd of keys fills its own share and nobody else's.

What converges and what does not. The state of one log, a prefix of one chain or a fork, is a function of the claims alone, and
two replicas never hold different claims in one place. WHICH logs a replica has room for is its own policy: it looks at
whom its owner has dealt with, and, where the room that is lent out is used up, at who came first. As long as nothing is
refused for want of room, replicas that met are equal whole; after that, in every log that both have room for.

The rules. Half of the room is reserved: a quarter for issuers that we vouch for, a quarter for strangers, each issuer its equal
part, so that no insertion ever costs another issuer that part. The other half is lent, first come, first served; those we vouch
for take it back from the strangers who borrowed most, never from each other: whole logs go, and what fits into their own part is
asked for again. A stranger's insertion drops nothing of anybody else. Our own claims are outside all of this. A stranger's
place is never given to another while we run: who could take it would need no more than new keys.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from protocol.wire.ids import PeerId


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a replica holds at most.

    `issuer_claims` 10,000 is the quota per author; a last epoch may exceed it by its own length. Issuers are at most `strangers`
    and `vouched`, together as many as the directory knows peers. `total_bytes` of records: 64 MiB is 200,000 claims, or five
    times as many in checkpoints.
    """

    issuer_claims: int = 10_000
    issuer_epochs: int = 1_024
    strangers: int = 3_072
    vouched: int = 1_024
    total_bytes: int = 64 << 20

    @property
    def stranger_bytes(self) -> int:
        """Reserved for each stranger: 5.3 KiB by default, about 16 claims."""
        return self.total_bytes // 4 // max(self.strangers, 1)

    @property
    def vouched_bytes(self) -> int:
        """Reserved for each issuer that we vouch for: 16 KiB by default, about 48 claims."""
        return self.total_bytes // 4 // max(self.vouched, 1)

    @property
    def lent_bytes(self) -> int:
        """Lent beyond what is reserved."""
        return self.total_bytes // 2


class Room:
    """Bytes held by issuer, and who may take more. `shrink(issuer)` drops a log of a borrower's and returns the bytes freed."""

    def __init__(self, bounds: Bounds, owner: PeerId | None, shrink: Callable[[PeerId], int]) -> None:
        self._bounds = bounds
        self._guarantees = bounds.stranger_bytes, bounds.vouched_bytes
        self._lendable = bounds.lent_bytes
        self._owner = owner
        self._shrink = shrink
        self._used: dict[PeerId, int] = {}
        self._vouched: set[PeerId] = set()
        self._strangers = 0
        self._lent = 0

    def vouch(self, issuers: Iterable[PeerId]) -> None:
        """Our owner has dealt with `issuers`: they leave the crowd of strangers, as long as there are places."""
        for issuer in issuers:
            if issuer in self._vouched or len(self._vouched) >= self._bounds.vouched:
                continue
            used = self._used.get(issuer)
            if used is not None and issuer != self._owner:
                self._lent += max(0, used - self._bounds.vouched_bytes) - max(0, used - self._bounds.stranger_bytes)
                self._strangers -= 1
            self._vouched.add(issuer)

    def has(self, issuer: PeerId, size: int) -> bool:
        """Whether `size` more bytes of `issuer` would find room, if need be at the cost of strangers who borrowed."""
        if issuer == self._owner:
            return True
        vouched = issuer in self._vouched
        if not vouched and issuer not in self._used and self._strangers >= self._bounds.strangers:
            return False
        lack = self._lack(issuer, size)
        return lack <= 0 or (vouched and self._lent_to_strangers(lack))

    def take(self, issuer: PeerId, size: int) -> bool:
        """Count `size` more bytes of `issuer`; False where there is no room for them."""
        known = self._used.get(issuer)
        used = known or 0
        if issuer != self._owner:
            vouched = issuer in self._vouched
            over = used - self._guarantees[vouched]
            lending = max(0, over + size) - max(0, over)
            if (known is None or (lending and self._lent + lending > self._lendable)) and not self._make(issuer, size):
                return False
            if known is None and not vouched:
                self._strangers += 1
            self._lent += lending
        self._used[issuer] = used + size
        return True

    def _make(self, issuer: PeerId, size: int) -> bool:
        """Room for a new issuer, or for more than there is: strangers who borrowed give it back, where there are such."""
        if not self.has(issuer, size):
            return False
        while self._lack(issuer, size) > 0:
            most = max((name for name in self._used if name not in self._vouched), key=self._borrowed)
            if self._shrink(most) <= 0:
                return False
        return True

    def release(self, issuer: PeerId, size: int) -> None:
        """`size` bytes of `issuer` are held no longer; its place stays its own."""
        if issuer != self._owner:
            self._lent += self._lending(issuer, -size)
        self._used[issuer] -= size

    def _guaranteed(self, issuer: PeerId) -> int:
        return self._guarantees[issuer in self._vouched]

    def _borrowed(self, issuer: PeerId) -> int:
        return 0 if issuer == self._owner else max(0, self._used.get(issuer, 0) - self._guaranteed(issuer))

    def _lending(self, issuer: PeerId, size: int) -> int:
        over = self._used.get(issuer, 0) - self._guarantees[issuer in self._vouched]
        return max(0, over + size) - max(0, over)

    def _lack(self, issuer: PeerId, size: int) -> int:
        used = self._used.get(issuer, 0)
        guaranteed = self._guarantees[issuer in self._vouched]
        if used + size <= guaranteed:
            return 0
        return self._lent + size + (0 if used > guaranteed else used - guaranteed) - self._lendable

    def _lent_to_strangers(self, enough: int) -> bool:
        found = 0
        for name in self._used:
            if name not in self._vouched:
                found += self._borrowed(name)
                if found >= enough:
                    return True
        return False
