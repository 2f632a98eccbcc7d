"""How results are printed: JSON, tables, and text that strangers wrote. Data goes to standard output; decides nothing."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

MAX_CELL_CHARS = 256

# ECMA-48 control sequences (CSI, OSC up to its terminator, and two-character escapes).
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -~]?)")
# C0, DEL, C1, line separators, and the marks that reorder or hide text (Unicode bidi controls, zero widths, BOM).
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def cell(value: object) -> str:
    """`value` as one short line that cannot move the cursor, change colours, or pretend to be something else."""
    if value is None or value == "":
        return "-"
    text = _HIDDEN.sub(" ", _ESCAPES.sub("", str(value)))
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"


def prose(text: str) -> str:
    """An answer as it may be printed: lines and tabs stay, everything that could steer a terminal goes."""
    return "".join(c if c in "\n\t" else "" if _HIDDEN.match(c) and c not in "\u200c\u200d" else c for c in text)


def milli(value: object) -> str:
    """An integer of thousandths as a decimal."""
    return f"{value / 1000:.3f}" if isinstance(value, int) else "-"


def number(value: object, unit: str = "", digits: int = 0) -> str:
    """A number with its unit, or "-" where the daemon does not know it."""
    return f"{value:.{digits}f}{unit}" if isinstance(value, int | float) else "-"


def ago(seconds: object) -> str:
    """A duration, coarsely."""
    if not isinstance(seconds, int | float):
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def print_json(value: Any) -> None:
    """Print one JSON document, all ASCII, so that no byte of a stranger reaches the terminal."""
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], err: bool = False) -> None:
    """Print a table; every cell is made harmless here."""
    from rich.console import Console  # 80 ms, of use to the human form alone
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if err else sys.stdout
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row))
    # A pipe has no width to fit, and a folded peer id cannot be searched for.
    Console(file=stream, width=None if stream.isatty() else 240, highlight=False).print(table)


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print name and value pairs, one a line."""
    pairs = [(name, cell(value)) for name, value in facts]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        click.echo(f"{name:<{width}}  {value}")
