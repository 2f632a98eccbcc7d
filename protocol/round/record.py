"""The verified messages of one round, each in its slot, and the proofs of equivocation found among them. Decides no outcome.

Bounded: only the requester and the candidates have slots, a slot holds one statement, and a peer has one contradiction at most.
Answers, the only long ones, are kept from seated members alone.
"""

from collections.abc import Iterable

import msgspec

from protocol.round.messages import (
    BY_REQUESTER,
    MAX_REVEAL_BYTES,
    MAX_SEAT_MESSAGE_BYTES,
    Acceptance,
    Header,
    Held,
    Leave,
    Reveal,
    Roster,
    RoundMessage,
    open_message,
    read_header,
    slot_of,
)
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import Hash, PeerId


class Added(msgspec.Struct, frozen=True):
    """What `Record.add` found: the message, whether it was new, and the other statement where it contradicts one."""

    held: Held
    new: bool
    contradicts: Held | None = None


class Record:
    """Every message of one round that we verified, by address and by slot."""

    def __init__(self, header_raw: bytes) -> None:
        opening = read_header(header_raw)
        if not isinstance(opening.message, Header):
            raise LocalError("read_header gave no header")
        self.header: Header = opening.message
        self.round: Hash = opening.hash
        self.requester: PeerId = opening.signer
        self.candidates = {PeerId(candidate.peer_id): candidate for candidate in self.header.candidates}
        self.conflicts: dict[PeerId, tuple[Held, Held]] = {}
        self._seats: frozenset[str] | None = None
        self._held: dict[Hash, Held] = {opening.hash: opening}
        self._slots: dict[tuple[PeerId, str], Hash] = {(opening.signer, "header"): opening.hash}
        self._seen: dict[bytes, Hash] = {header_raw: opening.hash}

    def add(self, raw: bytes) -> Added:
        """Verify and keep one envelope; raises RemoteError. Bytes seen before are recognised without another verification.

        An answer that comes before the roster is not kept and not held against anyone: it is pulled once a list names it.
        """
        known = self._seen.get(raw)
        if known is not None:
            return Added(self._held[known], new=False)
        held = open_message(raw)
        self._admit(held)
        if held.hash in self._held:
            return Added(self._held[held.hash], new=False)
        slot = (held.signer, slot_of(held.message))
        other = self._slots.get(slot)
        if other is not None and held.signer in self.conflicts:
            raise RemoteError(Code.REFUSED, "another contradiction by a peer already proved to equivocate")
        if isinstance(held.message, Reveal) and self._seats is None:
            return Added(held, new=False)
        if isinstance(held.message, Roster) and self._seats is None:
            self._seats = frozenset(held.message.seats)
        self._held[held.hash] = held
        self._seen[raw] = held.hash
        if other is None:
            self._slots[slot] = held.hash
            return Added(held, new=True)
        self.conflicts[held.signer] = (self._held[other], held)
        return Added(held, new=True, contradicts=self._held[other])

    @property
    def two_faced(self) -> bool:
        """Whether the requester contradicted itself (as requester: a member's slots are another matter)."""
        proof = self.conflicts.get(self.requester)
        return proof is not None and isinstance(proof[0].message, BY_REQUESTER)

    def find(self, author: PeerId, slot: str) -> Held | None:
        """The first statement of `author` in `slot`."""
        address = self._slots.get((author, slot))
        return None if address is None else self._held[address]

    def get(self, address: bytes) -> Held | None:
        """The message at this address."""
        return self._held.get(Hash(address))

    def lacking(self, addresses: Iterable[bytes]) -> tuple[Hash, ...]:
        """Those of `addresses` that we do not hold."""
        return tuple(Hash(address) for address in addresses if address not in self._held)

    def _admit(self, held: Held) -> None:
        message: RoundMessage = held.message
        if isinstance(message, Header) or message.round != self.round:
            raise RemoteError(Code.MALFORMED, "a message of another round")
        if isinstance(message, BY_REQUESTER):
            if held.signer != self.requester:
                raise RemoteError(Code.REFUSED, "a requester's message that the requester did not sign")
            return
        if held.signer not in self.candidates:
            raise RemoteError(Code.REFUSED, "a message of a peer that this round did not invite")
        if self._seats is not None and held.signer not in self._seats and not isinstance(message, Acceptance | Leave):
            raise RemoteError(Code.REFUSED, "a member's message of a peer without a seat")
        limit = MAX_REVEAL_BYTES if isinstance(message, Reveal) else MAX_SEAT_MESSAGE_BYTES
        if len(held.raw) > limit:
            raise RemoteError(Code.OVERSIZED, f"a member's message of {len(held.raw)} bytes where {limit} are allowed")
