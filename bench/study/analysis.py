"""Carries out the plan on recordings: every arm, attack and saving, question by question. Prints nothing and judges no target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import cast

from msgspec import structs

from bench.study import gold as golden
from bench.study.attacks import Kind, attacked, coalition
from bench.study.plan import Plan
from bench.study.recording import Recording, Said
from bench.study.rounds import Committee, Strategy, play, play_undeduplicated, round_of
from protocol.round.fold import Voice
from protocol.round.messages import FoldParameters
from protocol.wire.ids import PeerId

ARMS = (
    "any member right",
    "rank",
    "weighted votes",
    "gold-best per skill",
    "gold-best member",
    "unweighted rank",
    "majority",
    "mean member",
)


@dataclass(slots=True)
class Outcomes:
    """Of one run, by question: how right each arm was, and how often judges were asked."""

    right: dict[str, list[float]] = field(default_factory=dict)
    calls: dict[str, list[int]] = field(default_factory=dict)
    margin: int = 0
    gold_best: str = ""
    arms: Mapping[str, str] = field(default_factory=dict)


class Study:
    """One run's recording under the plan."""

    def __init__(self, plan: Plan, recording: Recording) -> None:
        self._plan = plan
        self.run = recording.run
        self.models = recording.models
        self.members = len(recording.models)
        self.gold = [said for said in recording.said if said.gold]
        self.test = [said for said in recording.said if not said.gold]
        self._digests = [bytes.fromhex(name) for name in recording.sha256]
        self._peers = tuple(PeerId(f"run{recording.run}-{model}") for model in recording.models)

    def outcomes(self) -> Outcomes:
        """Everything that the plan asks of this run."""
        arms = {skill: weights.arm for skill, weights in self.weights.items()}
        found = Outcomes(margin=self.margin, gold_best=self.models[golden.best_member(self.gold, self.members)], arms=arms)
        self._arms(found)
        self._savings(found)
        for liars in self._plan.attacks.liars:
            for kind in self._plan.attacks.kinds:
                self._attack(found, liars, cast("Kind", kind))
        return found

    @cached_property
    def weights(self) -> dict[str, golden.Weights]:
        """By skill, what each member counts for, and the arm."""
        return self._learn(self.gold)

    @cached_property
    def margin(self) -> int:
        """The early exit that the gold questions allow; 0 for none."""

        def right(margin: int) -> int:
            return sum(self._rank(said, self.weights, margin)[0] for said in self.gold)

        full = right(0)
        return next((margin for margin in sorted(self._plan.early_exit_margins) if right(margin) >= full), 0)

    def pair_plans(self) -> dict[str, tuple[float, float]]:
        """Share of right answers and calls of judges a question, with whole plans and with active ones; no figure of the plan."""
        found = {}
        for name, active in (("whole", False), ("active", True)):
            played = []
            for said in self.test:
                committee = self._committee(self.weights[said.skill])
                rules = structs.replace(committee.fold, active=active)
                played.append(self._play(said, replace(committee, fold=rules), "rank"))
            found[name] = (fmean(right for right, _ in played), fmean(calls for _, calls in played))
        return found

    def _learn(self, gold: Sequence[Said]) -> dict[str, golden.Weights]:
        records = golden.records(gold, self.members)
        return {skill: golden.weights_of(record, self._digests) for skill, record in records.items()}

    def _committee(self, weights: golden.Weights, margin: int = 0) -> Committee:
        arm = "fuse" if weights.arm == "majority" else weights.arm
        fold = FoldParameters(early_exit_margin=margin, arm=arm)
        return Committee(tuple(range(self.members)), self._peers, weights.voices, fold)

    @cached_property
    def _equals(self) -> Committee:
        voices = {member: Voice(1000, 1000, digest) for member, digest in enumerate(self._digests)}
        return self._committee(golden.Weights(voices, "fuse"))

    def _play(self, said: Said, committee: Committee, strategy: Strategy) -> tuple[bool, int]:
        played = play(round_of(self.run, said), said, committee, strategy)
        return (False, 0) if played is None else (played.right(said), played.calls)

    def _rank(self, said: Said, weights: Mapping[str, golden.Weights], margin: int = 0) -> tuple[bool, int]:
        return self._play(said, self._committee(weights[said.skill], margin), "rank")

    def _arms(self, found: Outcomes) -> None:
        best = golden.best_member(self.gold, self.members)
        routed = {
            skill: golden.best_member([said for said in self.gold if said.skill == skill], self.members) for skill in self.weights
        }
        rules: dict[str, Callable[[Said], float]] = {
            "any member right": lambda said: any(golden.answers_right(said, member) for member in range(self.members)),
            "weighted votes": lambda said: self._play(said, self._committee(self.weights[said.skill]), "majority")[0],
            "gold-best per skill": lambda said: golden.answers_right(said, routed[said.skill]),
            "gold-best member": lambda said: golden.answers_right(said, best),
            "majority": lambda said: self._play(said, self._equals, "majority")[0],
            "mean member": lambda said: fmean(golden.answers_right(said, member) for member in range(self.members)),
        }
        for name, rule in rules.items():
            found.right[name] = [float(rule(said)) for said in self.test]
        self._note(found, "rank", lambda said: self._rank(said, self.weights))
        for size in self._plan.questions.fewer_gold:
            fewer = self._learn([said for skill in self.weights for said in [s for s in self.gold if s.skill == skill][:size]])
            found.right[f"rank, {size} gold per skill"] = [float(self._rank(said, fewer)[0]) for said in self.test]
        self._note(found, "unweighted rank", lambda said: self._play(said, self._equals, "rank"))
        for member, model in enumerate(self.models):
            found.right[f"member {model}"] = [float(golden.answers_right(said, member)) for said in self.test]

    def _savings(self, found: Outcomes) -> None:
        def whole(said: Said) -> tuple[bool, int]:
            played = play_undeduplicated(round_of(self.run, said), said, self._committee(self.weights[said.skill]))
            return (False, 0) if played is None else (played.right(said), played.calls)

        self._note(found, "rank, every answer for itself", whole)
        self._note(found, "rank, early exit", lambda said: self._rank(said, self.weights, self.margin))

    def _attack(self, found: Outcomes, liars: int, kind: Kind) -> None:
        covert: dict[frozenset[int], dict[str, golden.Weights]] = {}
        label = f"{liars} {kind}"
        rows: dict[str, list[float]] = {"majority": [], "rank": [], "rank, gold recognised": [], "gold-best member": []}
        best = golden.best_member(self.gold, self.members)
        for said in self.test:
            group = coalition(self.run, said.prompt, self.members, liars)
            if group not in covert:
                covert[group] = self._learn([attacked(row, group, kind) for row in self.gold])
            lied = attacked(said, group, kind)
            rows["majority"].append(self._play(lied, self._equals, "majority")[0])
            rows["rank"].append(self._rank(lied, covert[group])[0])
            rows["rank, gold recognised"].append(self._rank(lied, self.weights)[0])
            rows["gold-best member"].append(golden.answers_right(lied, best))
        for name, row in rows.items():
            found.right[f"{label}: {name}"] = [float(right) for right in row]

    def _note(self, found: Outcomes, name: str, rule: Callable[[Said], tuple[bool, int]]) -> None:
        pairs = [rule(said) for said in self.test]
        found.right[name] = [float(right) for right, _ in pairs]
        found.calls[name] = [calls for _, calls in pairs]
