"""Runs the whole recipe: train, convert, verify, measure, write the texts. Decides only the order and what to skip.

Trained weights stay in the work folder and are used again by the next run; remove the folder to train afresh.
"""

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from . import cards, convert, evaluate, train
from .train import MEMBERS
from .verify import verify

_FOLDER = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.recipe", description="Make the tiny models from nothing.")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "tiny-models", help="where weights are kept")
    parser.add_argument("--out", type=Path, default=_FOLDER, help="where GGUF files, catalog and cards go")
    parser.add_argument("--jobs", type=int, default=2, help="specialists trained at once, one thread each")
    parser.add_argument("--seed", type=int, default=train.SEED, help="which run to make; the shipped models are run 1")
    parser.add_argument("--no-figures", action="store_true", help="leave out the measurement and the texts that come of it")
    options = parser.parse_args()
    if options.seed != train.SEED and options.out == _FOLDER:
        parser.error(f"run {train.SEED} is the shipped one: name another folder with --out for run {options.seed}")
    work = options.work / f"run-{options.seed}"
    train_all(work, options.jobs, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    for member in MEMBERS:
        file = options.out / f"{member.name}.gguf"
        convert.convert(_weights(work, member.name), file, member.name)
        verify(file)
    cards.write_catalog(options.out)
    if not options.no_figures:
        document(options.out, options.seed)


def train_all(work: Path, jobs: int, run: int) -> None:
    """The base first; the specialists need nothing of each other, so they run side by side."""
    base = _weights(work, "base")
    if not base.exists():
        train.train_base(base, run)
    missing = [member for member in MEMBERS if not _weights(work, member.name).exists()]
    if jobs == 1:
        for member in missing:
            train.train_member(member, base, _weights(work, member.name), run)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(train.train_member, m, base, _weights(work, m.name), run) for m in missing]:
            done.result()


def document(folder: Path, run: int) -> None:
    """Measures the files of `folder` and writes the figures next to them."""
    paths = {member.name: folder / f"{member.name}.gguf" for member in MEMBERS}
    results = evaluate.measure(paths, evaluate.PER_SKILL, evaluate.SEED)
    results |= {"run": run, "date": datetime.now(UTC).date().isoformat(), "engine_version": version("xllamacpp")}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    cards.write_cards(folder, results)
    cards.write_figures(folder, results)
    print(evaluate.table(results))


def _weights(work: Path, name: str) -> Path:
    return work / f"{name}.safetensors"


if __name__ == "__main__":
    main()
