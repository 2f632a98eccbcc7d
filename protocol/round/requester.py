"""The requester's side of a round: invites, draws, closes each step by a list, and states the verdict. Has no power to change it:
every member repeats what it does. A requester that also sits runs a `MemberMachine` beside this one.
"""

from collections import Counter
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.round.draw import seats_of
from protocol.round.events import (
    Closed,
    Decided,
    Effect,
    Equivocation,
    Event,
    Fault,
    Folded,
    MemberProgress,
    MemberState,
    NoResult,
    Outcome,
    PeerGone,
    Phase,
    Progress,
    Pulled,
    Received,
    Send,
    Started,
    Stopped,
    WakeAt,
)
from protocol.round.fold import verdict_hash
from protocol.round.messages import (
    BY_REQUESTER,
    MAX_REASON_CHARS,
    Acceptance,
    Conflict,
    Header,
    Held,
    Leave,
    Listing,
    Roster,
    RoundMessage,
    Step,
    Verdict,
    quorum,
    sign,
    slot_of,
)
from protocol.round.record import Record
from protocol.round.tally import Tally
from protocol.round.transcript import check_attestation, write
from protocol.wire.errors import LocalError, RemoteError
from protocol.wire.ids import Hash, PeerId

RESEND_S = 1.0
MAX_RESEND_S = 4.0
"""The open phase's message is repeated to whoever has not answered it after 1, 3, 7, 11 ... s: this replaces acknowledgements."""

MIN_PATIENCE_S = 2.0
"""However fast the quorum was, the rest has time for one repeat of the requester's message and an answer to it."""

_DEEDS = {
    Step.SEAL: "answered",
    Step.REVEAL: "revealed their answers",
    Step.BALLOT_SEAL: "judged",
    Step.BALLOT: "revealed their ballots",
}

_PHASES: dict[Step, Phase] = {Step.SEAL: "answer", Step.REVEAL: "reveal", Step.BALLOT_SEAL: "judge", Step.BALLOT: "ballot"}


