"""Is a peer told apart from one that runs another model than it offers? Real engines, the shipped models, in 16, 8 and 4 bits.

    python -m bench.verification [--models 3] [--questions 20] [--seeds 6] [--json] [--check]

Per seed: each peer answers questions with its top 20 log-probabilities, an honest one under load and with other settings than the
verifier's, an impostor by a 4-bit copy or by another model. A verifier of the offered config is made to say each answer, and the
sequential test of `protocol.output_check` decides. The tolerance is fixed on the first seed and tried on the others.
"""

import logging
import math
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from statistics import median

import click
import msgspec
import structlog
import trio

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.quantize import quantize
from daemon.engine.embedded import EmbeddedSettings, embedded_engine
from daemon.engine.http_engine import HttpEngine
from models.recipe import skills
from protocol import output_check
from protocol.delta import TokenLogprob
from protocol.extras import Extras
from protocol.job import Job, Role, Sampling, Turn
from protocol.likelihood import Weighed, weighed

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("tiny-all", "tiny-add-mod", "tiny-sort-bool", "tiny-rev-conv")
MAX_ERROR = 0.01
"""Honest peers rejected, and impostors accepted, at most."""

IMPOSTORS = ("4 bits", "other model")
_LOAD = 8
_SETTINGS = {"honest": (1, 4), "honest, 2 threads": (2, 8)}
"""Threads and slots of honest peers; the verifier has 1 and 2."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one peer gave for one question, and what the verifier said of it: a deviation for each token."""

    kind: str
    seed: int
    deviations: tuple[int, ...]
    score_s: float


@dataclass(slots=True)
class Figures:
    """Errors of one kind of peer over the test seeds. `undecided`: answers that one check alone did not settle."""

    answers: int = 0
    wrong: int = 0
    undecided: int = 0
    checks: list[int] = field(default_factory=list)
    """Answers that the sequential test took for each of its verdicts."""
    wrong_tests: int = 0


@asynccontextmanager
async def engines(folder: Path, files: dict[str, tuple[Path, int, int]]) -> AsyncIterator[dict[str, HttpEngine]]:
    """Each engine as the daemon starts it, by name; `files` gives the model, threads and slots."""
    async with trio.open_nursery() as nursery:
        started: dict[str, HttpEngine] = {}
        for number, (name, (path, threads, slots)) in enumerate(files.items()):
            run = folder / str(number)
            run.mkdir(mode=0o700)
            started[name] = embedded_engine(EmbeddedSettings(path, threads=threads, slots=slots), run, SystemRandom())
            nursery.start_soon(started[name].run)
        for engine in started.values():
            await engine.wait_ready()
        yield started
        nursery.cancel_scope.cancel()


async def claims(engine: HttpEngine, jobs: Sequence[Job], load: int) -> list[tuple[Weighed, ...]]:
    """The tokens of each answer as a peer reports them, `load` questions at a time."""
    found: list[tuple[Weighed, ...]] = [()] * len(jobs)
    limiter = trio.CapacityLimiter(load)

    async def ask(place: int) -> None:
        tokens: list[TokenLogprob] = []
        async with limiter, engine.generate(jobs[place]) as chunks:
            async for chunk in chunks:
                tokens += chunk.logprobs
        found[place] = weighed(tokens)

    async with trio.open_nursery() as nursery:
        for place in range(len(jobs)):
            nursery.start_soon(ask, place)
    return found


async def check(
    verifier: HttpEngine, kind: str, seed: int, jobs: Sequence[Job], said: Sequence[tuple[Weighed, ...]]
) -> list[Answer]:
    """The verifier's view of each answer."""
    answers = []
    for job, claimed in zip(jobs, said, strict=True):
        text, kept = output_check.text_of(claimed)
        if not text:
            continue
        start = time.perf_counter()
        scored = weighed(await verifier.likelihood(job.turns, text, len(kept)))
        taken = time.perf_counter() - start
        answers.append(Answer(kind, seed, tuple(output_check.deviations(kept, scored, greedy=True)), taken))
    return answers


async def measure(models: Sequence[str], questions: int, seeds: int) -> list[Answer]:
    """All answers of all seeds."""
    answers: list[Answer] = []
    with tempfile.TemporaryDirectory(prefix="swv") as name:
        folder = Path(name)
        for model in models:
            files = _files(folder, model)
            run = folder / f"run-{model}"
            run.mkdir(mode=0o700)
            async with engines(run, files) as started:
                for seed in range(1, seeds + 1):
                    answers += await _one_seed(started, Random(f"{model} {seed}"), seed, questions)
    return answers


