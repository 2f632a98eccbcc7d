"""The analysis as it was fixed in `bench/zoo.toml` before any test question was put to a model: read, checked, hashed."""

import hashlib
import tomllib
from pathlib import Path

import msgspec

FILE = Path(__file__).resolve().parents[1] / "zoo.toml"


class Questions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: int
    gold_per_skill: int
    fewer_gold: tuple[int, ...]
    test: int


class Attacks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    liars: tuple[int, ...]
    kinds: tuple[str, ...]


class Statistics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seed: int
    resamples: int


class Targets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In points, hundredths of an accuracy; a share of calls in percent."""

    over_majority: float
    calls_saved: float
    savings_cost: float
    least_test: int
    least_runs: int


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields of the file; `rules` says in words what they cannot."""

    runs: tuple[int, ...]
    questions: Questions
    early_exit_margins: tuple[int, ...]
    attacks: Attacks
    statistics: Statistics
    targets: Targets
    rules: str


def read_plan(path: Path = FILE) -> tuple[Plan, str]:
    """The plan and the SHA-256 of its file."""
    raw = path.read_bytes()
    return msgspec.convert(tomllib.loads(raw.decode()), Plan), hashlib.sha256(raw).hexdigest()
