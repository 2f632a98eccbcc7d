"""Runs a command that must not outlive the daemon: when standard input ends, which is when the daemon dies, the command's whole
process group is ended. Run as a program; imports the standard library alone.

Needed for vLLM, whose EngineCore processes survive their API server and know nothing of a daemon.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL once the daemon has died."""

CANNOT_RUN = 127
"""Exit status where the command cannot be started, as in a shell."""


def main(command: list[str]) -> int:
    """Run `command` in this process's own session and return its exit status; 128 + n where signal n ended it."""
    if not command or os.getpid() != os.getsid(0):
        print("usage: leash COMMAND..., as the leader of a session", file=sys.stderr)
        return 2
    os.umask(0o077)
    while os.read(0, 1) not in (b"", b"\n"):
        pass  # the line with a key, which vLLM has in its environment
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - built by our own parent, without a shell
    except OSError as error:
        print(f"cannot run {os.path.basename(command[0])}: {error.strerror}", file=sys.stderr)
        return CANNOT_RUN

    def forward(number: int, frame: FrameType | None) -> None:
        child.terminate()  # the command alone: vLLM's own workers must live until it has drained them

    signal.signal(signal.SIGTERM, forward)
    threading.Thread(target=_end_with_daemon, args=(child,), daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _end_with_daemon(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    child.terminate()
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
