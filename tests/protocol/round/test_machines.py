"""Members against a requester that bends its messages, a requester against members that bend theirs, and both against noise."""

from collections.abc import Callable

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.round import events as ev
from protocol.round.draw import seats_of
from protocol.round.member import REQUESTER_GRACE_S, MemberMachine
from protocol.round.messages import (
    DOMAIN,
    Acceptance,
    Attestation,
    Ballot,
    Conflict,
    Durations,
    FoldParameters,
    Header,
    Judgement,
    Leave,
    Listing,
    Reveal,
    Roster,
    RoundMessage,
    Seal,
    Step,
    Verdict,
    open_message,
    sign,
)
from protocol.round.record import Record
from protocol.round.requester import RequesterMachine
from protocol.round.transcript import Transcript, replay
from protocol.wire.codec import decode, encode
from protocol.wire.envelope import seal
from protocol.wire.errors import LocalError, RemoteError
from protocol.wire.ids import PeerId
from tests.sim.round_network import UNIX_MS, Behaviour, RoundNetwork, Weather, key_of, seeded

Bend = Callable[[RoundMessage], RoundMessage | None]


def split_vote(number: int) -> str:
    return "42" if number % 2 else "41"


def judges_know(number: int, question: ev.PairQuestion) -> int:
    return 2000 if question.turns[-1].content.startswith("A:42") else -2000


def play(bends: dict[int, Bend], size: int = 5, **header: object) -> RoundNetwork:
    """A round in which the peers named in `bends` send what the function makes of each message; None keeps it back."""

    def tamper(network: RoundNetwork, me: PeerId, send: ev.Send) -> list[ev.Send]:
        number = network.ids.index(me)
        bent = bends[number](open_message(send.raw).message)
        return [] if bent is None else [ev.Send(send.peers, network.sign(number, bent))]

    network = RoundNetwork(3, size, Weather(), Behaviour(split_vote, judges_know, tamper=dict.fromkeys(bends, tamper)))
    network.run(network.header(**header))
    return network


def only(kind: type, change: Callable[[RoundMessage], RoundMessage | None], step: Step | None = None) -> Bend:
    def bend(message: RoundMessage) -> RoundMessage | None:
        fits = isinstance(message, kind) and (step is None or getattr(message, "step", None) == step)
        return change(message) if fits else message

    return bend


def replacing(**fields: object) -> Callable[[RoundMessage], RoundMessage]:
    return lambda message: msgspec.structs.replace(message, **fields)


def outcomes(network: RoundNetwork) -> set[ev.Outcome]:
    return {network.closed[machine].outcome for machine in network.honest()}


# --- a requester that bends its messages

BENT_BY_REQUESTER = {
    "a list in another order": only(Listing, lambda m: msgspec.structs.replace(m, counted=m.counted[::-1])),  # type: ignore[union-attr]
    "a list that counts one twice": only(Listing, lambda m: msgspec.structs.replace(m, counted=m.counted + m.counted[-1:])),  # type: ignore[union-attr]
    "a list below the quorum": only(Listing, lambda m: msgspec.structs.replace(m, counted=m.counted[:2])),  # type: ignore[union-attr]
    "a list that follows nothing": only(Listing, replacing(parent=b"\0" * 32), Step.REVEAL),
    "a list of seals in place of reveals": only(Listing, replacing(step=Step.SEAL), Step.REVEAL),
    "a proof that proves nothing": only(
        Listing,
        lambda m: msgspec.structs.replace(m, conflicts=(Conflict(m.counted[0], m.counted[0]),)),  # type: ignore[union-attr]
    ),
    "another result": only(Verdict, replacing(result=b"\1" * 32)),
}


@pytest.mark.parametrize("name", BENT_BY_REQUESTER)
def test_members_close_without_a_result_when_the_requester_bends(name: str) -> None:
    found = outcomes(play({0: BENT_BY_REQUESTER[name]}))
    assert all(isinstance(outcome, ev.NoResult) for outcome in found)
    reasons = {outcome.reason for outcome in found if isinstance(outcome, ev.NoResult)}
    allowed = ("the requester broke the round", "the requester signed two", "the requester gave no verdict in time")
    assert all(reason.startswith(allowed) for reason in reasons), reasons


