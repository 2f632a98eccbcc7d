"""Runs a command that must not outlive the daemon: when standard input ends, which is when the daemon dies, the command's whole
process group is ended. Run as a program; imports the standard library alone.

Needed for vLLM, whose EngineCore processes survive their API server and know nothing of a daemon.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL once the daemon has died."""

JANITOR_GRACE = 1.0
"""Seconds for the resource tracker once the others have been killed."""

_JANITOR = b"\0from multiprocessing.resource_tracker import main;"

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
    unled = threading.Event()
    threading.Thread(target=_end_with_daemon, args=(child, unled), daemon=True).start()
    status = child.wait()
    if unled.is_set():
        _kill_all()  # no daemon is left to end the workers that the command may have left
    return status if status >= 0 else 128 - status


def _end_with_daemon(child: subprocess.Popen[bytes], unled: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    unled.set()
    child.terminate()
    time.sleep(GRACE)
    _kill_all()


def _kill_all() -> None:
    """Everything in this session, itself included; Python's resource tracker last, as it frees the others' shared memory."""
    until = time.monotonic() + JANITOR_GRACE
    while time.monotonic() < until and (others := _others()):
        for pid, is_janitor in others:
            if not is_janitor:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)


def _others() -> list[tuple[int, bool]]:
    """The other live processes of this session, and whether each is a resource tracker; none where there is no /proc."""
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry)
            with open(f"/proc/{pid}/stat", "rb") as file:
                state, *_ = fields = file.read().rpartition(b")")[2].split()
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                is_janitor = _JANITOR in file.read()
            if int(fields[3]) == os.getpid() != pid and state not in (b"Z", b"X"):
                found.append((pid, is_janitor))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
