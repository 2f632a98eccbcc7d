"""What enters the round machines and what leaves them: values alone. Decides nothing."""

from dataclasses import dataclass
from typing import Literal

from protocol.job import Job, Turn
from protocol.round.fold import Result
from protocol.wire.errors import Code
from protocol.wire.ids import Hash, PeerId

# --- events


@dataclass(frozen=True, slots=True)
class Started:
    """Begin. A member that cannot take part now says why in `refusal`, and by which code, and so declines."""

    refusal: str = ""
    code: Code | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A round message arrived. `sender` carried it and need not have signed it."""

    sender: PeerId
    raw: bytes


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a `Pull` brought back from `sender`; may be empty, and may come in several parts."""

    sender: PeerId
    raws: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """Our engine finished the job of `Generate`."""

    text: str
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class AnswerFailed:
    """Our engine could not."""

    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """For each question of `Judge`, in its order, log-odds in milli-nats that the first choice holds (`log_odds_milli`)."""

    log_odds_milli: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class JudgeFailed:
    """Our engine could not judge."""

    reason: str


@dataclass(frozen=True, slots=True)
class Explained:
    """What our engine said to `Explain` in its time, as far as it came; may be empty."""

    text: str


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The connection to a peer was lost and is not coming back soon: do not wait for it. A late message still counts."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Woken:
    """The time of the last `WakeAt` has come."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The user cancelled, or this daemon is draining: end the round cleanly now."""

    reason: str


Event = Started | Received | Pulled | Answered | AnswerFailed | Judged | JudgeFailed | Explained | PeerGone | Woken | Stopped

# --- effects


@dataclass(frozen=True, slots=True)
class Send:
    """Push one message to each of `peers`, best effort; a peer's own id among them means its other machine of this round."""

    peers: tuple[PeerId, ...]
    raw: bytes


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask `peers`, in this order until all are found, for these messages by address. The machine repeats it where it must."""

    hashes: tuple[Hash, ...]
    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Pass `Woken` at this time (seconds, the caller's monotonic clock). Replaces the one before."""

    time: float


@dataclass(frozen=True, slots=True)
class Generate:
    """Run the job on our engine, for at most `seconds`; then `Answered` or `AnswerFailed`."""

    job: Job
    seconds: float


@dataclass(frozen=True, slots=True)
class PairQuestion:
    """One question to the judge: which choice comes next after `turns`? `first` and `second` are class numbers as shown."""

    first: int
    second: int
    turns: tuple[Turn, ...]
    choices: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Judge:
    """Ask our engine every question, within `seconds`; then `Judged` or `JudgeFailed`."""

    questions: tuple[PairQuestion, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Explain:
    """Ask our engine for a sentence on a judgement, within `seconds`; then `Explained`, whatever came."""

    job: Job
    seconds: float


@dataclass(frozen=True, slots=True)
class StopWork:
    """What `Generate`, `Judge` or `Explain` started is no longer wanted."""


MemberState = Literal[
    "invited", "accepted", "declined", "seated", "sealed", "revealed", "judging", "judged", "attested", "gone", "dropped"
]
Phase = Literal["join", "answer", "reveal", "judge", "ballot", "attest", "closed"]


@dataclass(frozen=True, slots=True)
class MemberProgress:
    """One row of the live table."""

    peer_id: PeerId
    model: str
    state: MemberState


@dataclass(frozen=True, slots=True)
class Progress:
    """The live table, whenever it changed. `of` counts seats (candidates while joining)."""

    phase: Phase
    members: tuple[MemberProgress, ...]
    sealed: int
    revealed: int
    judged: int
    of: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A peer broke the protocol: count it against `peer`."""

    peer: PeerId
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Proof that `peer` signed two different statements for one slot of this round: two envelopes that anyone can check."""

    peer: PeerId
    first: bytes
    second: bytes


@dataclass(frozen=True, slots=True)
class Decided:
    """The round has a result."""

    result: Result
    verdict_hash: Hash
    answer: str


@dataclass(frozen=True, slots=True)
class NoResult:
    """The round has none, and why, in one sentence."""

    reason: str


Outcome = Decided | NoResult


@dataclass(frozen=True, slots=True)
class Folded:
    """Requester only: the result is known; attestations are still being gathered. The user can have the answer now."""

    outcome: Decided


@dataclass(frozen=True, slots=True)
class Closed:
    """The round is over for us. `transcript` replays to the same outcome."""

    outcome: Outcome
    transcript: bytes


Effect = Send | Pull | WakeAt | Generate | Judge | Explain | StopWork | Progress | Fault | Equivocation | Folded | Closed