@pytest.mark.parametrize("counted", [lambda c: (*c[:-1], b"\5" * 32), lambda c: c[:3], lambda c: ()])
def test_no_answer_is_revealed_before_a_quorum_of_real_seals_is_listed(counted: Callable[[tuple[bytes, ...]], object]) -> None:
    """A requester that lists junk, or too few, to see answers before the others are bound sees none."""
    network = play({0: only(Listing, lambda m: msgspec.structs.replace(m, counted=counted(m.counted)))})  # type: ignore[union-attr]
    assert not any(isinstance(outcome, ev.Decided) for outcome in outcomes(network))
    assert all(shown.revealed == 0 for shown in network.progress)


def test_a_lead_beyond_the_early_exit_margin_is_not_judged() -> None:
    """Three votes to two: a margin of 1 ends the round there, a margin of 2 has it judged."""
    bases = []
    for margin in (1, 2):
        network = play({}, fold=FoldParameters(early_exit_margin=margin))
        (outcome,) = outcomes(network)
        assert isinstance(outcome, ev.Decided)
        bases.append(outcome.result.basis)
    assert bases == ["votes", "judged"]


# --- members that bend theirs

BENT_BY_MEMBER = {
    "an answer it did not seal": (only(Reveal, replacing(answer="42!")), "revealed"),
    "another salt": (only(Reveal, replacing(salt=b"\0" * 32)), "revealed"),
    "a reveal of another list": (only(Reveal, replacing(parent=b"\0" * 32)), "revealed"),
    "a seal of another roster": (only(Seal, replacing(parent=b"\0" * 32), Step.SEAL), "sealed"),
    "judgements it did not seal": (
        only(
            Ballot,
            lambda m: msgspec.structs.replace(m, judgements=tuple(Judgement(j.first, j.second, 8000) for j in m.judgements)),
        ),  # type: ignore[union-attr]
        "judged",
    ),
    "other pairs than planned": (
        only(Ballot, lambda m: msgspec.structs.replace(m, judgements=m.judgements[:-1])),  # type: ignore[union-attr]
        "judged",
    ),
    "silence": (only(Ballot, lambda m: None), "judged"),
}


@pytest.mark.parametrize("name", BENT_BY_MEMBER)
def test_a_bent_contribution_costs_its_author_and_nobody_else(name: str) -> None:
    bend, field = BENT_BY_MEMBER[name]
    network = play({3: bend})
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    assert replayed.winner == "42"
    assert [getattr(row, field) for row in replayed.members].count(False) == 1
    assert not getattr({row.peer_id: row for row in replayed.members}[network.ids[3]], field)
    assert {o.verdict_hash for o in outcomes(network) if isinstance(o, ev.Decided)} == {replayed.verdict_hash}
    assert network.faults or name == "silence"


def test_a_member_that_attests_to_another_result_is_not_counted() -> None:
    network = play({3: only(Attestation, replacing(result=b"\2" * 32))})
    assert network.ids[3] not in replay(network.closed[(network.requester, "requester")].transcript).attested_by
    assert network.faults == {"malformed: a member attests to another result": 1}


# --- engines that fail, users that leave


def start_member(
    network: RoundNetwork, header: Header, number: int = 1, refusal: str = ""
) -> tuple[MemberMachine, list[ev.Effect]]:
    machine = MemberMachine(key_of(number), network.sign(0, header), seeded(number).randbytes, UNIX_MS, "compact")
    return machine, machine.handle(ev.Started(refusal), 0.0)


def kinds_sent(effects: list[ev.Effect]) -> list[str]:
    return [type(open_message(effect.raw).message).__name__ for effect in effects if isinstance(effect, ev.Send)]


def test_a_member_that_cannot_take_part_declines(calm_network: RoundNetwork) -> None:
    machine, effects = start_member(calm_network, calm_network.header(), refusal="full")
    assert kinds_sent(effects) == ["Leave"]
    assert machine.closed


@pytest.mark.parametrize("seat_of_failure", [ev.AnswerFailed("no memory"), ev.Answered("  \n"), ev.Stopped("draining")])
def test_a_member_whose_engine_fails_says_so(calm_network: RoundNetwork, seat_of_failure: ev.Event) -> None:
    machine, _ = start_member(calm_network, calm_network.header())
    assert kinds_sent(machine.handle(seat_of_failure, 1.0)) == ["Leave"]
    assert kinds_sent(machine.handle(seat_of_failure, 1.0)) == []


