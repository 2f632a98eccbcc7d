"""The draw: repeatable, weighted, and checked by everyone from the roster alone."""

import hashlib

import msgspec
import pytest

from protocol.round.draw import check_roster, draw, draw_seed, seats_of
from protocol.round.messages import Acceptance, Candidate, Header, Roster, sign
from protocol.wire.errors import RemoteError
from protocol.wire.ids import Hash
from tests.sim.round_network import RoundNetwork, key_of


@pytest.fixture
def network(calm_network: RoundNetwork) -> RoundNetwork:
    return calm_network


def roster_for(network: RoundNetwork, header: Header, round_id: Hash, numbers: list[int]) -> Roster:
    nonces = {network.ids[number]: hashlib.sha256(bytes([number])).digest() for number in numbers}
    raws = tuple(sign(Acceptance(round_id, nonces[network.ids[number]]), key_of(number)) for number in numbers)
    return Roster(round_id, raws, seats_of(header, round_id, nonces))


@pytest.mark.parametrize(
    ("weights", "seats", "expected"),
    [([], 3, 0), ([1], 3, 1), ([1, 1, 1], 2, 2), ([1, 1, 1], 3, 3), ([5, 1, 1_000_000], 7, 3)],
)
def test_draws_distinct_seats_up_to_the_number_asked(weights: list[int], seats: int, expected: int) -> None:
    drawn = draw(Hash(b"\1" * 32), weights, seats)
    assert len(drawn) == len(set(drawn)) == expected


def test_the_same_seed_draws_the_same_seats_in_every_implementation() -> None:
    assert draw(Hash(b"\1" * 32), [1000, 2000, 3000, 4000, 5000], 3) == (3, 1, 2)


@pytest.mark.slow
def test_first_seats_are_within_three_sigma_of_the_weights() -> None:
    weights, draws = [1, 2, 3, 5, 8, 13], 30_000
    counts = [0] * len(weights)
    for number in range(draws):
        counts[draw(draw_seed(Hash(b"\0" * 32), [number.to_bytes(4, "big")]), weights, 1)[0]] += 1
    for weight, count in zip(weights, counts, strict=True):
        share = weight / sum(weights)
        assert abs(count - draws * share) < 3 * (draws * share * (1 - share)) ** 0.5


@pytest.mark.slow
def test_trying_many_nonces_gains_no_seats() -> None:
    """A candidate that cannot see the others' nonces sits as often with any nonce of its own: 2 of 8 seats, one time in four."""
    seated = 0
    for attempt in range(20_000):
        unseen = hashlib.sha256(attempt.to_bytes(4, "big")).digest()
        seed = draw_seed(Hash(b"\0" * 32), [b"tried" * 6 + attempt.to_bytes(2, "big"), unseen])
        seated += 0 in draw(seed, [1000] * 8, 2)
    assert abs(seated - 5_000) < 3 * (20_000 * 0.25 * 0.75) ** 0.5


def refused(header: Header, round_id: Hash, roster: Roster) -> bool:
    try:
        check_roster(header, round_id, roster)
    except RemoteError:
        return True
    return False


def test_an_honest_roster_is_accepted(network: RoundNetwork) -> None:
    header, round_id = network.header(committee=3), Hash(b"s" * 32)
    check_roster(header, round_id, roster_for(network, header, round_id, [1, 2, 4, 5]))


def test_every_bent_roster_is_refused(network: RoundNetwork) -> None:
    header, round_id = network.header(committee=3), Hash(b"s" * 32)
    honest = roster_for(network, header, round_id, [1, 2, 4, 5])
    raws, seats = honest.acceptances, honest.seats
    foreign = sign(Acceptance(Hash(b"x" * 32), bytes(32)), key_of(3))
    stranger = sign(Acceptance(round_id, bytes(32)), key_of(99))
    bent: dict[str, dict[str, object]] = {
        "seats in another order": {"seats": seats[::-1]},
        "a seat less": {"seats": seats[:-1]},
        "a seat that did not accept": {"seats": (network.ids[3], *seats[1:])},
        "an acceptance left out": {"acceptances": raws[1:]},
        "an acceptance twice": {"acceptances": (raws[0], *raws)},
        "acceptances in another order": {"acceptances": raws[::-1]},
        "an acceptance of another round": {"acceptances": (*raws[:2], foreign, *raws[2:])},
        "an acceptance of a stranger": {"acceptances": (*raws, stranger)},
        "an acceptance whose signature is wrong": {"acceptances": (raws[0][:-1] + bytes([raws[0][-1] ^ 1]), *raws[1:])},
    }
    for name, change in bent.items():
        assert refused(header, round_id, msgspec.structs.replace(honest, **change)), name


def test_a_candidate_of_no_weight_cannot_be_written() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert([key_of(1) and "12D3KooW" + "1" * 44, "m", b"\0" * 32, 0], Candidate)
