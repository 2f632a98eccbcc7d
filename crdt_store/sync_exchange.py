"""What `sync` keeps of one peer: the exchange that is under way, what it remembers between two, and its allowance."""

from dataclasses import dataclass, field
from enum import Enum, auto

from crdt_store.checkpoints import claims_of
from crdt_store.claims import SignedClaim
from crdt_store.heads import log_id
from crdt_store.sync_messages import MAX_RANGE_BYTES, MOST_RANGE_CLAIMS, HeadsRequest
from crdt_store.sync_plan import Want
from protocol.wire.ids import Hash, PeerId

VERIFY_RATE = 500.0
VERIFY_BURST = 12_000.0
"""Signatures checked for one peer: 500 a second, a tenth of one core, after a first 12,000, so that who was away for a day is
not kept waiting for what he missed."""

MAX_BARREN = 4_096

_ROWS_A_SIGNATURE = 8
"""Rows that cost as much as a claim with its signature (20 of 160 us), so that a flood in checkpoints gains nothing."""

State = tuple[int, int | None] | None
"""The length of a log and the epoch that its issuer is frozen from; None where the log is unknown."""


class Phase(Enum):
    IDLE = auto()
    ROWS = auto()
    SUMMARIES = auto()
    HEADS = auto()
    RANGES = auto()


@dataclass(slots=True)
class Exchange:
    """What is under way with one peer, and what is remembered of it between exchanges."""

    phase: Phase = Phase.IDLE
    asked: HeadsRequest | None = None
    digest: Hash | None = None
    """Theirs, when the cells or rows at hand were made."""
    cells: list[int] = field(default_factory=list)
    rows: list[bytes] = field(default_factory=list)
    """Packed, as they came."""
    restarts: int = 0
    differing: list[PeerId] = field(default_factory=list)
    wants: dict[bytes, Want] = field(default_factory=dict)
    before: dict[bytes, tuple[Want, State]] = field(default_factory=dict)
    """What the latest range request asks about, in order, and our state of it when we asked."""
    useless: dict[bytes, bool] = field(default_factory=dict)
    """By log that the answer holds claims of: whether all of them were valid and found no room here."""
    received_bytes: int = 0
    received_claims: int = 0
    requests: int = 0
    bulk: bool = False
    """So much is missing that it comes in checkpoints, to its end."""
    inserted: int = 0
    faults: int = 0
    fault_at: float = float("-inf")
    shunned_until: float = float("-inf")
    compared_at: float = float("-inf")
    allowance: float = VERIFY_BURST
    allowed_at: float = 0.0
    barren: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    """Rows that this peer gave and that yielded nothing: not asked about again until they change."""

    def give_up(self, want: Want) -> None:
        """Ask about this row no more until it changes."""
        self.wants.pop(want.row.id, None)
        self.barren[want.row.id] = want.row.length, want.row.head
        if len(self.barren) > MAX_BARREN:
            del self.barren[next(iter(self.barren))]

    def allow(self, signatures: float, now: float) -> float:
        """When so many signatures of this peer may be checked: at once within its allowance."""
        self.allowance = min(VERIFY_BURST, self.allowance + (now - self.allowed_at) * VERIFY_RATE) - signatures
        self.allowed_at = now
        return now + max(0.0, -self.allowance / VERIFY_RATE)


def cost_of(entry: SignedClaim) -> float:
    """Checking a record, in signatures."""
    return 1 + (claims_of(entry) - 1) / _ROWS_A_SIGNATURE


def spared_by(run: range) -> float:
    """What a run costs less than its claims, each checked by itself."""
    rows = len(run) - 1
    return rows - rows / _ROWS_A_SIGNATURE


def too_much(exchange: Exchange) -> bool:
    """Whether an answer is longer than any may be."""
    return exchange.received_claims > MOST_RANGE_CLAIMS or exchange.received_bytes > MAX_RANGE_BYTES


class Ids(dict[tuple[str, int], bytes]):
    """The ids of the few logs that one chunk holds claims of."""

    def __call__(self, entry: SignedClaim) -> bytes:
        return self[entry.claim.issuer, entry.claim.epoch]

    def __missing__(self, place: tuple[str, int]) -> bytes:
        found = self[place] = log_id(PeerId(place[0]), place[1])
        return found
