"""A committee member's side of a round: answers, seals, reveals, judges, and attests what it folded itself. Never opens a socket.

It believes nobody: the draw, every list and the verdict are checked from signed messages; what is missing is pulled by address.
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.round.commitment import answer_commitment, ballot_commitment
from protocol.round.draw import sampled_job
from protocol.round.events import (
    Answered,
    AnswerFailed,
    Closed,
    Decided,
    Effect,
    Equivocation,
    Event,
    Explained,
    Fault,
    Generate,
    Judge,
    Judged,
    JudgeFailed,
    NoResult,
    Outcome,
    PairQuestion,
    PeerGone,
    Pulled,
    Received,
    Send,
    Started,
    Stopped,
    StopWork,
    WakeAt,
    Woken,
)
from protocol.round.fold import verdict_hash
from protocol.round.judging import CHOICES, Style, judge_seed, judge_turns
from protocol.round.messages import (
    BY_REQUESTER,
    MAX_REASON_CHARS,
    Acceptance,
    Attestation,
    Ballot,
    Header,
    Held,
    Judgement,
    Leave,
    Reveal,
    RoundMessage,
    Seal,
    Step,
    Verdict,
    check_invitation,
    sign,
)
from protocol.round.rationale import decisive, explanation, rationale_of
from protocol.round.record import Record
from protocol.round.tally import Tally
from protocol.round.transcript import check_verdict, write
from protocol.round.wants import Wants
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import Code, LocalError, RemoteError
from protocol.wire.ids import Hash, PeerId, peer_id_of
from protocol.wire.limits import MAX_ANSWER_BYTES, MAX_TOKENS

VERDICT_GRACE_S = 5.0
"""Beyond the sum of all phases, for messages on their way and repeats: then a member stops waiting for a verdict."""

REQUESTER_GRACE_S = 10.0
"""A requester whose connection is lost may be back on another path; after this its question is not worth our engine's time."""

NUDGE_S = 1.0
"""How long after the joining phase a candidate that heard nothing repeats its acceptance; then twice as long each time."""


