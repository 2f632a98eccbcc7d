"""One cell of the matrix: two fresh daemons behind two routers, from joining to a served answer and a direct path."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swarmd import ClientError
from tests.natlab.house import MODEL, House, until
from tests.natlab.namespaces import LabError
from tests.natlab.peers import Peer
from tests.natlab.topology import RELAYS, Lab

QUESTION, ANSWER = "add 12 34", "46"
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


def run_cell(
    lab: Lab, left: str, right: str, patience: float = 12.0, extra: Sequence[str] = (), kept: Path | None = None
) -> Cell:
    """Run one pair; `patience` is how many seconds a direct path may take once a relayed one stands; logs go to `kept`."""
    cell = Cell(left, right)
    try:
        with House(lab, kept) as house:
            house.site("A", left, 1)
            house.site("B", right, 11)
            house.relay(*RELAYS)
            server = house.start("B", "--model", MODEL, *house.joins(), *extra)
            asker = house.start("A", "--no-model", *house.joins(), *extra)
            _follow(cell, asker.wait_api(), server.wait_api(), patience)
    except (LabError, ClientError, OSError) as error:
        cell.note = str(error)[-300:]
    return cell


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