def test_a_member_repeats_its_acceptance_until_it_hears_of_the_draw_and_gives_up_at_the_end(calm_network: RoundNetwork) -> None:
    header = calm_network.header(durations=Durations(join_ms=1000, answer_ms=2000, reveal_ms=1000, judge_ms=1000, attest_ms=1000))
    machine, effects = start_member(calm_network, header)
    nudges, now = 0, 0.0
    while not machine.closed:
        (now,) = [effect.time for effect in effects if isinstance(effect, ev.WakeAt)]
        effects = machine.handle(ev.Woken(), now)
        nudges += kinds_sent(effects).count("Acceptance")
    assert (nudges, now) == (3, header.durations.total_ms / 1000 + 5.0)


def test_a_member_leaves_a_requester_that_stays_gone_and_keeps_one_that_returns(calm_network: RoundNetwork) -> None:
    header = calm_network.header()
    for returns in (False, True):
        machine, _ = start_member(calm_network, header)
        machine.handle(ev.PeerGone(calm_network.requester), 1.0)
        if returns:
            machine.handle(ev.Received(calm_network.requester, calm_network.sign(0, header)), 2.0)
        machine.handle(ev.Woken(), 1.0 + REQUESTER_GRACE_S)
        assert machine.closed is not returns


def test_a_user_that_leaves_ends_the_round_for_everyone(calm_network: RoundNetwork) -> None:
    header = calm_network.header()
    requester = RequesterMachine(key_of(0), header)
    requester.handle(ev.Started(), 0.0)
    effects = requester.handle(ev.Stopped("the user left"), 1.0)
    assert kinds_sent(effects) == ["Verdict"]
    member, _ = start_member(calm_network, header)
    (raw,) = [effect.raw for effect in effects if isinstance(effect, ev.Send)]
    closed = [e for e in member.handle(ev.Received(calm_network.requester, raw), 1.0) if isinstance(e, ev.Closed)]
    assert [effect.outcome for effect in closed] == [ev.NoResult("the user left")]


def test_too_few_acceptances_are_no_result_at_once_when_all_others_decline(calm_network: RoundNetwork) -> None:
    network = RoundNetwork(1, 5, Weather(), Behaviour(kill={"join": [1, 2]}))
    network.run(network.header())
    assert ev.NoResult("3 of 5 invited peers accepted where 4 are needed") in outcomes(network)
    assert network.closed_at[(network.requester, "requester")] < 0.5


def test_a_wrong_number_of_judgements_is_our_own_bug() -> None:
    network = RoundNetwork(1, 3, Weather(), Behaviour(split_vote, judges_know, judge_s=(50.0, 60.0)))
    network.run(network.header(), limit_s=3.0)
    machine = next(m for m in network.peers[network.ids[1]].machines.values() if isinstance(m, MemberMachine))
    with pytest.raises(LocalError, match="0 judgements"):
        machine.handle(ev.Judged(()), 3.0)


# --- noise and order


