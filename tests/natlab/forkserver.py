"""Daemons without their three seconds of imports: a process that has imported the program forks one for each request.

What runs in the fork is the command line with its own arguments, in its own namespace and session, as by `ip netns exec`.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import NoReturn

_REQUEST_BYTES = 32 << 10


@dataclass(frozen=True)
class Request:
    """What to run and where; `namespace` is a path below /run/netns."""

    namespace: str
    folder: str
    arguments: list[str]


class Process:
    """A daemon that the server forked. It is the server's child, so it is watched through a descriptor."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)

    def ended(self, timeout: float) -> bool:
        """Whether it has ended, or does within `timeout` seconds."""
        import select

        return bool(select.select([self._descriptor], [], [], timeout)[0])

    def close(self) -> None:
        os.close(self._descriptor)


class ForkServer:
    """Start it before this process has threads. `fork` gives a new daemon; `close` ends the server, not its daemons."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if self._pid == 0:
            self._ours.close()
            _serve(theirs)
        theirs.close()
        self._ours.recv(16)  # it has imported everything

    def fork(self, request: Request, log: int, ready: int) -> Process:
        """A daemon whose output goes to `log`, and whose --ready-fd is `ready`."""
        socket.send_fds(self._ours, [json.dumps(request.__dict__).encode()], [log, ready])
        return Process(int(self._ours.recv(32)))

    def close(self) -> None:
        self._ours.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def _serve(asked: socket.socket) -> NoReturn:
    import daemon.cli.start
    import daemon.node  # noqa: F401 - the import is the work

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked.send(b"ready")
    while True:
        raw, descriptors, _, _ = socket.recv_fds(asked, _REQUEST_BYTES, 2)
        if not raw:
            os._exit(0)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
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

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.setsid()
    namespace = os.open(request.namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0x40000000):
        os._exit(97)
    os.close(namespace)
    os.chdir(request.folder)
    log, ready = descriptors
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    for name in [name for name in os.environ if name.startswith("SWARMD_")]:
        del os.environ[name]
    sys.argv = ["swarmd", *request.arguments, "--ready-fd", str(ready)]
    try:
        main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0 if (code := sys.exc_info()[1]) is None else getattr(code, "code", 1) or 0)