def _files(folder: Path, model: str) -> dict[str, tuple[Path, int, int]]:
    """The engines around one shipped model: two verifiers, honest ones, copies in fewer bits, another model."""
    whole = ROOT / "models" / f"{model}.gguf"
    copies = {}
    for bits, kind in (("4 bits", "Q4_0"), ("8 bits", "Q8_0")):
        copies[bits] = folder / f"{model}-{kind}.gguf"
        copies[bits].write_bytes(quantize(whole.read_bytes(), kind))  # type: ignore[arg-type]
    other = next(each for each in MODELS if each != model)
    files = {"verifier 16": (whole, 1, 2), "verifier 8": (copies["8 bits"], 1, 2)}
    files |= {name: (whole, *settings) for name, settings in _SETTINGS.items()}
    files |= {"8 bits": (copies["8 bits"], 2, 8), "4 bits": (copies["4 bits"], 1, 4)}
    return files | {"other model": (ROOT / "models" / f"{other}.gguf", 1, 4)}


async def _one_seed(started: dict[str, HttpEngine], rng: Random, seed: int, questions: int) -> list[Answer]:
    sampling = Sampling(max_tokens=16)
    drawn = [skills.draw(rng, rng.choice(skills.SKILLS), test=True).prompt for _ in range(questions)]
    jobs = [Job((Turn(Role.USER, prompt),), sampling, extras=Extras(top_logprobs=20)) for prompt in drawn]
    answers: list[Answer] = []
    for peer in (*_SETTINGS, "8 bits", *IMPOSTORS):
        said = await claims(started[peer], jobs, _LOAD)
        # Both offers are tried: the shipped 16 bits, and the 8-bit copy, for which the shipped file itself would be no fraud.
        kind = "honest" if peer in _SETTINGS else f"{peer} for 16"
        answers += await check(started["verifier 16"], kind, seed, jobs, said)
        if peer not in _SETTINGS:
            kind = "honest" if peer == "8 bits" else f"{peer} for 8"
            answers += await check(started["verifier 8"], kind, seed, jobs, said)
    return answers


