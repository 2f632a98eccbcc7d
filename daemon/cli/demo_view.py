"""What the demo shows: the mesh as it forms, the round as it goes, and the ranking. Draws; starts nothing."""

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemon.cli.show import cell
from protocol.wire.ids import short

_MARKS = ("sealed", "revealed", "judged")
_REACHED = {
    "sealed": ("sealed", "revealed", "judging", "judged", "attested"),
    "revealed": ("revealed", "judging", "judged", "attested"),
    "judged": ("judged", "attested"),
}


class DemoView:
    """Progress goes to standard error: a live table on a terminal, a line for each change elsewhere; nothing if `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False, width=None if sys.stderr.isatty() else 160)
        self._live: Live | None = None
        self._last = ""
        self._names: dict[str, str] = {}

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(Text(text))

    def name_peers(self, names: Mapping[str, str]) -> None:
        """Peer ids and the nodes they are."""
        self._names = dict(names)

    def __enter__(self) -> "DemoView":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.settle()

    def settle(self) -> None:
        """Leave the live table as it is and go on below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def starting(self, rows: Sequence[tuple[str, str, bool]]) -> None:
        """(node, model, whether it is ready) of every node."""
        table = _table("node", "model", "state")
        for name, model, ready in rows:
            table.add_row(name, cell(model), "ready" if ready else "starting")
        self._show(table, f"{sum(ready for _, _, ready in rows)} of {len(rows)} daemons are ready")

    def mesh(self, rows: Sequence[tuple[str, str, int, int]]) -> None:
        """(node, model, peers known, peers expected) of every node."""
        table = _table("node", "model", "peers it could ask")
        for name, model, known, expected in rows:
            table.add_row(name, cell(model), f"{known} of {expected}")
        self._show(
            table, f"mesh: {sum(1 for _, _, known, expected in rows if known >= expected)} of {len(rows)} nodes see all others"
        )

    def round(self, fields: Mapping[str, Any]) -> None:
        """A progress event."""
        counts = "  ".join(f"{mark} {fields.get(mark, 0)}/{fields.get('of', 0)}" for mark in _MARKS)
        table = _table("member", "model", "state", *_MARKS)
        for member in fields.get("members", ()):
            state = str(member.get("state"))
            marks = ["x" if state in _REACHED[mark] else "" for mark in _MARKS]
            table.add_row(self._name(member.get("peer_id")), cell(member.get("model")), cell(state), *marks)
        line = f"round, {cell(fields.get('phase'))}: {counts}"
        self._show(Group(Text(line), table), line)

    def ranking(self, shown: Mapping[str, Any]) -> None:
        """The round's outcome: answers, votes, pairwise wins, weights, winner and why."""
        self.settle()
        table = _table("rank", "answer", "votes", "vote weight", "pair wins", "score", "members")
        for row in shown.get("classes", ()):
            voters = [self._name(m["peer_id"]) for m in shown.get("members", ()) if m.get("class") == row["class"]]
            wins, weight, score = f"{row['pair_wins_milli'] / 10:.1f}%", f"{row['vote_weight']:.2f}", f"{row['score']:+.2f}"
            table.add_row(str(row["rank"]), cell(row["answer"]), str(row["votes"]), weight, wins, score, ", ".join(voters))
        self._console.print(table)
        for sentence in shown.get("why", ()):
            self.say(f"  - {self._named(cell(sentence))}")

    def _name(self, peer_id: object) -> str:
        return self._names.get(str(peer_id), short(cell(peer_id)))

    def _named(self, sentence: str) -> str:
        for peer_id, name in self._names.items():
            sentence = sentence.replace(short(peer_id), name)
        return sentence

    def _show(self, picture: RenderableType, line: str) -> None:
        if self._console.is_terminal and not self._console.quiet:
            if self._live is None:
                self._live = Live(console=self._console, auto_refresh=False)
                self._live.start()
            self._live.update(picture, refresh=True)
        elif line != self._last:
            self.say(line)
        self._last = line


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
