"""Who sits: a weighted draw without replacement that anyone can repeat; and what each seat samples by. Decides no weights.

The seed hashes the header and every accepted candidate's nonce. A candidate sends its nonce to the requester alone, before it
knows any other, so no key or nonce it tries moves its chance; the requester, whose question it is, could still ask again.
"""

from collections.abc import Mapping, Sequence

import msgspec

from protocol.job import Job
from protocol.round.messages import Acceptance, Header, Held, Roster, open_message
from protocol.wire.errors import malformed
from protocol.wire.ids import Hash, PeerId, sha256

_SAMPLING_SEEDS = 2**31


def draw_seed(round_id: Hash, nonces: Sequence[bytes]) -> Hash:
    """The seed, from the nonces in the order of the header's candidates."""
    return sha256(b"swarmd/1/round/draw", round_id, *nonces)


def draw(seed: Hash, weights: Sequence[int], seats: int) -> tuple[int, ...]:
    """Indexes of at most `seats` drawn entries, in order; each draw takes one of the rest with chance weight / their total.

    Weights are positive integers. A 256-bit number modulo a total below 2**32 is even to within 2**-224.
    """
    left = list(range(len(weights)))
    total = sum(weights)
    drawn: list[int] = []
    while left and len(drawn) < seats:
        ticket = int.from_bytes(sha256(seed, len(drawn).to_bytes(4, "big")), "big") % total
        place = 0
        while ticket >= weights[left[place]]:
            ticket -= weights[left[place]]
            place += 1
        drawn.append(left.pop(place))
        total -= weights[drawn[-1]]
    return tuple(drawn)


def seats_of(header: Header, round_id: Hash, nonces: Mapping[str, bytes]) -> tuple[PeerId, ...]:
    """The seats that follow from the accepted candidates' nonces."""
    accepted = [candidate for candidate in header.candidates if candidate.peer_id in nonces]
    seed = draw_seed(round_id, [nonces[candidate.peer_id] for candidate in accepted])
    drawn = draw(seed, [candidate.weight_milli for candidate in accepted], header.committee)
    return tuple(PeerId(accepted[index].peer_id) for index in drawn)


def sampled_job(job: Job, round_id: Hash, member: PeerId) -> Job:
    """What a member asks its own engine: a seed of its own, so that one model in two seats may say two things."""
    seed = int.from_bytes(sha256(b"swarmd/1/round/sampling", round_id, member.encode())[:8], "big") % _SAMPLING_SEEDS
    return msgspec.structs.replace(job, model="", sampling=msgspec.structs.replace(job.sampling, seed=seed))


def check_roster(header: Header, round_id: Hash, roster: Roster) -> None:
    """Repeat the draw from the acceptances in the roster; raises RemoteError where its seats do not follow from them."""
    order = {candidate.peer_id: place for place, candidate in enumerate(header.candidates)}
    nonces: dict[str, bytes] = {}
    last = -1
    for raw in roster.acceptances:
        held: Held = open_message(raw)
        if not isinstance(held.message, Acceptance) or held.message.round != round_id:
            raise malformed("a roster carries something that is no acceptance of its round")
        place = order.get(held.signer, -1)
        if place <= last:
            raise malformed("a roster's acceptances are not from distinct candidates in the header's order")
        last = place
        nonces[held.signer] = held.message.nonce
    if seats_of(header, round_id, nonces) != roster.seats:
        raise malformed("a roster's seats do not follow from the draw")