class MemberMachine:
    """One member of one round. Construction raises RemoteError where the header is bad or does not invite us."""

    def __init__(
        self, key: Ed25519PrivateKey, header_raw: bytes, entropy: Callable[[int], bytes], unix_ms: int, judge_prompt: Style
    ) -> None:
        self._key = key
        self._me = peer_id_of(public_bytes(key))
        self._record = Record(header_raw)
        check_invitation(self._record.header, self._me, unix_ms)
        self._tally = Tally(self._record)
        self._entropy = entropy
        self._style = judge_prompt
        self._wants = Wants()
        self._effects: list[Effect] = []
        self._replies: dict[Hash, bytes] = {}
        self._salts: dict[Step, bytes] = {}
        self._answer: tuple[str, int] | None = None
        self._opening: tuple[Judgement, ...] = ()
        self._judgements: tuple[Judgement, ...] | None = None
        self._rationale = ""
        self._working = False
        self._judge_until: float | None = None
        self._give_up_at: float | None = None
        self._nudge_at: float | None = None
        self._nudge_s = NUDGE_S
        self._gone_at: float | None = None
        self._wake_at: float | None = None
        self._outcome: Outcome | None = None

    @property
    def round(self) -> Hash:
        """The round's id."""
        return self._record.round

    @property
    def header(self) -> Header:
        """The header that invited us."""
        return self._record.header

    @property
    def requester(self) -> PeerId:
        """Who asks."""
        return self._record.requester

    @property
    def closed(self) -> bool:
        """Whether `Closed` was emitted."""
        return self._outcome is not None

    def serve(self, hashes: tuple[bytes, ...]) -> list[bytes]:
        """The envelopes we hold among `hashes`, for a peer that pulls; never one of ours that we have not sent."""
        return [held.raw for address in hashes if (held := self._record.get(address)) is not None]

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at `now` (monotonic seconds, never decreasing); what to do is returned. Never raises RemoteError."""
        self._effects = []
        match event:
            case Started():
                self._start(event, now)
            case Received() | Pulled():
                self._receive(event, now)
            case Answered():
                self._answered(event)
            case Explained():
                self._working, self._rationale = False, rationale_of(event.text)
            case Judged():
                self._judged(event, now)
            case AnswerFailed() | JudgeFailed():
                self._working = False
                self._leave(event.reason)
            case Stopped():
                self._leave(event.reason)
                self._close(NoResult(f"this peer left the round: {event.reason}"[:MAX_REASON_CHARS]))
            case PeerGone():
                if event.peer == self._record.requester:
                    self._gone_at = now + REQUESTER_GRACE_S
            case Woken():
                pass
        self._advance(now)
        self._timers(now)
        return self._effects

    # --- events

    def _start(self, event: Started, now: float) -> None:
        self._give_up_at = now + self.header.durations.total_ms / 1000 + VERDICT_GRACE_S
        if event.refusal:
            self._leave(event.refusal, event.code)
            self._close(NoResult("declined"))
            return
        self._nudge_at = now + self.header.durations.join_ms / 1000 + NUDGE_S
        self._contribute(Acceptance(self.round, self._entropy(32)), self.round, everyone=False)

    def _receive(self, event: Received | Pulled, now: float) -> None:
        for raw in (event.raw,) if isinstance(event, Received) else event.raws:
            self._take(event.sender, raw, now)

    def _take(self, sender: PeerId, raw: bytes, now: float) -> None:
        try:
            added = self._record.add(raw)
        except RemoteError as error:
            self._effects.append(Fault(sender, error.code, error.message))
            return
        held = added.held
        if sender == self._record.requester:
            self._gone_at = None
        if not added.new:
            if sender == self._record.requester and held.hash in self._replies:
                self._effects.append(Send((sender,), self._replies[held.hash]))
            return
        if added.contradicts is not None:
            self._contradicted(added.contradicts, held)
        parent = getattr(held.message, "parent", None)
        if parent is not None and self._record.get(parent) is None and not self.closed:
            self._wants.add(Hash(parent), tuple(dict.fromkeys((held.signer, sender, self._record.requester))), now)

    def _contradicted(self, first: Held, second: Held) -> None:
        self._effects.append(Equivocation(first.signer, first.raw, second.raw))
        by_requester = isinstance(first.message, BY_REQUESTER)
        invited = tuple(peer for peer in self._record.candidates if peer != self._me)
        told = invited if by_requester else (self._record.requester,)
        self._effects += [Send(told, first.raw), Send(told, second.raw)]
        if by_requester:
            self._close(NoResult("the requester signed two different statements for one step"))

    def _answered(self, event: Answered) -> None:
        self._working = False
        text = event.text.encode("utf-8", "replace")[:MAX_ANSWER_BYTES].decode("utf-8", "ignore")
        if not text.strip():
            self._leave("the engine gave an empty answer")
        elif self._answer is None:
            self._answer = (text, max(0, min(event.tokens, MAX_TOKENS)))

    def _judged(self, event: Judged, now: float) -> None:
        self._working = False
        if self.closed or self._judgements is not None:
            return
        plan = self._tally.plan(self._seat, self._opening or None)
        if len(plan) != len(event.log_odds_milli):
            raise LocalError(f"{len(event.log_odds_milli)} judgements for {len(plan)} questions")
        said = tuple(Judgement(first, second, odds) for (first, second), odds in zip(plan, event.log_odds_milli, strict=True))
        still_asked = not self._opening and self._tally.step is Step.BALLOT_SEAL
        closing = self._tally.plan(self._seat, said) if still_asked else ()
        if closing and self._judge_until is not None:
            self._opening = said
            self._ask_engine(closing, max(0.0, self._judge_until - now))
        else:
            self._judgements = self._opening + said

    # --- progress

    def _advance(self, now: float) -> None:
        while self._outcome is None and self._follow(now):
            pass
        if self._outcome is not None:
            return
        if self._give_up_at is not None and now >= self._give_up_at:
            self._close(NoResult("the requester gave no verdict in time"))
        elif self._gone_at is not None and now >= self._gone_at:
            self._close(NoResult("the requester is gone"))
        elif self._tally.roster is not None:
            self._nudge_at = None
        elif self._nudge_at is not None and now >= self._nudge_at:
            self._nudge_s *= 2
            self._nudge_at = now + self._nudge_s
            self._effects.append(Send((self._record.requester,), self._replies[self.round]))

    def _follow(self, now: float) -> bool:
        """Take one more step along the requester's messages; whether there may be another."""
        try:
            if self._tally.roster is None:
                return self._take_roster()
            self._work(now)
            verdict = self._record.find(self._record.requester, "verdict")
            if verdict is not None and isinstance(verdict.message, Verdict) and verdict.message.parent == self._tally.head:
                self._take_verdict(verdict, verdict.message)
                return False
            step = self._tally.step
            return step is not None and self._take_list(step, now)
        except RemoteError as error:
            self._effects.append(Fault(self._record.requester, error.code, error.message))
            self._close(NoResult(f"the requester broke the round: {error.message}"[:MAX_REASON_CHARS]))
            return False

    def _take_roster(self) -> bool:
        roster = self._record.find(self._record.requester, "roster")
        if roster is None:
            verdict = self._record.find(self._record.requester, "verdict")
            if verdict is not None and isinstance(verdict.message, Verdict) and verdict.message.parent == self.round:
                self._close(NoResult(verdict.message.reason))
            return False
        self._tally.seat(roster)
        if self._me not in self._tally.seats:
            self._close(NoResult("not drawn for a seat"))
            return False
        self._working = True
        job = sampled_job(self.header.job, self.round, self._me)
        self._effects.append(Generate(job, self.header.durations.answer_ms / 1000))
        return True

    def _take_list(self, step: Step, now: float) -> bool:
        listing = self._record.find(self._record.requester, f"list-{step}")
        if listing is None:
            return False
        lacking = self._tally.lacking(listing)
        if lacking:
            for address in lacking:
                self._wants.add(address, (self._record.requester, *self._others()), now)
            return False
        self._tally.accept(listing)
        if self._working and self._seat not in self._tally.counted[step]:
            self._stop_work()
        return True

    def _take_verdict(self, held: Held, verdict: Verdict) -> None:
        result, reason = check_verdict(self._tally, verdict)
        if result is None:
            self._close(NoResult(reason))
            return
        address = verdict_hash(result)
        attestation = self._contribute(Attestation(self.round, held.hash, address), held.hash)
        self._close(Decided(result, address, self._tally.classes[result.winner].text), (attestation,))

    def _work(self, now: float) -> None:
        """Contribute to the open step whatever we can and have not yet; a step that is closed without us stays closed to us."""
        tally, step = self._tally, self._tally.step
        if step is None or tally.head in self._replies or self._seat not in tally.expected(step):
            return
        if step is Step.SEAL and self._answer is not None:
            salt = self._salts.setdefault(step, self._entropy(32))
            commitment = answer_commitment(self.round, self._me, salt, self._answer[0])
            self._contribute(Seal(self.round, tally.head, "seal", commitment), tally.head)
        elif step is Step.REVEAL and self._answer is not None:
            text, tokens = self._answer
            self._contribute(Reveal(self.round, tally.head, text, self._salts[Step.SEAL], tokens), tally.head)
        elif step is Step.BALLOT_SEAL:
            self._judge(now)
        elif step is Step.BALLOT and self._judgements is not None and not self._working:
            salt = self._salts[Step.BALLOT_SEAL]
            self._contribute(Ballot(self.round, tally.head, salt, self._judgements, self._rationale), tally.head)

    def _judge(self, now: float) -> None:
        plan = self._tally.plan(self._seat)
        if not plan:
            self._judgements = ()
        if self._judgements is not None:
            salt = self._salts.setdefault(Step.BALLOT_SEAL, self._entropy(32))
            commitment = ballot_commitment(self.round, self._me, salt, self._judgements)
            self._contribute(Seal(self.round, self._tally.head, "ballot_seal", commitment), self._tally.head)
            self._explain(self._judgements)
        elif self._judge_until is None:
            self._judge_until = now + self.header.durations.judge_ms / 1000
            self._ask_engine(plan, self.header.durations.judge_ms / 1000)

    def _explain(self, said: tuple[Judgement, ...]) -> None:
        """Ask for words now that the ballot is sealed."""
        surest = decisive(said)
        if self.header.rationale and surest is not None and self._style == "instructed":  # a tiny model has letters alone
            self._working = True
            self._effects.append(explanation(self._question(surest.first, surest.second), surest, self.header.durations))

    def _ask_engine(self, plan: tuple[tuple[int, int], ...], seconds: float) -> None:
        self._working = True
        self._effects.append(Judge(tuple(self._question(first, second) for first, second in plan), seconds))

    def _question(self, first: int, second: int) -> PairQuestion:
        own = "" if self._answer is None else self._answer[0]
        shown = (self._tally.classes[first].text, self._tally.classes[second].text)
        turns = judge_turns(self._style, self.header.job, own, shown, judge_seed(self.round, self._me))
        return PairQuestion(first, second, turns, CHOICES)

    # --- what the above share

    @property
    def _seat(self) -> int:
        return self._tally.seats.index(self._me)

    def _others(self) -> tuple[PeerId, ...]:
        """Everyone who takes part but us, beginning with the seat after ours so that pulls spread; and the requester."""
        seats = self._tally.seats
        start = seats.index(self._me) + 1 if self._me in seats else 0
        others = [peer for peer in (*seats[start:], *seats[:start]) if peer != self._me]
        return tuple(others) if self._record.requester in others else (*others, self._record.requester)

    def _contribute(self, message: RoundMessage, parent: Hash, everyone: bool = True) -> Held:
        """Sign, keep and push one message; it is repeated whenever the requester repeats what it answers."""
        raw = sign(message, self._key)
        held = self._record.add(raw).held
        self._replies[parent] = raw
        self._effects.append(Send(self._others() if everyone else (self._record.requester,), raw))
        return held

    def _leave(self, reason: str, code: Code | None = None) -> None:
        if self._outcome is None and self._record.find(self._me, "leave") is None:
            leave = Leave(self.round, reason[:MAX_REASON_CHARS], str(code or ""))
            self._contribute(leave, self._tally.head, everyone=False)

    def _stop_work(self) -> None:
        if self._working:
            self._working = False
            self._effects.append(StopWork())

    def _close(self, outcome: Outcome, attestations: tuple[Held, ...] = ()) -> None:
        if self._outcome is not None:
            return
        self._outcome = outcome
        self._stop_work()
        self._wants.clear()
        verdict = self._record.find(self._record.requester, "verdict")
        self._effects.append(Closed(outcome, write(self._tally, verdict, attestations)))

    def _timers(self, now: float) -> None:
        if self._outcome is not None:
            return
        self._effects += self._wants.due(now, self._record.get)
        timers = (self._give_up_at, self._gone_at, self._nudge_at, self._wants.next_time)
        times = [time for time in timers if time is not None]
        if times and min(times) != self._wake_at:
            self._wake_at = min(times)
            self._effects.append(WakeAt(self._wake_at))
