"""What is printed of text that strangers wrote, and what happens when nobody reads our output."""

import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cli.show import MAX_CELL_CHARS, ago, cell, milli, number, prose

ROOT = Path(__file__).parents[2]


@given(st.text(max_size=400))
def test_a_cell_is_one_short_line_without_hidden_characters(text: str) -> None:
    shown = cell(text)
    assert 0 < len(shown) <= MAX_CELL_CHARS
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")]


@given(st.text(max_size=400))
def test_prose_keeps_lines_and_loses_controls(text: str) -> None:
    shown = prose(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs") and c not in "\n\t"]
    assert prose(shown) == shown
    assert shown.count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x9b31mred", " 31mred"),
        ("a\u202egnp.exe", "a gnp.exe"),
        ("a\r\nb\tc", "a  b c"),
        ("a\x00b", "a b"),
        (None, "-"),
        ("", "-"),
        (0, "0"),
        ("plain übel 字", "plain übel 字"),
    ],
)
def test_cells(text: object, shown: str) -> None:
    assert cell(text) == shown


def test_prose_lets_scripts_join_but_not_reorder() -> None:
    assert prose("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645") == "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert prose("a\u202eb\u2066c") == "abc"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (ago(0.4), "0s"), (ago(59), "59s"), (ago(60), "1m"), (ago(7200), "2h"), (ago(200000), "2d"), (ago(None), "-"),
        (ago(-3), "0s"),
        (milli(930), "0.930"), (milli(None), "-"), (number(1.26, " s", 1), "1.3 s"), (number("x"), "-"),
    ],
)  # fmt: skip
def test_numbers(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    program = "from swarmd.__main__ import main; main()"
    command = [sys.executable, "-c", program, "config", "show"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(10) == 1


def test_ctrl_c_exits_with_130(ask_daemon: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("swarmd.Client.status", interrupt)
    assert ask_daemon("status").code == 130
