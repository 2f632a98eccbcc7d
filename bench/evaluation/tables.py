"""Tables as the evaluations take them: CSV, gzipped or not, with the columns that are needed. Decides no figure."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_GZIP = b"\x1f\x8b"

Row = dict[str, str]


class BadTable(ValueError):
    """A file that no figure can come from; the message is one sentence that names it."""


def read(file: Path, needed: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[int, Row]]]:
    """The columns and, with the number of its line, each row; a cell that is missing at a row's end is "". Raises BadTable."""
    reader = csv.reader(io.StringIO(_text(file), newline=""))
    try:
        columns = tuple(name.strip() for name in next(reader, ()))
        _check(file, columns, needed)
        rows = []
        for cells in reader:
            if len(cells) > len(columns):
                raise BadTable(f"line {reader.line_num} of {file.name} has {len(cells)} cells where {len(columns)} are named")
            if cells:
                padded = [*map(str.strip, cells), *[""] * (len(columns) - len(cells))]
                rows.append((reader.line_num, dict(zip(columns, padded, strict=True))))
    except csv.Error as error:
        raise BadTable(f"line {reader.line_num} of {file.name} is not CSV: {error}") from None
    if not rows:
        raise BadTable(f"{file.name} has no rows below its columns")
    return columns, rows


def _text(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return (gzip.decompress(raw) if raw.startswith(_GZIP) else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error):
        raise BadTable(f"{file.name} is not whole: its gzip data end early or are damaged") from None
    except UnicodeDecodeError:
        raise BadTable(f"{file.name} is not UTF-8 text") from None


def _check(file: Path, columns: Sequence[str], needed: Sequence[str]) -> None:
    if not columns:
        raise BadTable(f"{file.name} is empty")
    lacking = [name for name in needed if name not in columns]
    if lacking:
        raise BadTable(f"{file.name} has no column {lacking[0]!r}; it needs {', '.join(needed)} and has {_listed(columns)}")
    twice = next((one for one, other in pairwise(sorted(columns)) if one == other), None)
    if twice is not None:
        raise BadTable(f"{file.name} has two columns {twice!r}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:40])
