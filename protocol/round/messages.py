"""What the peers of a round sign and send: fields, bounds and slots. Decides what is well formed, never whether it is true.

Every message travels as a signed envelope of domain `DOMAIN` and is addressed by its statement hash; the round's id is the hash
of the signed header. A message names the requester's message it answers (`parent`), so whoever misses one learns of it from any
other member and pulls it by hash: a broken link between two peers delays nobody.
"""

from enum import StrEnum
from typing import Annotated, Literal, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.job import Job, check_job
from protocol.wire.codec import Message, decode, encode
from protocol.wire.envelope import Opened, open_envelope, seal
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import Hash, HashField, ModelField, PeerId, PeerIdField
from protocol.wire.limits import MAX_ANSWER_BYTES, MAX_COMMITTEE, MAX_PROMPT_BYTES, MAX_TOKENS

DOMAIN = "round"

MAX_CANDIDATES = 2 * MAX_COMMITTEE
QUORUM_MILLI = 666
"""Two thirds, for any committee up to 50."""
"""Twice the largest committee: even if half of the invited do not answer, the seats fill."""

MAX_MESSAGE_BYTES = MAX_PROMPT_BYTES + (64 << 10)
"""One round message in its envelope: the largest prompt, 100 candidates of about 300 B, and room for escapes."""

MAX_REVEAL_BYTES = MAX_ANSWER_BYTES + 512
"""The longest answer in its envelope."""

MAX_SEAT_MESSAGE_BYTES = 1 << 10
"""Any other message of a candidate; the longest, a ballot of 45 judgements, has some 600 B."""

MAX_HEADER_AGE_MS = 120_000
"""How far a header's creation may lie from the reader's clock, either way: wide enough that no clock that a person would call
right excludes a member, narrow enough that an old round cannot be replayed to make members work again."""

MAX_REASON_CHARS = 200
MAX_JUDGED_CLASSES = 9
MAX_RATIONALE_BYTES = 240
"""A sentence: a ballot with its 45 judgements still fits MAX_SEAT_MESSAGE_BYTES."""

MAX_JUDGEMENTS = 45
"""36 pairs of 9 classes, and a quarter of them asked again the other way round."""

LOG_ODDS_CLAMP_MILLI = 8000
"""8 nats: above it a judge's certainty counts no more, so no single judge can add any number it likes to a sum."""

WEIGHT_CLAMP_MILLI = 8000

Salt = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARS)]
Weight = Annotated[int, msgspec.Meta(ge=-WEIGHT_CLAMP_MILLI, le=WEIGHT_CLAMP_MILLI)]
Gain = Annotated[int, msgspec.Meta(ge=0, le=100_000)]
AnswerKind = Literal["exact", "number", "choice", "code", "short"]
"""`exact` is also for prose, whose wordings are seldom equal and are ranked by judges."""

ClassIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_COMMITTEE)]


class Step(StrEnum):
    """What a member contributes, in order; the requester closes each step with a `Listing`."""

    SEAL = "seal"
    REVEAL = "reveal"
    BALLOT_SEAL = "ballot_seal"
    BALLOT = "ballot"


class Candidate(Message, frozen=True):
    """A peer that may sit. `weight_milli` is its weight in the draw; the other two are what its vote and its judgement count for,
    as log-odds in milli-nats (1000 where nothing is known): negative for a peer that is wrong more often than chance.
    `favourite_weight_milli`, where given, is what its judgements of pairs count for that hold the answer it puts first: that is
    where a bought judge lies, and nowhere else. `strength_milli` is what is expected of its answers where answers are ranked, as
    log-odds of being right or preferred. Candidates of one `block` (0: of none) err together beyond chance: they share a voice.
    """

    peer_id: PeerIdField
    model: ModelField
    config_digest: HashField
    weight_milli: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1000
    answer_weight_milli: Weight = 1000
    judge_weight_milli: Weight = 1000
    favourite_weight_milli: Weight | None = None
    strength_milli: Weight = 0
    block: Annotated[int, msgspec.Meta(ge=0, le=MAX_CANDIDATES)] = 0


class Durations(Message, frozen=True):
    """How long each phase may last, in milliseconds from its start on the reader's own clock; never an absolute time.

    `patience_milli`: once a quorum has contributed after time t, the requester waits for the rest at most
    t * patience_milli / 1000 longer (but 2 s at least), so that one hung peer does not cost the whole phase; 0 always waits for
    the whole phase. Joining is exempt: seats must not go to the fastest.
    """

    join_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)] = 2_000
    answer_ms: Annotated[int, msgspec.Meta(ge=500, le=1_800_000)] = 60_000
    reveal_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)] = 5_000
    judge_ms: Annotated[int, msgspec.Meta(ge=500, le=600_000)] = 30_000
    attest_ms: Annotated[int, msgspec.Meta(ge=100, le=60_000)] = 3_000
    patience_milli: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 3_000

    @property
    def total_ms(self) -> int:
        """The longest that a round can take: answers and ballots are both revealed."""
        return self.join_ms + self.answer_ms + 2 * self.reveal_ms + self.judge_ms + self.attest_ms


