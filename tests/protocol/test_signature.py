"""One Ed25519 verdict, whichever library computes the equation: mixed orders, edges of encodings, every row by both.

The vectors were computed by the curve's own arithmetic, written for that alone, and by no library.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.wire import signature
from protocol.wire.signature import by_openssl, by_sodium, verify

VECTORS = [json.loads(line) for line in (Path(__file__).parents[1] / "vectors" / "ed25519.jsonl").read_text().splitlines()]


def triple(row: dict[str, Any]) -> tuple[bytes, bytes, bytes]:
    return bytes.fromhex(row["key"]), bytes.fromhex(row["signature"]), bytes.fromhex(row["message"])


@pytest.mark.parametrize("equation", [by_sodium, by_openssl])
def test_every_vector_has_its_verdict_by_both_libraries(equation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "_equation", equation)
    wrong = [row["what"] for row in VECTORS if verify(*triple(row)) != row["verdict"]]
    assert not wrong


def test_the_vectors_tell_equations_apart() -> None:
    """Rows that an equation with a cofactor accepts, and rows that a subgroup check refuses, are among them."""
    mixed = [row for row in VECTORS if " T" in row["what"]]
    assert len(mixed) == 71
    assert {row["verdict"] for row in mixed if "cancelling" not in row["what"]} == {True, False}
    assert all(row["verdict"] for row in mixed if "cancelling" in row["what"])


def test_the_installed_libsodium_is_the_one_that_is_used() -> None:
    assert signature._without_cofactor()
    assert signature._equation is by_sodium
