"""One cell of the matrix: two fresh daemons behind two routers, from joining to a served answer and a direct path."""

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swarmd import ClientError
from tests.natlab.namespaces import LabError
from tests.natlab.peers import PORT, Peer, end_all, start
from tests.natlab.topology import RELAYS, Lab

MODEL, QUESTION, ANSWER = "tiny-add-mod", "add 12 34", "46"
MEET_SECONDS = 30.0
DIRECT = ("direct", "punched", "mapped")


@dataclass
class Cell:
    """What happened between a peer behind `left` and one behind `right`; times in milliseconds, None where it never happened."""

    left: str
    right: str
    joined: bool = False
    served: bool = False
    served_over: str = ""
    kind: str = ""
    transport: str = ""
    relayed_ms: float | None = None
    """From the relayed path to the direct one."""
    meet_s: float | None = None
    """From the later of both starts until the two had a path."""
    note: str = ""

    @property
    def direct(self) -> bool:
        return self.kind in DIRECT

    def told(self) -> str:
        """In one line, for people."""
        after = "" if self.relayed_ms is None else f" after {self.relayed_ms:.0f} ms"
        service = f"served over {self.served_over}" if self.served else "NOT SERVED"
        return f"{self.kind or 'no path'} {self.transport}{after}, {service} {self.note}".rstrip()

    def shown(self) -> dict[str, Any]:
        return asdict(self) | {"direct": self.direct}


@contextlib.contextmanager
def household(
    lab: Lab, left: str, right: str, extra: Sequence[str] = (), kept: Path | None = None
) -> Iterator[tuple[list[Peer], Peer, Peer]]:
    """Two relays, a peer that asks behind `left` and one that serves behind `right`, all started.

    Nothing is left of them, but for their logs in the folder `kept`.
    """
    base = Path(tempfile.mkdtemp(prefix="swlab", dir="/tmp"))
    peers: list[Peer] = []
    sites = [lab.add("A", left, 1), lab.add("B", right, 11)]
    try:
        relays: list[Peer] = []
        for index, address in enumerate(RELAYS, 1):
            join = [part for relay in relays for part in ("--join", relay.addresses[0])]
            relay = start(lab, f"R{index}", base, "--no-model", *join, listen=f"/ip4/{address}/tcp/{PORT}")
            peers.append(relay)
            relays.append(relay.wait_ready())
        joins = [part for relay in relays for part in ("--join", relay.addresses[0])]
        server = start(lab, "B", base, "--model", MODEL, *joins, *extra)
        peers.append(server)
        asker = start(lab, "A", base, "--no-model", *joins, *extra)
        peers.append(asker)
        yield relays, asker.wait_api(), server.wait_api()
    finally:
        end_all(peers)
        for site in sites:
            lab.remove(site)
        if kept is not None:
            keep_logs(base, kept)
        shutil.rmtree(base, ignore_errors=True)


def run_cell(
    lab: Lab, left: str, right: str, patience: float = 12.0, extra: Sequence[str] = (), kept: Path | None = None
) -> Cell:
    """Run one pair; `patience` is how many seconds a direct path may take once a relayed one stands; logs go to `kept`."""
    cell = Cell(left, right)
    try:
        with household(lab, left, right, extra, kept) as (_, asker, server):
            _follow(cell, asker, server, patience)
    except (LabError, ClientError, OSError) as error:
        cell.note = str(error)[-300:]
    return cell


def keep_logs(base: Path, kept: Path) -> None:
    """Copy what the daemons in the folder `base` have written, one file each, to `kept`."""
    kept.mkdir(parents=True, exist_ok=True)
    for log in (*base.glob("*/log"), *base.glob("*.log")):
        with contextlib.suppress(shutil.SameFileError):
            shutil.copy(log, kept / (log.name if log.suffix else f"{log.parent.name}.log"))


def _follow(cell: Cell, asker: Peer, server: Peer, patience: float) -> None:
    began = time.monotonic()
    target = server.peer_id
    path = until(lambda: asker.path_to(target), MEET_SECONDS)
    if not path:
        cell.note = "the two never met"
        return
    cell.meet_s = round(time.monotonic() - began, 2)
    cell.joined = True
    until(lambda: any(row["name"] == MODEL for row in asker.client.models()), MEET_SECONDS)
    _ask(cell, asker)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        path = asker.path_to(target)
        if path.get("kind") in DIRECT:
            break
        time.sleep(0.1)
    cell.kind, cell.transport = path.get("kind", ""), path.get("transport", "")
    cell.relayed_ms = path.get("relayed_ms")
    if cell.direct:
        _ask(cell, asker)


def _ask(cell: Cell, asker: Peer) -> None:
    cell.served = False
    for event in asker.client.ask(QUESTION, model=MODEL, timeout_s=20):
        if event.name == "result":
            cell.served = event.fields["answer"].strip() == ANSWER
            cell.served_over = (cell.served_over + " " + event.fields["path"]).strip()


def until(holds: Any, seconds: float) -> Any:
    """The first true answer of `holds` within `seconds`, else None; a daemon that does not answer is asked again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ClientError, OSError):
            if given := holds():
                return given
        time.sleep(0.05)
    return None