class FoldParameters(Message, frozen=True):
    """How contributions become a result; part of the header, so that every peer folds alike.

    `one_voice`: members with one config digest share one weight, as their errors are the same errors.
    `own_pairs`: whether a judge also judges a pair of which one answer is its own and nobody else's.
    `early_exit_margin`: a lead in votes from which judging is skipped; 0 judges whenever there is more than one class.
    `arm`: `fuse` adds votes and judgements, `rank` leaves votes out and fits Bradley-Terry (where no two answers
    are equal; else it is `fuse`), `best` takes the answer of the member
    of most answer weight. `position_bias`: whether a judge's taste for the first place, as its swapped pairs show it, is taken
    off the others. `answers`: by which kind's normal form answers are equal (protocol/round/normal_forms.py).
    `confidence_gain_milli`: what the winner's leads are scaled by before they become a confidence. `active`: whether a judge's
    second half of pairs is left out but for those that could decide by what it said of the first.
    """

    vote_gain_milli: Gain = 1000
    judge_gain_milli: Gain = 1000
    evidence: Literal["probability", "log_odds"] = "probability"
    one_voice: bool = True
    own_pairs: bool = False
    early_exit_margin: Annotated[int, msgspec.Meta(ge=0, le=MAX_COMMITTEE)] = 0
    judged_classes: Annotated[int, msgspec.Meta(ge=2, le=MAX_JUDGED_CLASSES)] = 4
    pairs_per_judge: Annotated[int, msgspec.Meta(ge=1, le=36)] = 8
    arm: Literal["fuse", "rank", "best"] = "fuse"
    position_bias: bool = False
    answers: AnswerKind = "exact"
    confidence_gain_milli: Gain = 1000
    active: bool = False


class Header(Message, frozen=True, tag="header"):
    """What the requester asks, of whom, and by which rules. `quorum_milli` 666 is two thirds for any committee up to 50.
    `rationale`: whether judges may say in words what decided them, once their ballots are sealed.
    """

    job: Job
    candidates: Annotated[tuple[Candidate, ...], msgspec.Meta(min_length=1, max_length=MAX_CANDIDATES)]
    nonce: Salt
    created_ms: Annotated[int, msgspec.Meta(ge=0, le=2**53)]
    strategy: Literal["rank", "majority"] = "rank"
    committee: Annotated[int, msgspec.Meta(ge=1, le=MAX_COMMITTEE)] = 7
    quorum_milli: Annotated[int, msgspec.Meta(ge=500, le=1000)] = QUORUM_MILLI
    durations: Durations = Durations()
    fold: FoldParameters = FoldParameters()
    rationale: bool = False


class Acceptance(Message, frozen=True, tag="accept"):
    """A candidate will answer if it is drawn; its nonce goes into the draw, and nobody but the requester sees it before."""

    round: HashField
    nonce: Salt


class Leave(Message, frozen=True, tag="leave"):
    """A candidate declines, or a member can no longer take part; the requester stops waiting for it. `code` is one of `Code`'s
    values ("": not said), as in a refused call; a later version may say others."""

    round: HashField
    reason: Reason
    code: Annotated[str, msgspec.Meta(max_length=32)] = ""


class Roster(Message, frozen=True, tag="roster"):
    """Who sits, in the order drawn, and the acceptances (whole envelopes) from whose nonces anyone draws the same seats."""

    round: HashField
    acceptances: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=400)], ...], msgspec.Meta(min_length=1, max_length=MAX_CANDIDATES)
    ]
    seats: Annotated[tuple[PeerIdField, ...], msgspec.Meta(min_length=1, max_length=MAX_COMMITTEE)]


class Seal(Message, frozen=True, tag="seal"):
    """A commitment to an answer (`step` seal, parent the roster) or a ballot (`step` ballot_seal, parent the list of reveals)."""

    round: HashField
    parent: HashField
    step: Literal["seal", "ballot_seal"]
    commitment: HashField


class Conflict(Message, frozen=True):
    """Addresses of two different statements by one member for one slot: the proof that it equivocated."""

    first: HashField
    second: HashField


class Listing(Message, frozen=True, tag="list"):
    """The requester closes a step: addresses of what counts, in seat order, and proofs against members dropped from here on."""

    round: HashField
    parent: HashField
    step: Step
    counted: Annotated[tuple[HashField, ...], msgspec.Meta(max_length=MAX_COMMITTEE)]
    conflicts: Annotated[tuple[Conflict, ...], msgspec.Meta(max_length=MAX_COMMITTEE)] = ()


