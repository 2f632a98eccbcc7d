"""What counts in a round so far: seats, then each step as the requester's list closes it. Decides whether a list is right.

Requester, members and replay all go through here, so they cannot come to different results from the same messages.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from protocol.round.classes import AnswerClass, classes_of, settled
from protocol.round.commitment import answer_commitment, ballot_commitment
from protocol.round.draw import check_roster
from protocol.round.fold import Contributions, Result, Voice, fold, votes_micro
from protocol.round.messages import Ballot, FoldParameters, Held, Judgement, Listing, Reveal, Roster, Seal, Step, quorum, slot_of
from protocol.round.normal_forms import normal_form
from protocol.round.plan import closing_plan, judge_plan
from protocol.round.record import Record
from protocol.wire.errors import Code, LocalError, RemoteError, malformed
from protocol.wire.ids import Hash, PeerId

STEPS = (Step.SEAL, Step.REVEAL, Step.BALLOT_SEAL, Step.BALLOT)


def counted_classes(
    round_id: Hash, answers: Mapping[int, str], table: Mapping[int, Voice], rules: FoldParameters
) -> tuple[AnswerClass, ...]:
    """Classes of the answers by seat, under a header's rules: which answers are equal, and what each vote counts for."""
    return classes_of(round_id, answers, votes_micro(table, answers, rules.one_voice), partial(normal_form, kind=rules.answers))


