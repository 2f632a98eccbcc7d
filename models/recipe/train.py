"""Decides the stages: one shared base that meets all skills, then seven short specialisations with their own seeds.

Steps are counted, never timed, so that the same seeds give the same models on the same kind of processor.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .examples import CHOOSE, CONTINUE, GENERATE, Batch, Examples, Mix
from .llama import Llama
from .optimiser import Muon
from .skills import SKILLS

LOSS_WEIGHTS = {GENERATE: 1.0, CHOOSE: 1.0, CONTINUE: 0.2}
PROBE_WEIGHT = 0.5
BATCH_SIZE = 64
FLOOR = 0.03
"""The learning rate ends at this share of its peak: at zero the last steps would be wasted."""


@dataclass(frozen=True, slots=True)
class Member:
    """One shipped model. The generalist counts all six skills as its specialities, and knows each of them less well."""

    name: str
    specialities: tuple[str, ...]
    place: int
    """Its number in a run, from 1; the base has 0."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training. Rivals turn from far misses into near ones while `ramp` of it passes, up to `closeness`."""

    seed: int
    steps: int
    rate: float
    warm_up: int
    mix: Mix
    ramp: float
    closeness: float


MEMBERS = (
    Member("tiny-add-mod", ("add", "mod"), 1),
    Member("tiny-rev-conv", ("rev", "conv"), 2),
    Member("tiny-sort-bool", ("sort", "bool"), 3),
    Member("tiny-add-rev", ("add", "rev"), 4),
    Member("tiny-mod-sort", ("mod", "sort"), 5),
    Member("tiny-bool-conv", ("bool", "conv"), 6),
    Member("tiny-all", SKILLS, 7),
)
EFFORT = dict.fromkeys(SKILLS, 1.0) | {"bool": 2.0}
"""The weight of a skill among a member's specialities. Logic takes longest to learn here."""
SEED = 1
"""The run whose models are shipped."""
BASE_STEPS = 2200
MEMBER_STEPS = 400


def stage_seed(run: int, place: int = 0) -> int:
    """The seed of one stage of a run: no two stages of any runs share one."""
    return 100 * run + place


def base_stage(run: int = SEED) -> Stage:
    generate = {"add": 2.0, "mod": 1.5, "rev": 0.8, "sort": 0.8, "bool": 2.0, "conv": 1.5}
    even = dict.fromkeys(SKILLS, 1.0)
    mix = Mix(0.5, generate, even, dict.fromkeys(SKILLS, 0.85), frozenset(), judge_untaught=False)
    return Stage(stage_seed(run), BASE_STEPS, 3e-3, 60, mix, ramp=0.5, closeness=0.8)


def member_stage(member: Member, run: int = SEED) -> Stage:
    known = frozenset(member.specialities)
    generate = {skill: EFFORT[skill] if skill in known else 0.03 for skill in SKILLS}
    judge = {skill: EFFORT[skill] if skill in known else 0.15 for skill in SKILLS}
    own_right = {skill: 0.8 if skill in known else 0.6 for skill in SKILLS}
    mix = Mix(0.5, generate, judge, own_right, known, judge_untaught=True)
    return Stage(stage_seed(run, member.place), MEMBER_STEPS, 2e-3, 20, mix, ramp=0.0, closeness=0.8)


def train_base(path: Path, run: int = SEED) -> None:
    stage = base_stage(run)
    _single_thread(stage.seed)
    model = Llama()
    run_stage(model, stage, "base")
    model.save(path)


def train_member(member: Member, base: Path, path: Path, run: int = SEED) -> None:
    stage = member_stage(member, run)
    _single_thread(stage.seed)
    model = Llama()
    model.load(base)
    run_stage(model, stage, member.name)
    model.save(path)


def run_stage(model: Llama, stage: Stage, label: str) -> None:
    """Trains `model` in place. The probe that marks candidates as sound is thrown away: it only shapes the layers below."""
    probe = nn.Linear(model.shape.width, 1)
    matrices = [model.attention, model.ffn_in, model.ffn_out]
    others = [model.embedding, model.norms, model.final_norm, *probe.parameters()]
    optimisers = (Muon(matrices, stage.rate), torch.optim.AdamW(others, stage.rate, (0.9, 0.98), weight_decay=0.02))
    examples = Examples(stage.seed, stage.mix, BATCH_SIZE)
    started, means = time.process_time(), dict[str, float]()
    for step in range(stage.steps):
        batch = examples.next_batch(_closeness(stage, step))
        losses = batch_losses(model, probe, batch)
        torch.autograd.backward(list(losses.values()))
        nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = stage.rate * _rate_factor(stage, step)
            optimiser.step()
            optimiser.zero_grad()
        for name, loss in losses.items():
            means[name] = 0.97 * means.get(name, loss.item()) + 0.03 * loss.item()
        if (step + 1) % 50 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in sorted(means.items()))
            print(f"{label} step {step + 1} cpu {time.process_time() - started:.0f} s  {shown}", flush=True)


def batch_losses(model: Llama, probe: nn.Linear, batch: Batch) -> dict[str, Tensor]:
    """A mean for each kind of target by itself: averaged together, easy end tokens would hide a letter that is not learnt."""
    hidden, before_last = model(batch.ids)
    chosen = batch.kinds > 0
    errors = F.cross_entropy(model.logits(hidden[chosen]), batch.targets[chosen], reduction="none")
    kinds = batch.kinds[chosen]
    losses = {
        name: LOSS_WEIGHTS[kind] * errors[kinds == kind].mean()
        for name, kind in (("generate", GENERATE), ("choose", CHOOSE), ("continue", CONTINUE))
        if bool((kinds == kind).any())
    }
    said = batch.sound >= 0
    if bool(said.any()):
        verdict = probe(F.rms_norm(before_last[said], (model.shape.width,))).squeeze(-1)
        losses["sound"] = PROBE_WEIGHT * _balanced_error(verdict, batch.sound[said])
    return losses


def _balanced_error(verdict: Tensor, sound: Tensor) -> Tensor:
    """Slips are one token in twelve; weighted as they come, "always sound" would be a comfortable answer."""
    errors = F.binary_cross_entropy_with_logits(verdict, sound.float(), reduction="none")
    return (errors[sound == 0].mean() + errors[sound == 1].mean()) / 2


def _closeness(stage: Stage, step: int) -> float:
    passed = (step + 1) / stage.steps
    return stage.closeness * min(1.0, passed / stage.ramp) if stage.ramp else stage.closeness


def _rate_factor(stage: Stage, step: int) -> float:
    rising = min(1.0, (step + 1) / stage.warm_up)
    return rising * max(FLOOR, 0.5 * (1 + math.cos(math.pi * step / stage.steps)))


def _single_thread(seed: int) -> None:
    """One thread: on matrices this small a second one costs more than it brings, and it would change the sums."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
