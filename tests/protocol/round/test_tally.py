"""What a list may count: every bent list is refused for its own reason, at every step, and leaves the tally as it was."""

from collections.abc import Callable

import msgspec
import pytest

from protocol.round import events as ev
from protocol.round.commitment import ballot_commitment
from protocol.round.messages import (
    Ballot,
    Conflict,
    FoldParameters,
    Held,
    Judgement,
    Listing,
    Reveal,
    Seal,
    Step,
    open_message,
    sign,
)
from protocol.round.record import Record
from protocol.round.tally import STEPS, Tally
from protocol.round.transcript import Transcript
from protocol.wire.codec import decode
from protocol.wire.errors import RemoteError
from tests.sim.round_network import Behaviour, RoundNetwork, Weather, key_of

Bend = Callable[[Listing, Tally], Listing]


def replaced(message: Listing, **fields: object) -> Listing:
    return msgspec.structs.replace(message, **fields)


@pytest.fixture(scope="module")
def messages() -> tuple[bytes, ...]:
    """Of a judged round of five."""
    return played(lambda number: str(number % 2), FoldParameters())


@pytest.fixture(scope="module")
def active() -> tuple[bytes, ...]:
    """Of one of five different answers, whose judges went on after half of their pairs."""
    return played(str, FoldParameters(active=True))


def played(answer: Callable[[int], str], fold: FoldParameters) -> tuple[bytes, ...]:
    network = RoundNetwork(3, 5, Weather(), Behaviour(answer, lambda number, question: 1000))
    network.run(network.header(fold=fold))
    closed: ev.Closed = network.closed[(network.requester, "requester")]
    return decode(Transcript, closed.transcript, 1 << 20).messages


def at_step(messages: tuple[bytes, ...], step: Step) -> tuple[Tally, Held]:
    """A tally at which `step` is open, and the list that honestly closes it."""
    record = Record(messages[0])
    for raw in messages[1:]:
        record.add(raw)
    tally = Tally(record)
    roster = record.find(record.requester, "roster")
    assert roster is not None
    tally.seat(roster)
    for each in STEPS:
        listing = record.find(record.requester, f"list-{each}")
        assert listing is not None
        if each is step:
            return tally, listing
        tally.accept(listing)
    raise AssertionError(step)


def accused(message: Listing, tally: Tally) -> Listing:
    """A "proof" of two statements by different peers."""
    first, second = message.counted[:2]
    return replaced(message, conflicts=(Conflict(first, second),))


BENT: dict[str, tuple[Bend, str]] = {
    "below the quorum": (lambda m, t: replaced(m, counted=m.counted[:3]), "3 where 4 are needed"),
    "in another order": (lambda m, t: replaced(m, counted=m.counted[::-1]), "in their order"),
    "one twice": (lambda m, t: replaced(m, counted=m.counted + m.counted[-1:]), "distinct"),
    "after another message": (lambda m, t: replaced(m, parent=t.record.round), "does not follow"),
    "of another step": (
        lambda m, t: replaced(m, step=STEPS[(STEPS.index(m.step) + 1) % 4]),
        "does not follow",
    ),
    "of messages of another slot": (
        lambda m, t: replaced(m, counted=(*m.counted[:-1], _other_slot(m, t))),
        "not a|in their order",
    ),
    "with a proof by two peers": (accused, "proves nothing"),
    "with a proof of one statement": (
        lambda m, t: replaced(m, conflicts=(Conflict(m.counted[0], m.counted[0]),)),
        "proves nothing",
    ),
    "with a proof of two slots": (
        lambda m, t: replaced(m, conflicts=(Conflict(m.counted[-1], _other_slot(m, t)),)),
        "proves nothing",
    ),
}


def _other_slot(message: Listing, tally: Tally) -> bytes:
    """A message by the author of the last one counted, for another step."""
    held = tally.record.get(message.counted[-1])
    assert held is not None
    other = tally.record.find(held.signer, str(Step.SEAL if message.step != Step.SEAL else Step.REVEAL))
    assert other is not None
    return other.hash


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", BENT)
def test_a_bent_list_is_refused(messages: tuple[bytes, ...], step: Step, name: str) -> None:
    tally, honest = at_step(messages, step)
    bend, reason = BENT[name]
    assert isinstance(honest.message, Listing)
    bent = open_message(sign(bend(honest.message, tally), key_of(0)))
    with pytest.raises(RemoteError, match=reason):
        tally.accept(bent)
    tally.accept(honest)
    assert step in tally.listings


