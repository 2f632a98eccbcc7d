"""The two doors of the local API: a Unix socket for this user alone, and a loopback port. Decides who may connect."""

import ipaddress
import os
import socket
import stat
import struct
from pathlib import Path

import trio

MAX_SOCKET_PATH = 107
"""Bytes of sun_path on Linux, less the closing zero (unix(7))."""

_BACKLOG = 64


class ListenError(Exception):
    """A door that cannot be opened; the message is one sentence that says what to do."""


class UnixListener:
    """The control socket: 0600 in a 0700 folder, bound under umask 077, removed at exit only while it is still ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None

    async def open(self) -> trio.SocketListener:
        """Bind and listen; raises ListenError for a path that is too long, in the wrong hands or in use."""
        path = str(self.path)
        if len(os.fsencode(path)) > MAX_SOCKET_PATH:
            raise ListenError(f"the socket path {path} is over {MAX_SOCKET_PATH} bytes; choose a shorter runtime_dir")
        _check_folder(self.path.parent)
        self._clear_stale()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        previous = os.umask(0o077)
        try:
            listening.bind(path)
        except OSError as error:
            listening.close()
            raise ListenError(f"cannot open the socket {path}: {error.strerror}") from None
        finally:
            os.umask(previous)
        listening.listen(_BACKLOG)
        self._identity = _identity(path)
        return trio.SocketListener(trio.socket.from_stdlib_socket(listening))

    def remove(self) -> None:
        """Unlink the socket file, unless another daemon has put its own there."""
        try:
            if self._identity is not None and _identity(str(self.path)) == self._identity:
                os.unlink(self.path)
        except OSError:
            return

    def _clear_stale(self) -> None:
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise ListenError(f"{self.path} is in the way and is not a socket; move it aside or choose another runtime_dir")
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        probe.settimeout(1)
        try:
            probe.connect(str(self.path))
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(self.path)
        except OSError as error:
            raise ListenError(f"cannot tell whether {self.path} is in use: {error}") from None
        else:
            raise ListenError(f"another daemon answers on {self.path}; stop it (swarmd stop) or use another --data-dir")
        finally:
            probe.close()


def _identity(path: str) -> tuple[int, int]:
    # The change time too: a file system gives a removed socket's inode number to the next one.
    status = os.lstat(path)
    return status.st_ino, status.st_ctime_ns


def _check_folder(folder: Path) -> None:
    try:
        status = os.lstat(folder)
    except FileNotFoundError:
        raise ListenError(f"the folder {folder} does not exist") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ListenError(f"{folder} must be a folder of your own, not a link or another user's")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise ListenError(f"{folder} is open to other users; run: chmod 700 {folder}")


def may_connect(stream: trio.SocketStream) -> bool:
    """Whether the process behind a Unix-socket connection is our user or root; no credential is a no (SO_PEERCRED, unix(7))."""
    try:
        raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    except OSError:
        return False
    _, uid, _ = struct.unpack("3i", raw)
    return uid in (os.getuid(), 0)


async def open_tcp(host: str, port: int, has_key: bool) -> tuple[trio.SocketListener, int]:
    """Listen on `host`:`port` (0: any free port) and say which port it became; beyond loopback only with an API key."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ListenError(f"api.listen: {host} is not an IP address; use 127.0.0.1 or [::1]") from None
    if not address.is_loopback and not has_key:
        raise ListenError(f"api.listen {host} is not loopback, so an API key is required: set api.key_file")
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    listening = trio.socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        await listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ListenError(
            f"port {port} on {host} cannot be opened ({error.strerror}); free it or choose another with api.listen"
        ) from None
    listening.listen(_BACKLOG)
    return trio.SocketListener(listening), int(listening.getsockname()[1])
