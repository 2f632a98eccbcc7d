"""Every attack on a round, R1 to R9 of docs/security.md, as one seeded trial that gives figures. The fold, the draw, the weights
and the machines are the project's own; only the network, the clock and what members say are simulated.
"""

from collections.abc import Callable, Mapping
from random import Random

from protocol.round import events as ev
from protocol.round.classes import AnswerClass
from protocol.round.draw import draw, draw_seed
from protocol.round.fold import Contributions, Result, Voice, fold
from protocol.round.messages import FoldParameters, Judgement
from protocol.round.transcript import replay
from protocol.round.weights import Known, Trials, weigh
from protocol.wire.ids import sha256
from tests.sim.round_network import Behaviour, RoundNetwork, Weather, seeded
from tests.sim.test_round_sim import STUCK, _abort, _copied_seal, _two_rosters, play, ranked

Figures = Mapping[str, float]
"""Each a count or a share of this one trial; the program takes the mean or the worst over all seeds."""

ROUNDS_PER_SEED = 2
RUSHES_PER_SEED = 20
"""What a rush costs is the difference of two shares near 1: 1,000 seeds know it to 0.1 points."""

SHARES = {"0": 0.0, "15": 0.15, "20": 0.20}
COMMITTEES = ((0.65, 21), (0.75, 9), (0.75, 21), (0.75, 41), (0.9, 21))

_ANSWER_S = 8.0
"""How long the answering phase of these rounds may last."""


def r1_abort(seed: int) -> Figures:
    """A third of the members seal and reveal nothing."""
    network = play(seed, 15, Weather(), ranked(tamper=dict.fromkeys((1, 3, 5, 7, 9), _abort)))
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    if replayed.result is None:
        return {"R1 aborted rounds without a verdict": 1.0, "R1 aborters that won": 0.0, "R1 seconds to close": 99.0}
    aborters = {network.ids[number] for number in (1, 3, 5, 7, 9)}
    won = replayed.members[replayed.result.winner_seat].peer_id in aborters
    return {
        "R1 aborted rounds without a verdict": 0.0,
        "R1 aborters that won": float(won),
        "R1 seconds to close": network.closed_at[(network.requester, "requester")],
    }


def r2_copycat(seed: int) -> Figures:
    """Two members copy another's seal and later its answer and salt."""
    network = play(seed, 7, Weather(), ranked(tamper=dict.fromkeys((2, 5), _copied_seal)))
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    copied = {network.ids[number] for number in (2, 5)}
    accepted = sum(row.revealed for row in replayed.members if row.peer_id in copied)
    one = {seat: Voice(1000, 1000, b"same" if seat in (0, 1, 2) else bytes([seat])) for seat in range(5)}
    classes = (AnswerClass("a", "a", (0, 1, 2), 1_000_000), AnswerClass("b", "b", (3, 4), 2_000_000))
    shared = fold(Contributions(sha256(b"r2", seed.to_bytes(8, "big")), "majority", FoldParameters(), one, classes, {}))
    return {"R2 copies accepted": float(accepted), "R2 copies that outvoted originals": float(shared.winner == 0)}


def pair_round(chance: Random, voices: Mapping[int, Voice], liars: set[int], skill: float) -> bool:
    """Whether class 0, which is right, wins where honest judges prefer it with chance `skill` and liars never do."""
    classes = (AnswerClass("r", "r", (900,), 1), AnswerClass("w", "w", (901,), 1))
    everyone = {**voices, 900: Voice(1, 0, b"right"), 901: Voice(1, 0, b"wrong")}
    ballots = {seat: (Judgement(0, 1, 8000 if seat not in liars and chance.random() < skill else -8000),) for seat in voices}
    parameters = FoldParameters(vote_gain_milli=0, own_pairs=True)
    return _winner(chance, everyone, classes, ballots, parameters).winner == 0


def _winner(
    chance: Random,
    voices: Mapping[int, Voice],
    classes: tuple[AnswerClass, ...],
    ballots: Mapping[int, tuple[Judgement, ...]],
    parameters: FoldParameters,
) -> Result:
    return fold(Contributions(sha256(chance.randbytes(8)), "rank", parameters, voices, classes, ballots))


def r3_collusion(seed: int) -> Figures:
    """A share of the judges (cut down to whole ones) votes as a block for the wrong answer."""
    chance = seeded(seed)
    found: dict[str, float] = {}
    for skill, size in COMMITTEES:
        for name, share in SHARES.items():
            if name != "0" and (skill, size) not in ((0.75, 21), (0.75, 41)):
                continue
            right = 0
            for _ in range(ROUNDS_PER_SEED):
                liars = set(range(int(share * size)))
                table = {seat: Voice(1000, 1000, seat.to_bytes(2, "big")) for seat in range(size)}
                right += pair_round(chance, table, liars, skill)
            found[f"R3 right at p={skill} k={size} s={name}%"] = right / ROUNDS_PER_SEED
    return found


def r4_elsewhere(seed: int) -> Figures:
    """One judge of 20, 5% of the weight, rigs every pair that does not hold the target, to move it."""
    chance = seeded(seed)
    strength = [chance.gauss(0, 1.5) for _ in range(6)]
    classes = tuple(AnswerClass(str(i), str(i), (i,), 1_000_000) for i in range(6))
    table = {seat: Voice(1000, 1000, bytes([seat])) for seat in range(20)}
    target = chance.randrange(6)

    def said(a: int, b: int, rigged: bool) -> Judgement:
        if rigged and target not in (a, b):
            return Judgement(a, b, -8000 if strength[a] > strength[b] else 8000)
        return Judgement(a, b, round(1000 * max(-8, min(8, strength[a] - strength[b] + noise[a, b]))))

    moved = 0
    for arm in ("fuse", "rank"):
        places = []
        noise = {(a, b): chance.gauss(0, 0.5) for a in range(6) for b in range(6)}
        for rigged in (False, True):
            ballots = {seat: tuple(said(a, b, rigged and seat == 0) for a in range(6) for b in range(a + 1, 6)) for seat in table}
            parameters = FoldParameters(vote_gain_milli=0, arm="rank" if arm == "rank" else "fuse")
            result = fold(Contributions(sha256(b"r4"), "rank", parameters, table, classes, ballots))
            places.append(result.classes[target].rank)
        moved = max(moved, abs(places[1] - places[0]))
    return {"R4 places the target moved": float(moved)}


