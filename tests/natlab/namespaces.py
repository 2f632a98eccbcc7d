"""Network namespaces, links and TAP devices of one laboratory, all of which end with it. Decides no topology.

Every name carries the process id of its laboratory, so that one that was killed is swept by the next and never a living one.
"""

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PREFIX = "swlab"
_TUNSETIFF, _IFF_TAP_NO_PI = 0x400454CA, 0x1002
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The laboratory cannot be built; the message says what is missing."""


def what_is_missing() -> str | None:
    """Why no laboratory can run here, None where it can."""
    if os.name != "posix" or not Path("/proc/self/ns/net").exists():
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root: run it by sudo"
    wanted = {"ip": "iproute2", "nft": "nftables"}
    missing = [package for program, package in wanted.items() if shutil.which(program) is None]
    if missing:
        return f"install what is missing: apt-get install {' '.join(missing)}"
    if not Path("/dev/net/tun").exists():
        return "the kernel offers no TAP device: /dev/net/tun is missing"
    return None


def run(*command: str, text: str | None = None) -> str:
    """Run a command; raises LabError with its own words."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def sweep() -> None:
    """Remove namespaces of laboratories whose process is gone, with the daemons that were left in them."""
    for line in run("ip", "netns", "list").splitlines():
        name = line.split(" ")[0]
        found = re.fullmatch(rf"{PREFIX}(\d+)-\w+", name)
        if found and not Path(f"/proc/{found[1]}").exists():
            for pid in run("ip", "netns", "pids", name).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            run("ip", "netns", "del", name)


class Namespaces:
    """The namespaces of one laboratory by short names such as "A" or "RA"."""

    def __init__(self) -> None:
        self._made: list[str] = []
        self._links = 0

    def full(self, name: str) -> str:
        return f"{PREFIX}{os.getpid()}-{name}"

    def add(self, name: str, *, forwards: bool = False) -> None:
        full = self.full(name)
        run("ip", "netns", "add", full)
        self._made.append(name)
        run("ip", "-n", full, "link", "set", "lo", "up")
        settings = ["net.ipv4.conf.all.rp_filter=0", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]
        settings += ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] if forwards else []
        self.execute(name, "sysctl", "-qw", *settings)

    def execute(self, name: str, *command: str, text: str | None = None) -> str:
        return run("ip", "netns", "exec", self.full(name), *command, text=text)

    def popen(self, name: str, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["ip", "netns", "exec", self.full(name), *command], start_new_session=True, **options)

    def address(self, name: str, device: str, *addresses: str) -> None:
        """Give `device` its addresses (with prefix length) and bring it up."""
        for address in addresses:
            extra = ("nodad",) if ":" in address else ()
            run("ip", "-n", self.full(name), "addr", "add", address, "dev", device, *extra)
        run("ip", "-n", self.full(name), "link", "set", device, "up")

    def route(self, name: str, gateway: str) -> None:
        run("ip", *(("-6",) if ":" in gateway else ()), "-n", self.full(name), "route", "add", "default", "via", gateway)

    def link(self, one: tuple[str, str], other: tuple[str, str]) -> None:
        """A cable between two (namespace, device)."""
        self._links += 1
        ends = [f"{os.getpid() % 100000}v{self._links}{side}" for side in "ab"]
        run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for end, (name, device) in zip(ends, (one, other), strict=True):
            run("ip", "link", "set", end, "netns", self.full(name))
            run("ip", "-n", self.full(name), "link", "set", end, "name", device)

    def tap(self, name: str, device: str) -> int:
        """A TAP device in a namespace; returns its descriptor, whose reader is the switch."""

        def make() -> int:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TAP_NO_PI))
            return descriptor

        return self._inside(name, make)

    def _inside(self, name: str, work: Callable[[], int]) -> int:
        """`work` in a namespace, by a thread of its own, since a thread that has entered one stays there."""
        given: list[int] = []
        failed: list[OSError] = []

        def enter() -> None:
            try:
                with Path(f"/run/netns/{self.full(name)}").open("rb") as file:
                    if _LIBC.setns(file.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                given.append(work())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise LabError(f"no device in {name}: {failed[0]}")
        return given[0]

    def remove(self, name: str) -> None:
        self._made.remove(name)
        run("ip", "netns", "del", self.full(name))

    def close(self) -> None:
        while self._made:
            subprocess.run(["ip", "netns", "del", self.full(self._made.pop())], capture_output=True, check=False)
