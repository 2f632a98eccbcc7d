"""What every command of the laboratory begins with. Builds none."""

import argparse
import signal
import sys

from tests.natlab.namespaces import what_is_missing


def add_skip(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip", action="store_true", help="exit with 0 where no laboratory can run here")


def begin(options: argparse.Namespace) -> None:
    """End here where no laboratory can run, and have SIGTERM take down in order one that does. Raises SystemExit."""
    if (missing := what_is_missing()) is not None:
        print(f"natlab is skipped: {missing}", file=sys.stderr)
        sys.exit(0 if options.skip else 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
