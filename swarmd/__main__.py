"""Starts the command line. Decides only where the daemon's packages lie; everything else is daemon.cli's."""

import sys
from pathlib import Path


def main() -> None:
    """Run `swarmd`; never returns.

    A wheel carries the packages in `_app`, because names such as `daemon` in site-packages would overwrite another
    project's files. In a source tree or an editable install there is no `_app` and the packages are importable as they are.
    """
    app = Path(__file__).parent / "_app"
    if app.is_dir():
        sys.path.insert(0, str(app))
    try:
        from daemon.cli import main as run_cli
    except KeyboardInterrupt:  # while modules load; later the command line itself takes it
        sys.exit(130)
    run_cli()


if __name__ == "__main__":
    main()
