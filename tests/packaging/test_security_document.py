"""docs/security.md names tests and commands that exist, and every attack of its table once."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=[f"{file}::{test}" for file, test in NAMED])
def test_a_named_test_exists(file: str, test: str) -> None:
    source = (ROOT / file).read_text(encoding="utf-8")
    assert not test or re.search(rf"^(async )?def {test}\b", source, re.MULTILINE)


def test_every_attack_has_its_row() -> None:
    tables = "\n".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| "))
    named = set(re.findall(r"\b([CNGDRL]\d+)\b", tables))
    last = {"C": 10, "N": 9, "G": 10, "D": 7, "R": 10, "L": 9}
    expected = {f"{letter}{number}" for letter in last for number in range(1, last[letter] + 1)}
    assert expected <= named


def test_named_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", TEXT)) <= targets
