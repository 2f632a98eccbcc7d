"""The command line of the claim store's benchmarks: a folder to measure in, `--json`, `--check`. Measures nothing."""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

Found = dict[str, Any]


def run(
    doc: str | None, measure: Callable[[Path], Found], shown: Callable[[Found], str], short_of: Callable[[Found], list[str]]
) -> int:
    """Measure and print; the exit code. `short_of` has a sentence for each figure that misses its target."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--check", action="store_true", help="exit 1 and name each figure that misses its target")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(json.dumps(found, indent=2) if arguments.json else shown(found))
    missed = short_of(found) if arguments.check else []
    for sentence in missed:
        print(f"short of its target: {sentence}", file=sys.stderr)
    return 1 if missed else 0