class Reveal(Message, frozen=True, tag="reveal"):
    """The sealed answer and its salt; parent is the list of seals. `tokens` is what the author says it generated."""

    round: HashField
    parent: HashField
    answer: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ANSWER_BYTES)]
    salt: Salt
    tokens: Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)] = 0


class Judgement(Message, frozen=True):
    """Log-odds (milli-nats) that the answer of class `first`, shown first, beats that of class `second`."""

    first: ClassIndex
    second: ClassIndex
    log_odds_milli: Annotated[int, msgspec.Meta(ge=-LOG_ODDS_CLAMP_MILLI, le=LOG_ODDS_CLAMP_MILLI)]


class Ballot(Message, frozen=True, tag="ballot"):
    """The sealed judgements and their salt; parent is the list of ballot seals. `rationale`, where the header asks for it, is for
    people: it is signed and counts for nothing, and it is not sealed, as it is made after the seal, which it cannot change."""

    round: HashField
    parent: HashField
    salt: Salt
    judgements: Annotated[tuple[Judgement, ...], msgspec.Meta(max_length=MAX_JUDGEMENTS)]
    rationale: Annotated[str, msgspec.Meta(max_length=MAX_RATIONALE_BYTES)] = ""


class Verdict(Message, frozen=True, tag="verdict"):
    """The requester's last word: the hash of the result that follows from the last list, or b"" and why there is none."""

    round: HashField
    parent: HashField
    result: Annotated[bytes, msgspec.Meta(max_length=32)]
    reason: Reason = ""


class Attestation(Message, frozen=True, tag="attest"):
    """A member folded the round itself and got this result; parent is the verdict."""

    round: HashField
    parent: HashField
    result: HashField


RoundMessage = Header | Acceptance | Leave | Roster | Seal | Listing | Reveal | Ballot | Verdict | Attestation

BY_REQUESTER = (Header, Roster, Listing, Verdict)


class Held(msgspec.Struct, frozen=True):
    """A verified message: its envelope's bytes, who signed it, its address and its content."""

    raw: bytes
    signer: PeerId
    hash: Hash
    message: RoundMessage


def sign(message: RoundMessage, key: Ed25519PrivateKey) -> bytes:
    """The encoded, signed envelope of `message`."""
    return seal(DOMAIN, encode(message), key)


def open_message(raw: bytes, limit: int = MAX_MESSAGE_BYTES) -> Held:
    """Verify and decode one envelope; raises RemoteError(malformed | oversized | bad_signature)."""
    opened: Opened = open_envelope(DOMAIN, raw, limit)
    message = decode(cast("type[RoundMessage]", RoundMessage), opened.payload, limit)
    if isinstance(message, Reveal) and len(message.answer.encode()) > MAX_ANSWER_BYTES:
        raise RemoteError(Code.OVERSIZED, f"an answer is longer than {MAX_ANSWER_BYTES} bytes")
    if isinstance(message, Ballot) and len(message.rationale.encode()) > MAX_RATIONALE_BYTES:
        raise RemoteError(Code.OVERSIZED, f"a rationale is longer than {MAX_RATIONALE_BYTES} bytes")
    return Held(raw, opened.signer, opened.hash, message)


def slot_of(message: RoundMessage) -> str:
    """The one place in a round that a message of its author may fill; a second, different message there is equivocation."""
    match message:
        case Listing():
            return f"list-{message.step}"
        case Seal():
            return str(message.step)
        case _:
            return type(message).__name__.lower()


def read_header(raw: bytes) -> Held:
    """A verified header that is consistent in itself; raises RemoteError."""
    held = open_message(raw)
    if not isinstance(held.message, Header):
        raise malformed("a round does not start with a header")
    header = held.message
    check_job(header.job)
    if len({candidate.peer_id for candidate in header.candidates}) < len(header.candidates):
        raise malformed("a header names a candidate twice")
    return held


def check_invitation(header: Header, me: PeerId, unix_ms: int) -> None:
    """Refuse a header that does not ask `me` or was made too long ago (or ahead) by our clock; raises RemoteError(refused)."""
    if all(candidate.peer_id != me for candidate in header.candidates):
        raise RemoteError(Code.REFUSED, "this round does not invite us")
    if abs(unix_ms - header.created_ms) > MAX_HEADER_AGE_MS:
        raise RemoteError(
            Code.REFUSED, f"this round was made {abs(unix_ms - header.created_ms) // 1000} s from our time, more than 120 s"
        )


def quorum(count: int, quorum_milli: int) -> int:
    """The least number that is `quorum_milli` thousandths of `count`, at least 1."""
    return max(1, -(-count * quorum_milli // 1000))