@pytest.fixture(scope="module")
def finished() -> tuple[Header, bytes, tuple[bytes, ...], bytes]:
    """A judged round: its header, header bytes, further messages, and verdict hash."""
    network = play({})
    transcript = network.closed[(network.requester, "requester")].transcript
    header_raw, *messages = decode(Transcript, transcript, 1 << 20).messages
    header = open_message(header_raw).message
    assert isinstance(header, Header)
    return header, header_raw, tuple(messages), replay(transcript).verdict_hash or b""


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(), number=st.integers(1, 5))
def test_any_order_and_repetition_ends_in_the_same_verdict(
    finished: tuple[Header, bytes, tuple[bytes, ...], bytes], seed: int, number: int
) -> None:
    header, header_raw, messages, verdict = finished
    machine = MemberMachine(key_of(number), header_raw, seeded(seed).randbytes, UNIX_MS, "compact")
    effects = machine.handle(ev.Started(), 0.0)
    order = seeded(seed).sample(messages * 2, len(messages) * 2)
    sender = PeerId(header.candidates[0].peer_id)
    for raw in order:
        effects += machine.handle(ev.Received(sender, raw), 0.0)
    if not machine.closed:  # answers that came before the roster were not kept: they are pulled
        for pull in [effect for effect in machine.handle(ev.Woken(), 1.0) if isinstance(effect, ev.Pull)]:
            found = tuple(raw for raw in messages if open_message(raw).hash in pull.hashes)
            effects += machine.handle(ev.Pulled(sender, found), 1.0)
    (closed,) = [effect for effect in effects if isinstance(effect, ev.Closed)]
    assert isinstance(closed.outcome, ev.Decided)
    assert closed.outcome.verdict_hash == verdict
    assert replay(closed.transcript).verdict_hash == verdict
    assert not [effect for effect in effects if isinstance(effect, ev.Fault)]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_noise_is_a_counted_fault_and_never_a_crash(
    finished: tuple[Header, bytes, tuple[bytes, ...], bytes], data: st.DataObject
) -> None:
    header, header_raw, messages, _ = finished
    sender = PeerId(header.candidates[0].peer_id)
    member = MemberMachine(key_of(2), header_raw, seeded(0).randbytes, UNIX_MS, "compact")
    requester = RequesterMachine(key_of(0), header)
    machines = (member, requester)
    effects = [effect for machine in machines for effect in machine.handle(ev.Started(), 0.0)]
    noise = st.one_of(
        st.binary(max_size=200),
        st.sampled_from(messages),
        st.tuples(st.sampled_from(messages), st.integers(0, 2000), st.integers(1, 255)).map(_flip),
    )
    now = 0.0
    for raw in data.draw(st.lists(noise, min_size=1, max_size=25)):
        now += 0.1
        event = data.draw(
            st.sampled_from([ev.Received(sender, raw), ev.Pulled(sender, (raw, raw)), ev.Woken(), ev.PeerGone(sender)])
        )
        for machine in machines:
            effects += machine.handle(event, now)
    assert all(isinstance(effect.message, str) for effect in effects if isinstance(effect, ev.Fault))


def _flip(chosen: tuple[bytes, int, int]) -> bytes:
    raw, place, mask = chosen
    place %= len(raw)
    return raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :]


def test_a_member_never_serves_what_it_has_not_sent(calm_network: RoundNetwork) -> None:
    machine, effects = start_member(calm_network, calm_network.header())
    (sent,) = [effect.raw for effect in effects if isinstance(effect, ev.Send)]
    assert machine.serve((open_message(sent).hash, b"\0" * 32)) == [sent]


def test_what_a_candidate_may_send_is_bounded_by_its_seat_and_kind(calm_network: RoundNetwork) -> None:
    """Before the roster no answer is kept; after it, nothing of a peer without a seat; a short kind may never be long."""
    record = Record(calm_network.sign(0, calm_network.header(committee=4)))
    nonces: dict[str, bytes] = {peer: bytes(32) for peer in calm_network.members[:4]}
    acceptances = tuple(calm_network.sign(number, Acceptance(record.round, bytes(32))) for number in range(1, 5))
    roster = Roster(record.round, acceptances, seats_of(record.header, record.round, nonces))
    early = calm_network.sign(1, Reveal(record.round, bytes(32), "early", bytes(32)))
    address = open_message(early).hash
    assert (record.add(early).new, record.get(address)) == (False, None)
    record.add(calm_network.sign(0, roster))
    assert record.add(early).new
    with pytest.raises(RemoteError, match="without a seat"):
        record.add(calm_network.sign(5, Reveal(record.round, bytes(32), "unseated", bytes(32))))
    padded = seal(DOMAIN, encode(Leave(record.round, "x"))[:-3] + b"\xd9\xc8" + b"x" * 200 + b"\xa0", key_of(2))
    assert record.add(padded).new
    long = msgpack.packb([*msgpack.unpackb(encode(Acceptance(record.round, bytes(32)))), b"x" * 2000])
    with pytest.raises(RemoteError, match="1024 are allowed"):
        record.add(seal(DOMAIN, long, key_of(3)))


def test_a_header_that_is_not_for_us_is_refused_at_construction(calm_network: RoundNetwork) -> None:
    raw = sign(calm_network.header(), key_of(0))
    with pytest.raises(RemoteError, match="does not invite us"):
        MemberMachine(key_of(77), raw, seeded(0).randbytes, UNIX_MS, "compact")