def fitted(answers: Sequence[Answer]) -> int:
    """The tolerance that one seed gives: the geometric middle of the worst honest token in 1,000 and the best impostor's."""
    honest = sorted(d for a in answers if a.kind == "honest" for d in a.deviations)
    impostor = sorted(d for a in answers if a.kind.startswith(IMPOSTORS) for d in a.deviations)
    high, low = honest[math.ceil(len(honest) * 0.999) - 1], impostor[len(impostor) // 1000]
    return max(1, round(math.sqrt(max(high, 1) * max(low, 1))))


def judged(answers: Sequence[Answer], tolerance: int) -> dict[str, Figures]:
    """The errors of each kind: answer by answer, and by the sequential test over answers until it decides."""
    kinds: dict[str, Figures] = {}
    running: dict[tuple[str, int], tuple[output_check.Evidence, int]] = {}
    for answer in answers:
        figures = kinds.setdefault(answer.kind, Figures())
        guilty = answer.kind != "honest"
        alone = output_check.told(output_check.Evidence(), answer.deviations, tolerance).verdict
        figures.answers += 1
        figures.undecided += alone is None
        figures.wrong += alone == ("verified" if guilty else "refuted")
        evidence, checks = running.get((answer.kind, answer.seed), (output_check.Evidence(), 0))
        evidence = output_check.told(evidence, answer.deviations, tolerance)
        if evidence.verdict is not None:
            figures.checks.append(checks + 1)
            figures.wrong_tests += evidence.verdict == ("verified" if guilty else "refuted")
            evidence, checks = output_check.Evidence(), -1
        running[(answer.kind, answer.seed)] = (evidence, checks + 1)
    return kinds


def by_tokens(answers: Sequence[Answer], tolerance: int, sizes: Sequence[int]) -> dict[int, tuple[float, float, int, int]]:
    """By number of tokens: shares of honest above and impostors below the tolerance by mean deviation, and how many each."""
    found = {}
    for size in sizes:
        means: dict[bool, list[float]] = {True: [], False: []}
        for answer in answers:
            if len(answer.deviations) >= size and (answer.kind == "honest" or answer.kind.startswith(IMPOSTORS)):
                means[answer.kind == "honest"].append(sum(answer.deviations[:size]) / size)
        rejected = sum(mean > tolerance for mean in means[True]) / max(1, len(means[True]))
        accepted = sum(mean <= tolerance for mean in means[False]) / max(1, len(means[False]))
        found[size] = (rejected, accepted, len(means[True]), len(means[False]))
    return found


@click.command()
@click.option("--models", type=click.IntRange(1, len(MODELS)), default=3, show_default=True, help="How many shipped models.")
@click.option("--questions", type=click.IntRange(min=5), default=20, show_default=True, help="Per model and seed.")
@click.option("--seeds", type=click.IntRange(min=2), default=6, show_default=True, help="The first fixes the tolerance.")
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON instead of the table.")
@click.option("--check", "check_wanted", is_flag=True, help="Exit 1, naming the figure, where an error is above its target.")
def main(models: int, questions: int, seeds: int, json_wanted: bool, check_wanted: bool) -> None:
    """Measure how often honest peers are rejected and impostors accepted."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    answers = trio.run(measure, MODELS[:models], questions, seeds)
    training = [answer for answer in answers if answer.seed == 1]
    testing = [answer for answer in answers if answer.seed > 1]
    tolerances = {"fixed on seed 1": fitted(training), "the daemon's default": output_check.TOLERANCE_MICRO}
    results = {name: judged(testing, tolerance) for name, tolerance in tolerances.items()}
    lengths = {name: by_tokens(testing, tolerance, (1, 2, 3, 4, 5, 6, 8)) for name, tolerance in tolerances.items()}
    short = shortfalls(results)
    if json_wanted:
        shown = {"tolerances_micro": tolerances, "results": results, "by_tokens": lengths, "deviations": _quantiles(testing)}
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=1).decode())
    else:
        click.echo(_table(answers, tolerances, results, lengths))
    for line in short if check_wanted else ():
        click.echo(f"short: {line}", err=True)
    if check_wanted and short:
        sys.exit(1)


def shortfalls(results: dict[str, dict[str, Figures]]) -> list[str]:
    """One line for each figure above its target. 8 bits offered as 16 is shown and is not among the targets."""
    lines = []
    for name, kinds in results.items():
        for kind, figures in kinds.items():
            if kind != "honest" and not kind.startswith(IMPOSTORS):
                continue
            done = "rejected" if kind == "honest" else "accepted"
            counted = (("answers", figures.wrong, figures.answers), ("tests", figures.wrong_tests, len(figures.checks)))
            for what, wrong, total in counted:
                if total == 0 or wrong / total > MAX_ERROR:
                    lines.append(f"tolerance {name}: {kind}: {wrong} of {total} {what} {done}, target {MAX_ERROR:.0%}")
    return lines


def _quantiles(answers: Sequence[Answer]) -> dict[str, list[int]]:
    rows = {}
    for kind in sorted({answer.kind for answer in answers}):
        tokens = sorted(d for answer in answers if answer.kind == kind for d in answer.deviations)
        rows[kind] = [tokens[min(len(tokens) - 1, int(len(tokens) * share))] for share in (0, 0.01, 0.5, 0.99, 1)]
    return rows


def _table(
    answers: Sequence[Answer],
    tolerances: dict[str, int],
    results: dict[str, dict[str, Figures]],
    lengths: dict[str, dict[int, tuple[float, float, int, int]]],
) -> str:
    testing = [answer for answer in answers if answer.seed > 1]
    cost = median(answer.score_s for answer in answers) * 1000
    lines = [
        f"{len(answers)} answers checked, {cost:.1f} ms each (median); deviation of one token on the test seeds, milli-nats:"
    ]
    lines.append(f"{'':22}{'least':>9}{'1%':>9}{'median':>9}{'99%':>9}{'most':>9}")
    for kind, row in _quantiles(testing).items():
        lines.append(f"{kind:22}" + "".join(f"{value / 1000:9.2f}" for value in row))
    for name, tolerance in tolerances.items():
        lines += ["", f"tolerance {tolerance / 1000:.2f} milli-nats, {name}"]
        lines.append(f"{'':22}{'answers':>9}{'wrong':>8}{'open':>8}{'tests':>8}{'wrong':>8}{'answers a test: median, most':>30}")
        for kind, found in sorted(results[name].items()):
            spent = f"{median(found.checks):g}, {max(found.checks)}" if found.checks else "-"
            share = f"{found.wrong / found.answers:.2%}", f"{found.undecided / found.answers:.1%}"
            tests = f"{found.wrong_tests / len(found.checks):.2%}" if found.checks else "-"
            lines.append(f"{kind:22}{found.answers:9}{share[0]:>8}{share[1]:>8}{len(found.checks):8}{tests:>8}{spent:>30}")
        lines.append("tokens looked at, honest above / impostors below the tolerance by their mean:")
        lines += [f"  {n}: {r:.2%} of {h} / {a:.2%} of {i}" for n, (r, a, h, i) in lengths[name].items() if h and i]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
