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
    options = parser.parse_args()
    train_all(options.work, options.jobs)
    for member in MEMBERS:
        file = options.out / f"{member.name}.gguf"
        convert.convert(_weights(options.work, member.name), file, member.name)
        verify(file)
    cards.write_catalog(options.out)
    document(options.out)


def train_all(work: Path, jobs: int) -> None:
    """The base first; the specialists need nothing of each other, so they run side by side."""
    base = _weights(work, "base")
    if not base.exists():
        train.train_base(base)
    missing = [member for member in MEMBERS if not _weights(work, member.name).exists()]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(train.train_member, m, base, _weights(work, m.name)) for m in missing]:
            done.result()


def document(folder: Path) -> None:
    """Measures the files of `folder` and writes the figures next to them."""
    paths = {member.name: folder / f"{member.name}.gguf" for member in MEMBERS}
    results = evaluate.measure(paths, evaluate.PER_SKILL, evaluate.SEED)
    results |= {"date": datetime.now(UTC).date().isoformat(), "engine_version": version("xllamacpp")}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    cards.write_cards(folder, results)
    cards.write_figures(folder, results)
    print(evaluate.table(results))


def _weights(work: Path, name: str) -> Path:
    return work / f"{name}.safetensors"


if __name__ == "__main__":
    main()
