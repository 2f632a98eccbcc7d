"""A round as bytes, and its replay: whoever holds them checks every step and folds again. Decides nothing anew."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from protocol.round.fold import Result, verdict_hash
from protocol.round.messages import (
    MAX_MESSAGE_BYTES,
    Attestation,
    Header,
    Held,
    Judgement,
    Listing,
    Roster,
    Step,
    Verdict,
)
from protocol.round.record import Record
from protocol.round.tally import STEPS, Tally
from protocol.wire.codec import Message, decode, encode
from protocol.wire.errors import malformed
from protocol.wire.ids import Hash, PeerId
from protocol.wire.limits import MAX_COMMITTEE

MAX_TRANSCRIPT_BYTES = 8 << 20
"""A header, a roster, five lists, and of each of 50 members two seals, an answer, a ballot, an attestation and a proof."""

MAX_TRANSCRIPT_MESSAGES = 16 + 8 * MAX_COMMITTEE


class Transcript(Message, frozen=True, tag="transcript-1"):
    """The envelopes that count, in canonical order."""

    messages: Annotated[
        tuple[Annotated[bytes, msgspec.Meta(max_length=MAX_MESSAGE_BYTES)], ...],
        msgspec.Meta(min_length=1, max_length=MAX_TRANSCRIPT_MESSAGES),
    ]


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One seat of a replayed round. `judged` is whether its ballot counts; `class_index` is None where it revealed nothing."""

    seat: int
    peer_id: PeerId
    model: str
    sealed: bool
    revealed: bool
    judged: bool
    dropped: bool
    class_index: int | None
    tokens: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """Everything a transcript says, checked. `result` is None where the round had none, and `reason` says why."""

    round: Hash
    header: Header
    requester: PeerId
    members: tuple[MemberRow, ...]
    answers: tuple[str, ...]
    result: Result | None
    verdict_hash: Hash | None
    reason: str
    attested_by: tuple[PeerId, ...]
    messages: int
    ballots: Mapping[int, tuple[Judgement, ...]] = field(default_factory=dict)
    """What each seat that judged said of its pairs of `answers`."""
    rationales: Mapping[int, str] = field(default_factory=dict)
    """What seats said in words of the judgement they were surest of; a stranger's text."""

    @property
    def winner(self) -> str | None:
        """The winning answer."""
        return None if self.result is None else self.answers[self.result.winner]


def write(tally: Tally, verdict: Held | None, attestations: Iterable[Held] = ()) -> bytes:
    """The transcript of what counts: nothing that came too late and no message twice, so all peers write the same one up to the
    attestations that each of them holds."""
    header = tally.record.get(tally.record.round)
    chosen: list[Held | None] = [header, tally.roster]
    for step in STEPS:
        if step in tally.listings:
            chosen += [*tally.counted[step].values(), tally.listings[step]]
    chosen += [held for seat in sorted(tally.dropped) for held in tally.dropped[seat]]
    chosen.append(verdict)
    signed = {held.signer: held for held in attestations}
    chosen += [signed[peer] for peer in tally.seats if peer in signed]
    once = {held.hash: held.raw for held in chosen if held is not None}
    return encode(Transcript(tuple(once.values())))


def replay(raw: bytes) -> Replayed:
    """Check a transcript from its first message to its verdict; raises RemoteError naming the first thing that does not fit."""
    transcript = decode(Transcript, raw, MAX_TRANSCRIPT_BYTES)
    record = Record(transcript.messages[0])
    later = [record.add(each).held for each in transcript.messages[1:]]
    if len(later) != len({held.hash for held in later}):
        raise malformed("a transcript holds a message twice")
    tally = Tally(record)
    roster = record.find(record.requester, "roster")
    if roster is not None and isinstance(roster.message, Roster):
        tally.seat(roster)
        _replay_lists(tally)
    verdict = record.find(record.requester, "verdict")
    if record.two_faced:
        raise malformed("the requester signed two different statements for one slot")
    result, reason = _replay_verdict(tally, verdict)
    attested = _replay_attestations(tally, verdict, result)
    signed = [held for peer in attested if (held := record.find(peer, "attestation")) is not None]
    if write(tally, verdict, signed) != raw:
        raise malformed("a transcript that holds something else than what counts, or in another order")
    return Replayed(
        round=record.round,
        header=record.header,
        requester=record.requester,
        members=_rows(tally),
        answers=tuple(found.text for found in tally.classes),
        result=result,
        verdict_hash=None if result is None else verdict_hash(result),
        reason=reason,
        attested_by=attested,
        messages=len(transcript.messages),
        ballots=tally.ballots(),
        rationales=tally.rationales(),
    )


def _replay_lists(tally: Tally) -> None:
    while (step := tally.step) is not None:
        listing = tally.record.find(tally.record.requester, f"list-{step}")
        if listing is None or not isinstance(listing.message, Listing):
            return
        lacking = tally.lacking(listing)
        if lacking:
            raise malformed(f"a transcript lacks {len(lacking)} of the messages that its {step} list names")
        tally.accept(listing)


def _replay_verdict(tally: Tally, verdict: Held | None) -> tuple[Result | None, str]:
    if verdict is None or not isinstance(verdict.message, Verdict):
        return None, "the transcript ends before a verdict"
    return check_verdict(tally, verdict.message)


def check_verdict(tally: Tally, verdict: Verdict) -> tuple[Result | None, str]:
    """The result and "", or None and the requester's reason; raises RemoteError where the verdict is not what follows."""
    if verdict.parent != tally.head:
        raise malformed("a verdict that does not follow the last list")
    if verdict.result == b"":
        return None, verdict.reason or "the requester gave no reason"
    if not tally.complete:
        raise malformed("a verdict before the round was complete")
    result = tally.result()
    if verdict_hash(result) != verdict.result:
        raise malformed("a verdict whose result is not the one that follows from the messages")
    return result, ""


def _replay_attestations(tally: Tally, verdict: Held | None, result: Result | None) -> tuple[PeerId, ...]:
    found: list[PeerId] = []
    for peer in tally.seats:
        held = tally.record.find(peer, "attestation")
        if held is None or verdict is None:
            continue
        check_attestation(held, verdict, result)
        found.append(peer)
    return tuple(found)


def check_attestation(held: Held, verdict: Held, result: Result | None) -> None:
    """Raises RemoteError where a member attests to something else than this result."""
    message = held.message
    if not isinstance(message, Attestation) or message.parent != verdict.hash:
        raise malformed("an attestation of another verdict")
    if result is None or message.result != verdict_hash(result):
        raise malformed("a member attests to another result")


def _rows(tally: Tally) -> tuple[MemberRow, ...]:
    classes = {seat: index for index, found in enumerate(tally.classes) for seat in found.seats}
    counted = {step: tally.counted.get(step, {}) for step in STEPS}
    tokens = {seat: getattr(held.message, "tokens", 0) for seat, held in counted[Step.REVEAL].items()}
    return tuple(
        MemberRow(
            seat=seat,
            peer_id=peer,
            model=tally.record.candidates[peer].model,
            sealed=seat in counted[Step.SEAL],
            revealed=seat in counted[Step.REVEAL],
            judged=seat in counted[Step.BALLOT],
            dropped=seat in tally.dropped,
            class_index=classes.get(seat),
            tokens=tokens.get(seat, 0),
        )
        for seat, peer in enumerate(tally.seats)
    )