def r5_rush(seed: int) -> Figures:
    """21 known judges of skill 0.75, and 79 fresh keys of one mind: as many as a header holds."""
    chance = seeded(seed)
    old = Known(Trials(38_000, 12_000), Trials(38_000, 12_000), None, 760)
    weighed = weigh([*[old] * 21, *[Known(Trials(), Trials(), None, 20)] * 79])
    right = alone = 0
    share = 0.0
    for _ in range(RUSHES_PER_SEED):
        seats = draw(sha256(chance.randbytes(32)), [one.draw_milli for one in weighed], 21)
        table = {seat: Voice(1000, weighed[seat].judge_milli, seat.to_bytes(2, "big")) for seat in seats}
        weight = sum(abs(voice.judge_weight_milli) for voice in table.values())
        share = max(share, sum(abs(table[seat].judge_weight_milli) for seat in seats if seat >= 21) / weight)
        right += pair_round(chance, table, {seat for seat in seats if seat >= 21}, 0.75)
        alone += pair_round(chance, {seat: Voice(1000, 1000, bytes([seat])) for seat in range(21)}, set(), 0.75)
    return {
        "R5 newcomers' weight": share,
        "R5 right in a rush": right / RUSHES_PER_SEED,
        "R5 right without": alone / RUSHES_PER_SEED,
    }


def r6_two_faced(seed: int) -> Figures:
    """The requester tells half of the members of another draw."""
    network = play(seed, 7, Weather(), ranked(tamper={0: _two_rosters}))
    machines = network.honest()
    verdicts = sum(isinstance(network.closed[machine].outcome, ev.Decided) for machine in machines)
    proved = network.equivocations == {network.requester}
    return {
        "R6 seconds to proof": max(network.closed_at[machine] for machine in machines),
        "R6 unproved": float(not proved),
        "R6 verdicts given": float(verdicts),
    }


def r7_grinding(seed: int) -> Figures:
    """100 draws (100,000 over all seeds): candidate 0 picks the best of 16 nonces by a guess of the others' nonces."""
    chance = seeded(seed)
    weights = [500, *[1000] * 9, 20]
    first = [0] * len(weights)
    for _ in range(100):
        guess = [chance.randbytes(32) for _ in weights]
        real = [chance.randbytes(32) for _ in weights]
        header = sha256(chance.randbytes(8))
        tried = [chance.randbytes(32) for _ in range(16)]
        best = next((n for n in tried if draw(draw_seed(header, [n, *guess[1:]]), weights, 1)[0] == 0), tried[0])
        first[draw(draw_seed(header, [best, *real[1:]]), weights, 1)[0]] += 1
    return {f"R7 first seats of weight {weights[place]} ({place})": first[place] / 100 for place in (0, 1, 10)}


def r8_skew(seed: int) -> Figures:
    """Members' clocks differ by up to 30 s either way, and phases are counted on each one's own; two members answer half a second
    after all others, or three seconds after the phase is over."""
    behind = (2, 5)
    slow = play(seed, 7, Weather(), ranked(late=dict.fromkeys(behind, 0.5)))
    rows = replay(slow.closed[(slow.requester, "requester")].transcript).members
    gone = play(seed, 7, Weather(), ranked(late=dict.fromkeys(behind, _ANSWER_S + 3)))
    late = [gone.ids[number] for number in behind]
    counted = [row.peer_id for row in replay(gone.closed[(gone.requester, "requester")].transcript).members if row.sealed]
    told = {peer: replay(gone.closed[(peer, "member")].transcript).members for peer in late}
    return {
        "R8 members left out": float(7 - sum(row.revealed for row in rows)),
        "R8 counted 3 s after the end": float(sum(peer in counted for peer in late)),
        "R8 late ones that were not told": float(sum(row.sealed for peer in late for row in told[peer] if row.peer_id == peer)),
    }


def r9_dead(seed: int) -> Figures:
    """Half of the members stop and keep their connections; or just as many as the quorum bears."""
    half = RoundNetwork(seed, 7, STUCK, Behaviour(answer=_right, kill={"answer": [1, 2, 3, 4]}))
    half.run(half.header())
    verdicts = sum(isinstance(half.closed[machine].outcome, ev.Decided) for machine in half.honest())
    few = play(seed, 7, STUCK, ranked(kill={"judge": [2, 3]}))
    outcome = few.closed[(few.requester, "requester")].outcome
    wrong = isinstance(outcome, ev.Decided) and outcome.answer != "42"
    return {"R9 verdicts without a quorum": float(verdicts), "R9 wrong with one": float(wrong)}


def _right(number: int) -> str:
    return ("42", "41")[number % 2]


ATTACKS: dict[str, Callable[[int], Figures]] = {
    "R1": r1_abort,
    "R2": r2_copycat,
    "R3": r3_collusion,
    "R4": r4_elsewhere,
    "R5": r5_rush,
    "R6": r6_two_faced,
    "R7": r7_grinding,
    "R8": r8_skew,
    "R9": r9_dead,
}
