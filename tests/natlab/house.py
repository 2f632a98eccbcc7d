"""Who lives in the laboratory during one run: sites, relays, daemons, gateways. Judges nothing that they do."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nat.addresses import multiaddr_of
from swarmd import ClientError
from tests import slow_engine
from tests.natlab.gateways import Miniupnpd
from tests.natlab.namespaces import LabError
from tests.natlab.peers import PORT, Peer, end_all, start
from tests.natlab.topology import Lab

MODEL = "tiny-add-mod"
ENGINE_PORT, WORDS, PAUSE_SECONDS = 8199, 150, 0.06


class House:
    """The sites, peers, gateways and other processes of one run. Nothing of it is left behind but logs in the folder `kept`."""

    def __init__(self, lab: Lab, kept: Path | None = None) -> None:
        self.lab = lab
        self.base = Path(tempfile.mkdtemp(prefix="swlab", dir="/tmp"))
        self.peers: list[Peer] = []
        self.relays: list[Peer] = []
        self.ending = contextlib.ExitStack()
        """What else is undone at the end, the latest first."""
        self._kept = kept

    def __enter__(self) -> "House":
        return self

    def __exit__(self, *_: object) -> None:
        end_all(self.peers)
        self.ending.close()
        if self._kept is not None:
            self._keep_logs(self._kept)
        shutil.rmtree(self.base, ignore_errors=True)

    def site(self, name: str, kind: str, number: int) -> None:
        site = self.lab.add(name, kind, number)
        self.ending.callback(self.lab.remove, site)

    def relay(self, *addresses: str, port: int = PORT) -> None:
        """Relays that are bootstraps, too, one on each address."""
        for number, address in enumerate(addresses, len(self.relays) + 1):
            relay = self.start(f"R{number}", "--no-model", *self.joins(), listen=multiaddr_of(address, port))
            self.relays.append(relay.wait_ready())

    def joins(self) -> list[str]:
        return [part for relay in self.relays for part in ("--join", relay.addresses[0])]

    def start(self, name: str, *arguments: str, listen: str = f"/ip4/0.0.0.0/tcp/{PORT}") -> Peer:
        peer = start(self.lab, name, self.base, *arguments, listen=listen)
        self.peers.append(peer)
        return peer

    def pair(self, *extra: str, listen: str = f"/ip4/0.0.0.0/tcp/{PORT}") -> tuple[Peer, Peer]:
        """A peer at A that asks and one at B that serves, which know a path to each other."""
        serving = self.start("B", "--model", MODEL, *self.joins(), *extra, listen=listen)
        asking = self.start("A", "--no-model", *self.joins(), *extra, listen=listen)
        serving.wait_api(), asking.wait_api()
        wait("a path", lambda: asking.path_to(serving.peer_id), 30)
        wait("an offer", lambda: any(row["name"] == MODEL for row in asking.client.models()), 30)
        return asking, serving

    def slow_server(self, name: str, *extra: str) -> Peer:
        command = [sys.executable, slow_engine.__file__, str(ENGINE_PORT), str(WORDS), str(PAUSE_SECONDS)]
        engine = self.lab.spaces.popen(name, command, stdin=subprocess.DEVNULL)
        self.ending.callback(engine.wait)
        self.ending.callback(engine.kill)
        return self.start(name, "--engine-url", f"http://127.0.0.1:{ENGINE_PORT}/v1", *self.joins(), *extra)

    def gateway(self, name: str, number: int, outside: str) -> Miniupnpd:
        gateway = Miniupnpd(self.lab.spaces, f"H{name}", self.base, network=f"192.168.{number}.0/24", outside=outside)
        self.ending.callback(gateway.close)
        return gateway

    def _keep_logs(self, kept: Path) -> None:
        """Copy what the daemons have written, one file each."""
        kept.mkdir(parents=True, exist_ok=True)
        for log in (*self.base.glob("*/log"), *self.base.glob("*.log")):
            with contextlib.suppress(shutil.SameFileError):
                shutil.copy(log, kept / (log.name if log.suffix else f"{log.parent.name}.log"))


def wait(what: str, holds: Callable[[], Any], seconds: float) -> Any:
    found = until(holds, seconds)
    if not found:
        raise LabError(f"no {what} within {seconds:g} s")
    return found


def until(holds: Any, seconds: float) -> Any:
    """The first true answer of `holds` within `seconds`, else None; a daemon that does not answer is asked again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ClientError, OSError):
            if given := holds():
                return given
        time.sleep(0.05)
    return None