def test_a_proved_seat_is_dropped_from_its_step_on(messages: tuple[bytes, ...]) -> None:
    tally, honest = at_step(messages, Step.REVEAL)
    assert isinstance(honest.message, Listing)
    seals = tally.counted[Step.SEAL]
    guilty = seals[4].signer
    number = next(
        n for n in range(6) if open_message(sign(Seal(b"\0" * 32, b"\0" * 32, "seal", b"\0" * 32), key_of(n))).signer == guilty
    )
    assert isinstance(seals[4].message, Seal)
    second = tally.record.add(sign(msgspec.structs.replace(seals[4].message, commitment=b"\1" * 32), key_of(number)))
    assert second.contradicts == seals[4]
    proof = (Conflict(seals[4].hash, second.held.hash),)
    still_counted = open_message(sign(replaced(honest.message, conflicts=proof), key_of(0)))
    with pytest.raises(RemoteError, match="distinct, entitled"):
        tally.accept(still_counted)
    tally.accept(open_message(sign(replaced(honest.message, counted=honest.message.counted[:-1], conflicts=proof), key_of(0))))
    assert (list(tally.dropped), tally.expected(Step.BALLOT_SEAL), tally.aborted()) == ([4], (0, 1, 2, 3), ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answer": "other"}, "does not open its seal"),
        ({"salt": b"\0" * 32}, "does not open"),
        ({"parent": b"\0" * 32}, "another message"),
    ],
)
def test_a_reveal_must_open_its_own_seal(messages: tuple[bytes, ...], change: dict[str, object], reason: str) -> None:
    tally, _ = at_step(messages, Step.REVEAL)
    held = tally.record.find(tally.seats[0], "reveal")
    assert held is not None
    assert isinstance(held.message, Reveal)
    tally.check(Step.REVEAL, 0, held)
    bent = msgspec.structs.replace(held, message=msgspec.structs.replace(held.message, **change))
    with pytest.raises(RemoteError, match=reason):
        tally.check(Step.REVEAL, 0, bent)


Bent = Callable[[tuple[Judgement, ...]], tuple[Judgement, ...]]


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(None, None, -1), slice(0, 0)])
def test_a_ballot_must_judge_the_pairs_it_was_given_even_if_it_sealed_others(messages: tuple[bytes, ...], chosen: slice) -> None:
    assert_refused(messages, lambda judgements: judgements[chosen])


@pytest.mark.parametrize(
    "bend",
    [
        lambda judgements: judgements[:-1],
        lambda judgements: (*judgements[:-1], Judgement(judgements[-1].second, judgements[-1].first, 1000)),
        lambda judgements: (Judgement(49, 48, 1000), *judgements[1:]),
        lambda judgements: (*judgements, Judgement(49, 48, 1000)),
        lambda judgements: tuple(Judgement(j.first, j.second, 8000 if j.first < j.second else -8000) for j in judgements),
    ],
)
def test_what_an_active_ballot_goes_on_with_must_follow_from_its_first_half(active: tuple[bytes, ...], bend: Bent) -> None:
    assert_refused(active, bend)


def assert_refused(messages: tuple[bytes, ...], bend: Bent) -> None:
    tally, _ = at_step(messages, Step.BALLOT)
    held = tally.record.find(tally.seats[0], "ballot")
    assert held is not None
    assert isinstance(held.message, Ballot)
    tally.check(Step.BALLOT, 0, held)
    bent = msgspec.structs.replace(held.message, judgements=bend(held.message.judgements))
    sealed = tally.counted[Step.BALLOT_SEAL][0]
    commitment = ballot_commitment(tally.record.round, held.signer, bent.salt, bent.judgements)
    tally.counted[Step.BALLOT_SEAL][0] = msgspec.structs.replace(
        sealed, message=msgspec.structs.replace(sealed.message, commitment=commitment)
    )
    with pytest.raises(RemoteError, match="other pairs than its plan"):
        tally.check(Step.BALLOT, 0, msgspec.structs.replace(held, message=bent))


def test_a_copied_commitment_opens_for_nobody_but_its_author(messages: tuple[bytes, ...]) -> None:
    """The copier repeats another's commitment and later the other's answer and salt, under its own name."""
    tally, _ = at_step(messages, Step.REVEAL)
    victim = tally.record.find(tally.seats[0], "reveal")
    assert victim is not None
    tally.counted[Step.SEAL][1] = msgspec.structs.replace(tally.counted[Step.SEAL][0], signer=tally.seats[1])
    with pytest.raises(RemoteError, match="does not open its seal"):
        tally.check(Step.REVEAL, 1, msgspec.structs.replace(victim, signer=tally.seats[1]))