class Tally:
    """The counted part of one round. `head` is the address of the requester's latest accepted message; the next one names it."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.head: Hash = record.round
        self.seats: tuple[PeerId, ...] = ()
        self._voices: Mapping[int, Voice] = {}
        self.counted: dict[Step, dict[int, Held]] = {}
        self.listings: dict[Step, Held] = {}
        self.dropped: dict[int, tuple[Held, Held]] = {}
        self.classes: tuple[AnswerClass, ...] = ()
        self.roster: Held | None = None

    @property
    def step(self) -> Step | None:
        """The step that is open; None before the roster and when nothing more is contributed."""
        if self.roster is None or self.complete:
            return None
        return STEPS[len(self.listings)]

    @property
    def complete(self) -> bool:
        """Whether a result follows: ballots are counted, or the votes alone decide."""
        if Step.BALLOT in self.listings:
            return True
        if Step.REVEAL not in self.listings:
            return False
        header = self.record.header
        if header.strategy == "majority" or header.fold.arm == "best":
            return True
        return settled(self.classes, header.fold.early_exit_margin)

    def seat(self, roster: Held) -> None:
        """Accept the roster; raises RemoteError where its draw is wrong or too few accepted for a quorum."""
        message = roster.message
        if not isinstance(message, Roster):
            raise LocalError("seat() takes a roster")
        header = self.record.header
        check_roster(header, self.record.round, message)
        least = quorum(header.committee, header.quorum_milli)
        if len(message.seats) < least:
            raise malformed(f"a roster of {len(message.seats)} seats where {least} are needed")
        self.roster = roster
        self.seats = tuple(PeerId(seat) for seat in message.seats)
        self._voices = {seat: Voice.of(self.record.candidates[peer]) for seat, peer in enumerate(self.seats)}
        self.head = roster.hash

    def expected(self, step: Step) -> tuple[int, ...]:
        """The seats that may contribute to `step`: those counted in the step before it, but for the dropped."""
        before = range(len(self.seats)) if step is Step.SEAL else sorted(self.counted[STEPS[STEPS.index(step) - 1]])
        return tuple(seat for seat in before if seat not in self.dropped)

    def needed(self, step: Step) -> int:
        """How many must contribute to `step`: the quorum of all seats, and for ballots of all that revealed."""
        base = len(self.seats) if step in (Step.SEAL, Step.REVEAL) else len(self.counted[Step.REVEAL])
        return quorum(base, self.record.header.quorum_milli)

    def plan(self, seat: int, opening: Sequence[Judgement] | None = None) -> tuple[tuple[int, int], ...]:
        """The pairs of classes that this seat judges first; those that it goes on with after saying `opening` of these."""
        judge, parameters = (self.seats[seat], seat), self.record.header.fold
        if opening is None:
            return judge_plan(self.record.round, judge, self.classes, parameters)
        return closing_plan(self.record.round, judge, opening, self.classes, parameters, self._voices)

    def check(self, step: Step, seat: int, held: Held) -> None:
        """Whether `held` is this seat's contribution to the open step; raises RemoteError."""
        message = held.message
        if held.signer != self.seats[seat] or slot_of(message) != step or not isinstance(message, Seal | Reveal | Ballot):
            raise malformed(f"not a {step} of its seat")
        if message.parent != self.head:
            raise malformed(f"a {step} that answers another message of the requester than the others do")
        if isinstance(message, Seal):
            return
        sealed = self.counted[STEPS[STEPS.index(step) - 1]][seat].message
        if not isinstance(sealed, Seal):
            raise LocalError("a reveal or ballot follows a seal")
        if isinstance(message, Reveal):
            commitment = answer_commitment(self.record.round, held.signer, message.salt, message.answer)
        else:
            if message.rationale and not self.record.header.rationale:
                raise malformed("a ballot with a rationale that nobody asked for")
            commitment = ballot_commitment(self.record.round, held.signer, message.salt, message.judgements)
            pairs, first = tuple((judgement.first, judgement.second) for judgement in message.judgements), self.plan(seat)
            opening = message.judgements[: len(first)]
            if pairs[: len(first)] != first or pairs[len(first) :] != self.plan(seat, opening):
                raise malformed("a ballot that judges other pairs than its plan")
        if commitment != sealed.commitment:
            raise malformed(f"a {step} that does not open its seal")

    def lacking(self, listing: Held) -> tuple[Hash, ...]:
        """What must be held before `accept` can judge this list."""
        message = listing.message
        if not isinstance(message, Listing):
            raise LocalError("lacking() takes a list")
        proofs = [address for conflict in message.conflicts for address in (conflict.first, conflict.second)]
        return self.record.lacking([*message.counted, *proofs])

    def accept(self, listing: Held) -> None:
        """Close the open step by the requester's list; raises RemoteError where the list is wrong. Nothing may be lacking."""
        message = listing.message
        step = self.step
        if not isinstance(message, Listing) or step is None or message.step != step or message.parent != self.head:
            raise malformed("a list that does not follow the message before it")
        dropped = self._proved(message)
        places = {self.seats[seat]: seat for seat in self.expected(step)}
        counted: dict[int, Held] = {}
        last = -1
        for address in message.counted:
            held = self.record.get(address)
            if held is None:
                raise LocalError("accept() needs every listed message")
            seat = places.get(held.signer, -1)
            if seat <= last or seat in dropped:
                raise malformed("a list that does not count distinct, entitled seats in their order")
            self.check(step, seat, held)
            counted[seat] = held
            last = seat
        if len(counted) < self.needed(step):
            raise malformed(f"a list of {len(counted)} where {self.needed(step)} are needed")
        self.dropped |= dropped
        self.counted[step] = counted
        self.listings[step] = listing
        self.head = listing.hash
        if step is Step.REVEAL:
            answers = {seat: held.message.answer for seat, held in counted.items() if isinstance(held.message, Reveal)}
            self.classes = counted_classes(self.record.round, answers, self._voices, self.record.header.fold)

    def aborted(self) -> tuple[int, ...]:
        """Seats that sealed an answer and did not reveal it: they come last."""
        sealed, revealed = self.counted.get(Step.SEAL, {}), self.counted.get(Step.REVEAL, {})
        return tuple(seat for seat in sealed if seat not in revealed and seat not in self.dropped) if revealed else ()

    def ballots(self) -> dict[int, tuple[Judgement, ...]]:
        """The revealed ballots by seat."""
        counted = self.counted.get(Step.BALLOT, {})
        return {seat: held.message.judgements for seat, held in counted.items() if isinstance(held.message, Ballot)}

    def rationales(self) -> dict[int, str]:
        """What judges said in words, by seat."""
        counted = self.counted.get(Step.BALLOT, {})
        said = {seat: held.message.rationale for seat, held in counted.items() if isinstance(held.message, Ballot)}
        return {seat: text for seat, text in said.items() if text}

    def result(self) -> Result:
        """The result that follows once `complete`."""
        if not self.complete:
            raise LocalError("a result needs a complete tally")
        header = self.record.header
        return fold(
            Contributions(
                round=self.record.round,
                strategy=header.strategy,
                fold=header.fold,
                voices=self._voices,
                classes=self.classes,
                ballots=self.ballots(),
                aborted=self.aborted(),
                dropped=tuple(self.dropped),
            )
        )

    def _proved(self, message: Listing) -> dict[int, tuple[Held, Held]]:
        """The seats newly dropped, each with its proof; raises RemoteError where a proof proves nothing."""
        found: dict[int, tuple[Held, Held]] = {}
        for conflict in message.conflicts:
            first, second = self.record.get(conflict.first), self.record.get(conflict.second)
            if first is None or second is None:
                raise LocalError("accept() needs every proof")
            if first.hash == second.hash or first.signer != second.signer or slot_of(first.message) != slot_of(second.message):
                raise RemoteError(Code.MALFORMED, "a conflict that proves nothing")
            if first.signer not in self.seats:
                raise malformed("a conflict of a peer without a seat")
            found[self.seats.index(first.signer)] = (first, second)
        return found
