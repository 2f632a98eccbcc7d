"""Is a round's verdict worth more than a vote? Real models of three training runs, questions they never saw, and liars.

\b
    python -m bench.zoo [--json] [--check]
    python -m bench.zoo --live N                          ask real daemons N of the questions and compare their verdicts
    python -m bench.zoo --record RUN [--models FOLDER]    ask the real engine all questions anew

The analysis is in bench/zoo.toml, fixed beforehand. What the models said is in bench/study/recordings, so that anyone can repeat
it without an engine; `python -m models.recipe --seed RUN --out FOLDER --no-figures` and --record make the same from nothing.
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import click
import msgspec

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.study import recording
from bench.study.analysis import Study
from bench.study.live import ask_daemons, spread
from bench.study.plan import Plan, read_plan
from bench.study.questions import questions
from bench.study.report import Report, as_json, as_text, report, shortfalls

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = Path(__file__).parent / "study" / "recordings"
SHIPPED = 1


@click.command(help=__doc__)
@click.option("--json", "json_", is_flag=True, help="Print every figure.")
@click.option("--check", is_flag=True, help="Exit 1 if a target is missed.")
@click.option("--runs", "wanted", default="", help="Only these runs, such as 1,3; else all that are recorded.")
@click.option("--record", "run", type=int, help="Ask the models of this training run, and write what they say.")
@click.option("--models", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Where their files are.")
@click.option("--live", type=click.IntRange(1), help="Ask a mesh of real daemons this many of the test questions.")
@click.option("--recordings", type=click.Path(path_type=Path), default=RECORDINGS, help="Where recordings are kept.")
def main(  # noqa: PLR0913 - one argument for each option
    json_: bool, check: bool, wanted: str, run: int | None, folder: Path | None, live: int | None, recordings: Path
) -> None:
    plan, digest = read_plan()
    if run is not None:
        _record(plan, run, folder, recordings)
        return
    if live is not None:
        sys.exit(_live(live, recordings, json_))
    # A run that is not recorded is not hidden: the plan's number of runs is a target.
    there = [run for run in plan.runs if _path(recordings, run).exists()] or [SHIPPED]
    try:
        runs = [int(text) for text in wanted.split(",")] if wanted else there
    except ValueError:
        raise click.BadParameter(f"{wanted!r} is not a list of runs such as 1,3", param_hint="--runs") from None
    found = _analyse(plan, digest, runs, recordings)
    click.echo(json.dumps(as_json(found), indent=1) if json_ else as_text(found))
    short = shortfalls(found)
    if check:
        for line in short:
            click.echo(line, err=True)
        sys.exit(1 if short else 0)


def _record(plan: Plan, run: int, folder: Path | None, recordings: Path) -> None:
    if folder is None and run != SHIPPED:
        raise click.UsageError(f"only run {SHIPPED} is shipped: make run {run} with the recipe and name its folder with --models")
    folder = folder or ROOT / "models"
    catalog = json.loads((folder / "catalog.json").read_text())
    files = {entry["name"]: folder / entry["file"] for entry in catalog}
    asked = questions(plan.questions.seed, plan.questions.gold_per_skill, plan.questions.test)
    engine = f"xllamacpp {version('xllamacpp')}"
    recording.write(_path(recordings, run), recording.record(run, engine, files, asked, lambda text: click.echo(text, err=True)))
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(recordings.glob("*.json.gz")))
    (recordings / "SHA256SUMS").write_text("".join(sums))


def _live(count: int, recordings: Path, json_: bool) -> int:
    """Exit status 1 where a real round ends otherwise than on what was recorded."""
    recorded = _read(recordings, SHIPPED)
    asked = spread([said for said in recorded.said if not said.gold], count)
    found = ask_daemons(recorded, asked, lambda: time.sleep(0.1), lambda text: click.echo(text, err=True))
    if json_:
        click.echo(json.dumps(asdict(found), indent=1))
    else:
        click.echo(
            f"{found.asked} questions to real daemons: the same answer as on the recording {found.same_answer}, the same verdict "
            f"to the bit {found.same_verdict}, largest gap of a share of wins {found.largest_wins_gap_milli} thousandths; "
            f"log-odds differ in {found.other_judgements} of {found.judgements} judgements, by "
            f"{found.largest_odds_gap_milli} millinats at most; right {found.right}"
        )
        for line in found.failed:
            click.echo(line)
    return 0 if found.same_answer == found.asked else 1


def _analyse(plan: Plan, digest: str, runs: Sequence[int], recordings: Path) -> Report:
    studies = [Study(plan, _read(recordings, run)) for run in runs]
    return report(plan, digest, studies, [study.outcomes() for study in studies])


def _read(recordings: Path, run: int) -> recording.Recording:
    try:
        return recording.read(_path(recordings, run))
    except FileNotFoundError:
        raise click.ClickException(f"there is no recording of run {run} in {recordings}; make it with --record {run}") from None
    except (OSError, EOFError, msgspec.MsgspecError) as error:
        raise click.ClickException(f"{_path(recordings, run)} is no recording: {error}") from None


def _path(recordings: Path, run: int) -> Path:
    return recordings / f"run-{run}.json.gz"


if __name__ == "__main__":
    main()
