"""Daemons without their seconds of imports: a process that has imported the program forks one for each request.

What runs in the fork is the command line with its own arguments, in a session and a folder of its own, and where one is named
in a network namespace, as by `ip netns exec`. How a daemon starts and ends is not tested with it.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NoReturn

_REQUEST_BYTES = 32 << 10
_PR_SET_PDEATHSIG = 1
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Request:
    """What to run and where; `namespace` is a path below /run/netns, or empty for the one that we are in."""

    folder: str
    arguments: list[str]
    namespace: str = ""


class Process:
    """A daemon that the server forked, to be used as a `subprocess.Popen`. It is the server's child, which says how it ended."""

    def __init__(self, pid: int, exit_code: Callable[[int], int]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._exit_code = exit_code
        self._descriptor = os.pidfd_open(pid)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._descriptor], [], [], 0)[0]:
            return self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, or the negative number of the signal that ended it. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._descriptor], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("swarmd", timeout or 0.0)
            self.returncode = self._exit_code(self.pid)
            os.close(self._descriptor)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """`fork` gives a new daemon; `close` ends the server and all daemons that still run, as the end of our process does."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", __file__, str(theirs.fileno())]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SWARMD_")}
        self._server = subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=environ, stdin=subprocess.DEVNULL)
        theirs.close()
        self._ready = False

    def fork(self, request: Request, log: int, ready: int) -> Process:
        """A daemon whose output goes to `log`, and whose --ready-fd is `ready`."""
        if not self._ready:
            self._ready = bool(self._ours.recv(16))  # it has imported everything
        socket.send_fds(self._ours, [json.dumps(asdict(request)).encode()], [log, ready])
        return Process(int(self._ours.recv(32)), self._exit_code)

    def _exit_code(self, pid: int) -> int:
        self._ours.send(json.dumps(pid).encode())
        return int(self._ours.recv(32))

    def close(self) -> None:
        self._ours.close()
        self._server.wait()


def _serve(asked: socket.socket) -> NoReturn:
    import daemon.cli.start
    import daemon.node  # noqa: F401 - the import is the work

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):
        asked.send(b"ready")
    while True:
        raw, descriptors, _, _ = socket.recv_fds(asked, _REQUEST_BYTES, 2)
        if not raw:
            os._exit(0)
        if not descriptors:
            asked.send(str(os.waitstatus_to_exitcode(os.waitpid(json.loads(raw), 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            asked.close()
            _become(Request(**json.loads(raw)), descriptors)
        asked.send(str(pid).encode())
        for descriptor in descriptors:
            os.close(descriptor)


def _become(request: Request, descriptors: list[int]) -> NoReturn:
    import ctypes

    from daemon.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.setsid()
    if request.namespace:
        namespace = os.open(request.namespace, os.O_RDONLY)
        if libc.setns(namespace, _CLONE_NEWNET):
            os._exit(97)
        os.close(namespace)
    os.chdir(request.folder)
    log, ready = descriptors
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.argv = ["swarmd", *request.arguments, "--ready-fd", str(ready)]
    code = 1
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - what an interpreter would do: nobody else is there to see it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