class RequesterMachine:
    """One round that this peer asked for; `key` signs it. Raises RemoteError where `read_header` would refuse the header."""

    def __init__(self, key: Ed25519PrivateKey, header: Header) -> None:
        self._key = key
        self._header_raw = sign(header, key)
        self._record = Record(self._header_raw)
        self._tally = Tally(self._record)
        self._effects: list[Effect] = []
        self._phase: Phase = "join"
        self._opened_at = 0.0
        self._deadline = 0.0
        self._hastened = False
        self._current = self._header_raw
        self._resend_at = 0.0
        self._resend_s = RESEND_S
        self._gone: set[PeerId] = set()
        self._valid: set[Hash] = set()
        self._invalid: set[Hash] = set()
        self._verdict: Held | None = None
        self._decided: Decided | None = None
        self._outcome: Outcome | None = None
        self._shown: Progress | None = None
        self._wake_at: float | None = None

    @property
    def round(self) -> Hash:
        """The round's id."""
        return self._record.round

    @property
    def header(self) -> Header:
        """What was asked."""
        return self._record.header

    @property
    def header_raw(self) -> bytes:
        """The signed header, as it is sent to the candidates."""
        return self._header_raw

    @property
    def closed(self) -> bool:
        """Whether `Closed` was emitted."""
        return self._outcome is not None

    def serve(self, hashes: tuple[bytes, ...]) -> list[bytes]:
        """The envelopes we hold among `hashes`, for a peer that pulls."""
        return [held.raw for address in hashes if (held := self._record.get(address)) is not None]

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` (monotonic seconds, never decreasing); what to do is returned. Never raises RemoteError."""
        self._effects = []
        match event:
            case Started():
                self._open("join", self._header_raw, self._invited(), self.header.durations.join_ms, now)
            case Received():
                self._receive(event.sender, event.raw)
            case Pulled():
                for raw in event.raws:
                    self._receive(event.sender, raw)
            case PeerGone():
                self._gone.add(event.peer)
            case Stopped():
                self._stop(event.reason)
            case _:
                pass
        while self._outcome is None and self._deadline and self._advance(now):
            pass
        self._repeat(now)
        self._show()
        return self._effects

    # --- what arrives

    def _receive(self, sender: PeerId, raw: bytes) -> None:
        try:
            added = self._record.add(raw)
        except RemoteError as error:
            self._effects.append(Fault(sender, error.code, error.message))
            return
        held = added.held
        self._gone.discard(sender)
        if added.contradicts is not None:
            self._effects.append(Equivocation(held.signer, added.contradicts.raw, held.raw))
        if isinstance(held.message, BY_REQUESTER):
            if added.new and self._outcome is None:
                self._close(NoResult("our key signed a statement that we did not make: does another process use it?"))
            return
        if self._outcome is not None and self._verdict is not None and slot_of(held.message) != "attestation":
            self._effects.append(Send((held.signer,), self._verdict.raw))
        elif isinstance(held.message, Acceptance) and self._tally.roster is not None:
            self._effects.append(Send((held.signer,), self._tally.roster.raw))

    # --- phases

    def _advance(self, now: float) -> bool:
        """Close the phase if everyone waited for has contributed or its time is over; whether another one may close at once."""
        self._hasten(now)
        if self._waiting() and now < self._deadline:
            return False
        if self._phase == "join":
            self._draw(now)
        elif self._phase == "attest":
            self._close(self._decided or NoResult("the verdict was lost"))
        else:
            self._list(now)
        return True

    def _hasten(self, now: float) -> None:
        """Once a quorum has contributed, wait for the rest only in proportion to the time that it took."""
        patience = self.header.durations.patience_milli
        if self._hastened or not patience or self._phase == "join":
            return
        step = self._tally.step
        done, needed = len(self._attested()), quorum(len(self._tally.seats), self.header.quorum_milli)
        if step is not None:
            done, needed = len(self._contributed(step)), self._tally.needed(step)
        if done >= needed:
            self._hastened = True
            longer = max(MIN_PATIENCE_S, (now - self._opened_at) * patience / 1000)
            self._deadline = min(self._deadline, now + longer)

    def _draw(self, now: float) -> None:
        accepted = {peer: held for peer in self._invited() if (held := self._record.find(peer, "acceptance")) is not None}
        usable = {peer: held for peer, held in accepted.items() if peer not in self._record.conflicts and not self._left(peer)}
        least = quorum(self.header.committee, self.header.quorum_milli)
        if len(usable) < least:
            self._stop_short(f"{len(usable)} of {len(self.header.candidates)} invited peers accepted where {least} are needed")
            return
        nonces: dict[str, bytes] = {
            peer: held.message.nonce for peer, held in usable.items() if isinstance(held.message, Acceptance)
        }
        seats = seats_of(self.header, self.round, nonces)
        roster = self._state(Roster(self.round, tuple(held.raw for held in usable.values()), seats))
        self._tally.seat(roster)
        told = [peer for peer in self._invited() if not self._left(peer)]
        self._open("answer", roster.raw, told, self.header.durations.answer_ms, now)

    def _list(self, now: float) -> None:
        tally, step = self._tally, self._tally.step
        if step is None:
            raise LocalError("no step is open")
        counted = self._contributed(step)
        if len(counted) < tally.needed(step):
            missed = f"{len(counted)} of {len(tally.expected(step))} members {_DEEDS[step]} where {tally.needed(step)} are needed"
            self._stop_short(missed)
            return
        dropped = [peer for seat, peer in enumerate(tally.seats) if peer in self._record.conflicts and seat not in tally.dropped]
        proofs = tuple(Conflict(first.hash, second.hash) for first, second in (self._record.conflicts[peer] for peer in dropped))
        listing = self._state(Listing(self.round, tally.head, step, tuple(held.hash for held in counted.values()), proofs))
        tally.accept(listing)
        if tally.complete:
            self._fold(listing, now)
            return
        durations = self.header.durations
        following = tally.step
        millis = durations.judge_ms if following is Step.BALLOT_SEAL else durations.reveal_ms
        self._open(_PHASES[following] if following else "attest", listing.raw, tally.seats, millis, now)

    def _fold(self, listing: Held, now: float) -> None:
        """State the verdict. The last list goes out with it, so nobody waits a round trip for the other."""
        result = self._tally.result()
        self._decided = Decided(result, verdict_hash(result), self._tally.classes[result.winner].text)
        self._verdict = self._state(Verdict(self.round, self._tally.head, self._decided.verdict_hash))
        self._effects.append(Send(self._tally.seats, listing.raw))
        self._effects.append(Folded(self._decided))
        self._open("attest", self._verdict.raw, self._tally.seats, self.header.durations.attest_ms, now)

    def _open(self, phase: Phase, raw: bytes, peers: Iterable[PeerId], millis: int, now: float) -> None:
        self._phase = phase
        self._current = raw
        self._opened_at = now
        self._hastened = False
        self._deadline = now + millis / 1000
        self._resend_s = RESEND_S
        self._resend_at = now + RESEND_S
        self._effects.append(Send(tuple(peers), raw))

    def _stop_short(self, missed: str) -> None:
        """End for want of a quorum; with what most of those say who left, which may be the question's fault."""
        left = [held.message for peer in self._invited() if (held := self._record.find(peer, "leave")) is not None]
        said = Counter(message.reason for message in left if isinstance(message, Leave) and message.reason)
        self._stop(missed + "".join(f"; {count} left: {reason}" for reason, count in said.most_common(1)))

    def _stop(self, reason: str) -> None:
        """End without a result and tell everyone who still takes part; a round that is decided keeps its verdict."""
        if self._outcome is not None:
            return
        if self._decided is not None:
            self._close(self._decided)
            return
        reason = reason[:MAX_REASON_CHARS]
        self._verdict = self._state(Verdict(self.round, self._tally.head, b"", reason))
        engaged = self._tally.seats or tuple(peer for peer in self._invited() if not self._left(peer))
        self._effects.append(Send(engaged, self._verdict.raw))
        self._close(NoResult(reason))

    def _close(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._phase = "closed"
        self._effects.append(Closed(outcome, write(self._tally, self._verdict, self._attested().values())))

    # --- who has done what

    def _invited(self) -> tuple[PeerId, ...]:
        return tuple(self._record.candidates)

    def _left(self, peer: PeerId) -> bool:
        return self._record.find(peer, "leave") is not None

    def _contributed(self, step: Step) -> dict[int, Held]:
        """The valid contributions to the open step by seat; an invalid one costs its author once."""
        found: dict[int, Held] = {}
        for seat in self._tally.expected(step):
            peer = self._tally.seats[seat]
            held = self._record.find(peer, str(step))
            if held is None or peer in self._record.conflicts or held.hash in self._invalid:
                continue
            try:
                if held.hash not in self._valid:
                    self._tally.check(step, seat, held)
            except RemoteError as error:
                self._invalid.add(held.hash)
                self._effects.append(Fault(peer, error.code, error.message))
                continue
            self._valid.add(held.hash)
            found[seat] = held
        return found

    def _attested(self) -> dict[PeerId, Held]:
        if self._decided is None or self._verdict is None:
            return {}
        found: dict[PeerId, Held] = {}
        for peer in self._tally.seats:
            held = self._record.find(peer, "attestation")
            if held is None or held.hash in self._invalid:
                continue
            try:
                check_attestation(held, self._verdict, self._decided.result)
            except RemoteError as error:
                self._invalid.add(held.hash)
                self._effects.append(Fault(peer, error.code, error.message))
                continue
            found[peer] = held
        return found

    def _waiting(self) -> tuple[PeerId, ...]:
        """Whoever may still contribute to the open phase; who fell out of a phase before is not waited for again."""
        tally = self._tally
        if self._phase == "join":
            done = {peer for peer in self._invited() if self._record.find(peer, "acceptance") is not None}
            hoped: Iterable[PeerId] = self._invited()
        elif self._phase == "attest":
            done = {peer for peer in tally.seats if self._record.find(peer, "attestation") is not None}
            hoped = [tally.seats[seat] for seat in tally.counted[max(tally.listings, key=list(Step).index)]]
        elif tally.step is not None:
            contributed = self._contributed(tally.step)
            found = {peer: self._record.find(peer, str(tally.step)) for peer in tally.seats}
            done = {tally.seats[seat] for seat in contributed}
            done |= {peer for peer, held in found.items() if held is not None and held.hash in self._invalid}
            hoped = [tally.seats[seat] for seat in tally.expected(tally.step)]
        else:
            return ()
        out = self._gone | done | set(self._record.conflicts)
        return tuple(peer for peer in hoped if peer not in out and not self._left(peer))

    def _state(self, message: RoundMessage) -> Held:
        return self._record.add(sign(message, self._key)).held

    # --- time and the live table

    def _repeat(self, now: float) -> None:
        if self._outcome is not None or not self._deadline:
            return
        if now >= self._resend_at:
            self._resend_s = min(2 * self._resend_s, MAX_RESEND_S)
            self._resend_at = now + self._resend_s
            waiting = self._waiting()
            if waiting:
                self._effects.append(Send(waiting, self._current))
        wake_at = min(self._deadline, self._resend_at)
        if wake_at != self._wake_at:
            self._wake_at = wake_at
            self._effects.append(WakeAt(wake_at))

    def _show(self) -> None:
        peers = self._tally.seats or self._invited()
        states = {peer: self._member_state(peer) for peer in peers}
        rank = ("sealed", "revealed", "judging", "judged", "attested")
        reached = {peer: rank.index(state) if state in rank else -1 for peer, state in states.items()}
        shown = Progress(
            phase=self._phase,
            members=tuple(MemberProgress(peer, self._record.candidates[peer].model, state) for peer, state in states.items()),
            sealed=sum(place >= 0 for place in reached.values()),
            revealed=sum(place >= 1 for place in reached.values()),
            judged=sum(place >= 3 and self._record.find(peer, "ballot_seal") is not None for peer, place in reached.items()),
            of=len(peers),
        )
        if shown != self._shown:
            self._shown = shown
            self._effects.append(shown)

    def _member_state(self, peer: PeerId) -> MemberState:
        if peer in self._record.conflicts:
            return "dropped"
        reached: MemberState = "seated" if peer in self._tally.seats else "invited"
        steps: tuple[tuple[str, MemberState], ...] = (
            ("attestation", "attested"),
            ("ballot_seal", "judged"),
            ("reveal", "judging" if self._phase in ("judge", "ballot") else "revealed"),
            ("seal", "sealed"),
        )
        for slot, state in steps:
            if self._record.find(peer, slot) is not None:
                return state
        if self._left(peer):
            return "declined"
        if peer in self._gone:
            return "gone"
        if reached == "invited" and self._record.find(peer, "acceptance") is not None:
            return "accepted"
        return reached
