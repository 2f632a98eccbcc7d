"""What replaces acknowledgements: the requester repeats its open message, members repeat what answers it; who may say what."""

import pytest

from protocol.round import events as ev
from protocol.round.draw import seats_of
from protocol.round.member import MemberMachine
from protocol.round.messages import (
    Acceptance,
    Attestation,
    Header,
    Leave,
    Listing,
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
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId
from tests.sim.round_network import UNIX_MS, RoundNetwork, key_of, seeded


def sends(effects: list[ev.Effect], kind: type) -> list[tuple[PeerId, ...]]:
    return [e.peers for e in effects if isinstance(e, ev.Send) and isinstance(open_message(e.raw).message, kind)]


def wake_time(effects: list[ev.Effect]) -> float:
    return [effect.time for effect in effects if isinstance(effect, ev.WakeAt)][-1]


@pytest.fixture
def header(calm_network: RoundNetwork) -> Header:
    return calm_network.header(committee=4)


@pytest.fixture
def requester(header: Header) -> RequesterMachine:
    machine = RequesterMachine(key_of(0), header)
    machine.handle(ev.Started(), 0.0)
    return machine


def hear(
    machine: RequesterMachine | MemberMachine, network: RoundNetwork, number: int, message: RoundMessage, now: float
) -> list[ev.Effect]:
    return machine.handle(ev.Received(network.ids[number], network.sign(number, message)), now)


def accept(machine: RequesterMachine, network: RoundNetwork, *numbers: int) -> list[ev.Effect]:
    return [e for n in numbers for e in hear(machine, network, n, Acceptance(machine.round, bytes([n]) * 32), 0.1)]


def test_the_requester_repeats_itself_to_whoever_has_not_answered(
    requester: RequesterMachine, calm_network: RoundNetwork
) -> None:
    accept(requester, calm_network, 1, 2)
    hear(requester, calm_network, 3, Leave(requester.round, "busy"), 0.2)
    assert sends(requester.handle(ev.Woken(), 0.9), Header) == []
    effects = requester.handle(ev.Woken(), 1.0)
    assert sends(effects, Header) == [(calm_network.ids[4], calm_network.ids[5])]
    assert wake_time(effects) == 3.0


def test_a_peer_that_is_gone_is_not_waited_for_until_it_speaks_again(
    requester: RequesterMachine, calm_network: RoundNetwork
) -> None:
    accept(requester, calm_network, 1, 2, 3, 4)
    hear(requester, calm_network, 4, Acceptance(requester.round, bytes([4]) * 32), 0.1)
    effects = requester.handle(ev.PeerGone(calm_network.ids[5]), 0.2)
    assert sends(effects, Roster), "nobody else is waited for, so the draw is made"
    (seat, *_) = next(open_message(e.raw).message for e in effects if isinstance(e, ev.Send)).seats  # type: ignore[union-attr]
    requester.handle(ev.PeerGone(seat), 0.3)
    assert all(seat not in peers for peers in sends(requester.handle(ev.Woken(), 1.3), Roster))
    number = calm_network.ids.index(seat)
    hear(requester, calm_network, number, Acceptance(requester.round, bytes([number]) * 32), 1.4)
    assert any(seat in peers for peers in sends(requester.handle(ev.Woken(), 3.3), Roster))


def test_a_late_acceptance_is_answered_with_the_roster(requester: RequesterMachine, calm_network: RoundNetwork) -> None:
    accept(requester, calm_network, 1, 2, 3, 4)
    requester.handle(ev.Woken(), 3.0)
    effects = hear(requester, calm_network, 5, Acceptance(requester.round, bytes(32)), 3.1)
    assert sends(effects, Roster) == [(calm_network.ids[5],)]


def test_whoever_speaks_after_the_end_is_told_the_verdict(requester: RequesterMachine, calm_network: RoundNetwork) -> None:
    accept(requester, calm_network, 1)
    requester.handle(ev.Stopped("the user left"), 1.0)
    effects = hear(requester, calm_network, 2, Acceptance(requester.round, bytes(32)), 1.1)
    assert sends(effects, Verdict) == [(calm_network.ids[2],)]
    assert sends(hear(requester, calm_network, 2, Attestation(requester.round, bytes(32), bytes(32)), 1.2), Verdict) == []


def test_a_member_repeats_what_answers_the_message_that_it_hears_again(calm_network: RoundNetwork, header: Header) -> None:
    raw = calm_network.sign(0, header)
    member = MemberMachine(key_of(1), raw, seeded(1).randbytes, UNIX_MS, "compact")
    member.handle(ev.Started(), 0.0)
    again = ev.Received(calm_network.requester, raw)
    assert sends(member.handle(again, 0.5), Acceptance) == [(calm_network.requester,)]
    assert sends(member.handle(ev.Received(calm_network.ids[2], raw), 0.6), Acceptance) == [], "only to the requester"
    nonces: dict[str, bytes] = {peer: bytes([n]) * 32 for n, peer in enumerate(calm_network.members[:4], 1)}
    acceptances = tuple(calm_network.sign(n, Acceptance(member.round, bytes([n]) * 32)) for n in range(1, 5))
    roster = calm_network.sign(0, Roster(member.round, acceptances, seats_of(header, member.round, nonces)))
    told = ev.Received(calm_network.requester, roster)
    assert any(isinstance(effect, ev.Generate) for effect in member.handle(told, 1.0))
    assert member.handle(told, 1.1) == [], "it has nothing to repeat before it has answered"
    (everyone,) = sends(member.handle(ev.Answered("42"), 2.0), Seal)
    assert set(everyone) == {calm_network.requester, *calm_network.members[1:4]}
    assert sends(member.handle(told, 2.1), Seal) == [(calm_network.requester,)]


@pytest.mark.parametrize(
    ("number", "kind", "reason"),
    [
        (1, "roster", "the requester did not sign"),
        (1, "list", "the requester did not sign"),
        (1, "verdict", "the requester did not sign"),
        (9, "acceptance", "did not invite"),
        (9, "seal", "did not invite"),
        (1, "foreign", "another round"),
        (0, "header", "another round"),
    ],
)
def test_who_may_say_what(calm_network: RoundNetwork, header: Header, number: int, kind: str, reason: str) -> None:
    record = Record(calm_network.sign(0, header))
    zero = bytes(32)
    said: dict[str, RoundMessage] = {
        "roster": Roster(record.round, (b"x",), (calm_network.ids[1],)),
        "list": Listing(record.round, zero, Step.SEAL, ()),
        "verdict": Verdict(record.round, zero, b"", "no"),
        "acceptance": Acceptance(record.round, zero),
        "seal": Seal(record.round, zero, "seal", zero),
        "foreign": Acceptance(zero, zero),
        "header": calm_network.header(),
    }
    with pytest.raises(RemoteError, match=reason):
        record.add(sign(said[kind], key_of(number)))
