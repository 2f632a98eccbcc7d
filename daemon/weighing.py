"""Puts what gold says of peers into a round's header: weights, the arm, and what the round is expected to be worth.

Decides no verdict and asks nobody: it reads tallies that the claim store computes, and what our own gold rounds showed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import msgspec

from protocol.job import Job
from protocol.round.calibration import prior_of
from protocol.round.expectation import JUDGED_ANYWAY, Expected, Seat, of_round, of_route, one_voice
from protocol.round.fold import Voice
from protocol.round.messages import Candidate, FoldParameters
from protocol.round.normal_forms import kind_of
from protocol.round.weights import Evidence, Known, Trials, choose_arm, shares_micro, trials_milli, weigh
from protocol.skills import GENERAL, broader, favoured, judging, skill_of
from protocol.wire.ids import PeerId
from protocol.wire.limits import MAX_COMMITTEE

TallyOf = Callable[[PeerId, str], Evidence]
"""Weighed evidence of a peer's right and wrong trials in a skill."""

DrawWeight = Callable[[PeerId, str], int]
"""What a peer has earned in a skill, 1 to 1000."""

CLOSE_MICRO = 20_000
"""Peers within two points of the best are as good for routing; the selector then takes the soonest of them."""


class GoldRounds(Protocol):
    """What our rounds on known questions showed."""

    def gain_milli(self, arm: str) -> int:
        """The gain under which confidences of this arm were right."""
        ...

    def blocks(self) -> tuple[frozenset[str], ...]:
        """Peers that err together far beyond chance."""
        ...


class NoGoldRounds:
    """Nothing was shown yet."""

    def gain_milli(self, arm: str) -> int:
        return prior_of(arm)[0]

    def blocks(self) -> tuple[frozenset[str], ...]:
        return ()


def _nothing(peer: PeerId, skill: str) -> Evidence:
    return Trials()


def _alike(peer: PeerId, skill: str) -> int:
    return 1000


@dataclass(frozen=True, slots=True)
class Planned:
    """A round as it would be asked, beside one peer asked alone. `best` are the peers that are as good as the best one."""

    topic: str
    candidates: tuple[Candidate, ...]
    fold: FoldParameters
    arm: str
    why: str
    round: Expected
    route: Expected
    best: frozenset[str]
    known: bool

    @property
    def worth_it(self) -> bool:
        """Whether a right answer is expected to cost less by a round."""
        return self.known and self.arm != "best" and self.round.per_right < self.route.per_right

    @property
    def why_route(self) -> str:
        """Why one peer is asked instead, in one sentence."""
        if not self.known:
            return "gold says nothing of these peers yet, so nothing says that a round is worth its cost"
        if self.arm == "best":
            return self.why
        return "a right answer is expected to cost less by one of the best peers than by a round"


class Weighing:
    """Weights from `tally` and tickets from `earned`, for each question's topic; blocks and gains from `gold`."""

    def __init__(
        self, tally: TallyOf = _nothing, earned: DrawWeight = _alike, gold: GoldRounds | None = None, rng: Random | None = None
    ) -> None:
        self._tally = tally
        self._earned = earned
        self._gold = NoGoldRounds() if gold is None else gold
        self._rng = rng or Random(0)  # noqa: S311 - an estimate

    def plan(self, candidates: Sequence[Candidate], job: Job, strategy: str, committee: int) -> Planned:
        """Weigh `candidates` for `job`. A majority counts voices: they weigh alike whatever gold says, and a block is one."""
        topic = skill_of(job)
        known = [self._known(PeerId(candidate.peer_id), topic) for candidate in candidates]
        weighed = weigh(known, committee)
        told = any(trials_milli(one.answering) for one in known)
        choice = choose_arm(weighed, prose=topic == GENERAL, known=told)
        alike = strategy == "majority"
        block = self._blocks(candidates)
        placed = tuple(
            msgspec.structs.replace(
                candidate,
                weight_milli=one.draw_milli,
                answer_weight_milli=1000 if alike else one.answer_milli,
                judge_weight_milli=1000 if alike else one.judge_milli,
                favourite_weight_milli=None if alike else one.favourite_milli,
                strength_milli=0 if alike else one.strength_milli,
                block=block.get(candidate.peer_id, 0),
            )
            for candidate, one in zip(candidates, weighed, strict=True)
        )
        answers = shares_micro([one.answering for one in known])
        judges = shares_micro([one.judging for one in known])
        order = sorted(range(len(placed)), key=lambda place: -placed[place].weight_milli)[:committee]
        seats = [
            Seat(answers[p] / 1e6, judges[p] / 1e6, placed[p].answer_weight_milli, placed[p].judge_weight_milli) for p in order
        ]
        shared = [Voice.of(placed[p]).config_digest for p in order]
        best = max(answers, default=0)
        arm = "majority" if alike else choice.arm
        fold = FoldParameters(
            arm="fuse" if arm == "majority" else arm,
            position_bias=True,
            answers=kind_of(job),
            confidence_gain_milli=self._gold.gain_milli(arm),
            early_exit_margin=self._exit(placed, committee) if arm == "fuse" else 0,
            active=True,
        )
        return Planned(
            topic,
            placed,
            fold,
            arm,
            "a majority counts every vote alike" if alike else choice.why,
            of_round(one_voice(seats, shared), judged=not alike and arm != "best", rng=self._rng),
            of_route(best / 1e6),
            frozenset(placed[p].peer_id for p in range(len(placed)) if told and answers[p] >= best - CLOSE_MICRO),
            told,
        )

    def _exit(self, candidates: Sequence[Candidate], committee: int) -> int:
        """The lead in votes beyond which no judgements of a committee could change the winner; 0, which judges always, where no
        committee could have that lead, and in JUDGED_ANYWAY of all rounds, gold or not, which are drawn apart."""
        heaviest = [max(abs(one.judge_weight_milli), abs(one.favourite_weight_milli or 0)) for one in candidates]
        margin = sum(sorted(heaviest, reverse=True)[:committee]) // 1000 + 1
        return 0 if margin > MAX_COMMITTEE or self._rng.random() < JUDGED_ANYWAY else margin

    def _blocks(self, candidates: Sequence[Candidate]) -> dict[str, int]:
        """The number of its block, by peer. Those of one configuration share its voice already, with others of it that were not
        seen to err with them: apart from these they would be one voice more."""
        configurations = {candidate.peer_id: candidate.config_digest for candidate in candidates}
        invited = (peers & configurations.keys() for peers in self._gold.blocks())
        shared = [peers for peers in invited if len({configurations[peer] for peer in peers}) > 1]
        return {peer: number for number, peers in enumerate(shared, 1) for peer in peers}

    def _known(self, peer: PeerId, topic: str) -> Known:
        others, first = self._of(peer, judging(topic)), self._of(peer, favoured(topic))
        told_apart = trials_milli(others) > 0 and trials_milli(first) > 0
        known = others if trials_milli(others) else first
        return Known(self._of(peer, topic), known, first if told_apart else None, max(1, self._earned(peer, topic)))

    def _of(self, peer: PeerId, skill: str) -> Evidence:
        """The record in a fine skill, or in the topic it is part of where there is none."""
        record = self._tally(peer, skill)
        if trials_milli(record) or broader(skill) == skill:
            return record
        return self._tally(peer, broader(skill))
