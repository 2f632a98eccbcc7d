"""The catalog, the files and the cards say the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from models.recipe.skills import SKILLS

FOLDER = Path(__file__).parents[2] / "models"
CATALOG: list[dict[str, Any]] = json.loads((FOLDER / "catalog.json").read_text())
NAMES = {
    "tiny-add-mod", "tiny-rev-conv", "tiny-sort-bool", "tiny-add-rev", "tiny-mod-sort", "tiny-bool-conv", "tiny-all",
}  # fmt: skip
FIELDS = {"name", "file", "sha256", "bytes", "skills", "judge_prompt", "context_tokens", "parameters", "license"}

each_entry = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry["name"])


def test_the_catalog_lists_exactly_the_files() -> None:
    assert {entry["name"] for entry in CATALOG} == NAMES
    assert {entry["file"] for entry in CATALOG} == {path.name for path in FOLDER.glob("*.gguf")}
    assert len({entry["sha256"] for entry in CATALOG}) == len(CATALOG)


@each_entry
def test_the_file_is_the_one_described(entry: dict[str, Any]) -> None:
    content = (FOLDER / entry["file"]).read_bytes()
    assert content.startswith(b"GGUF")
    assert len(content) == entry["bytes"]
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]


@each_entry
def test_the_entry_is_complete(entry: dict[str, Any]) -> None:
    assert entry.keys() == FIELDS
    assert entry["file"] == f"{entry['name']}.gguf"
    assert entry["skills"]
    assert set(entry["skills"]) <= set(SKILLS)
    assert (entry["judge_prompt"], entry["context_tokens"], entry["license"]) == ("compact", 128, "Apache-2.0")
    assert 800_000 < entry["parameters"] < 900_000


@each_entry
def test_the_card_names_the_file(entry: dict[str, Any]) -> None:
    card = (FOLDER / f"{entry['name']}.md").read_text()
    assert entry["sha256"] in card
    assert entry["file"] in card
