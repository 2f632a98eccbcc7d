"""The shape of the tree: sizes, docstrings, names, and what pure modules may use. Drift shows here first."""

import ast
import configparser
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("protocol", "nat", "dht", "crdt_store", "daemon", "swarmd")
PURE = ("protocol", "nat", "dht", "crdt_store")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 70

# Each with its reason in docs/decisions.md.
LONGER: frozenset[str] = frozenset()

MODULES = sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


TREES = {module: ast.parse((ROOT / module).read_text(encoding="utf-8"), module) for module in MODULES}


def nodes(*kinds: type[Any]) -> Iterator[tuple[str, Any]]:
    """Every node of these kinds, with its module."""
    for module, tree in TREES.items():
        yield from ((module, node) for node in ast.walk(tree) if isinstance(node, kinds))


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 50


def test_modules_are_short_and_say_what_they_decide() -> None:
    faults = []
    for module in MODULES:
        lines = (ROOT / module).read_text(encoding="utf-8").count("\n")
        if lines > MAX_MODULE_LINES and module not in LONGER:
            faults.append(f"{module} has {lines} lines")
        if not ast.get_docstring(TREES[module]):
            faults.append(f"{module} does not say what it decides")
    assert faults == []


def test_functions_are_short() -> None:
    faults = []
    for module, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            faults.append(f"{module}:{node.lineno} {node.name} has {length} lines")
    assert faults == []


def test_names_say_what_a_thing_is() -> None:
    vague = re.compile(r"(Manager|Helper|Util|Utils|Misc|Abstract\w*)$")
    assert [f"{module}:{node.lineno} {node.name}" for module, node in nodes(ast.ClassDef) if vague.search(node.name)] == []
    assert [module for module in MODULES if re.search(r"(^|_)(utils?|helpers?|misc)\.py$", Path(module).name)] == []


def test_pure_modules_take_their_rng_as_an_argument() -> None:
    faults = []
    for module, node in nodes(ast.Import, ast.ImportFrom, ast.Call):
        if module.partition("/")[0] not in PURE:
            continue
        match node:
            case ast.Import(names=names):
                wrong = any(alias.name.partition(".")[0] == "random" for alias in names)
            case ast.ImportFrom(module="random", names=names):
                wrong = [alias.name for alias in names] != ["Random"]
            case ast.Call(func=ast.Name(id="Random"), args=arguments):
                wrong = not arguments  # without a seed it asks the system for one
            case _:
                wrong = False
        if wrong:
            faults.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    assert faults == []


def test_nothing_dangerous_is_used() -> None:
    faults = []
    for module, node in nodes(ast.Import, ast.ImportFrom, ast.Call):
        match node:
            case ast.Import(names=names):
                wrong = any(alias.name in ("pickle", "marshal", "shelve") for alias in names)
            case ast.ImportFrom(module=source):
                wrong = source in ("pickle", "marshal", "shelve")
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                wrong = True
            case ast.Call(keywords=keywords):
                wrong = any(keyword.arg == "shell" for keyword in keywords)
            case _:
                wrong = False
        if wrong:
            faults.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    assert faults == []


def test_every_import_contract_has_its_reason() -> None:
    lines = (ROOT / ".importlinter").read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("[importlinter:contract:"):
            assert before.startswith("# "), f"{line} has no reason above it"
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    assert {name.rpartition(":")[2] for name in contracts.sections()} >= {"layers", "client", "libp2p", "sqlite", "pure"}


def test_test_files_need_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_shell_scripts_stop_at_the_first_failure() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "set -eu" in script.read_text()
