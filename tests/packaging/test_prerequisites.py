"""What a machine is told that lacks something, before an installation fails on it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = """#!/bin/sh
source=$(cat)
case "$source" in {missing}) exit 1 ;; esac
"""

Check = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Run the script on a machine with these programs alone; `lacks` are headers that the compiler does not find."""

    def run(lacks: str | None, python: str = sys.executable) -> "subprocess.CompletedProcess[str]":
        programs = tmp_path / "bin"
        programs.mkdir()
        for name in ("sh", "cat", "find", "head"):
            (programs / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        if lacks is not None:
            compiler = programs / "cc"
            compiler.write_text(COMPILER.format(missing=lacks))
            compiler.chmod(0o700)
        command = ["/bin/sh", str(ROOT / "deploy" / "prerequisites.sh")]
        return subprocess.run(command, env={"PATH": str(programs), "PYTHON": python}, capture_output=True, text=True, timeout=30)

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lacks", "packages"),
    [
        ('"#include <gmp.h>"*', "apt install libgmp-dev"),
        ('"#include <Python.h>"*', "apt install python3-dev"),
        ('"#include <gmp.h>"*|"#include <Python.h>"*', "apt install python3-dev libgmp-dev"),
        ('"#include"*', "apt install build-essential"),
        (None, "apt install build-essential"),
    ],
)
def test_a_missing_package_is_named(check: Check, lacks: str | None, packages: str) -> None:
    result = check(lacks)
    assert (result.returncode, result.stdout) == (1, "")
    assert packages in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_complete_machine_is_told_nothing(check: Check) -> None:
    result = check("nothing")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_without_python_it_says_so(check: Check) -> None:
    result = check("nothing", python="/nonexistent/python3.11")
    assert result.returncode == 1
    assert "Python 3.11 or later is missing" in result.stderr


def test_an_old_python_is_refused(check: Check, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    old.chmod(0o700)
    result = check("nothing", python=str(old))
    assert result.returncode == 1
    assert "Python 3.9.2 is too old; swarmd needs Python 3.11 or later" in result.stderr


def test_the_lock_names_every_dependency() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#"))
    for text in (*project["dependencies"], *project["optional-dependencies"]["dev"]):
        requirement = Requirement(text)
        version = locked[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), f"{requirement.name} {version} is locked, {text} is asked for"


def test_the_unit_and_the_images_start_what_is_there() -> None:
    unit = (ROOT / "deploy" / "swarmd.service").read_text()
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    for variable in ("SWARMD_DATA_DIR=/var/lib/swarmd", "SWARMD_RUNTIME_DIR=/run/swarmd", "SWARMD_LOG_FORMAT=json"):
        assert variable in unit
        assert variable in dockerfile
    lines = [line.split() for line in dockerfile.splitlines() if line.startswith("COPY ") and "--from" not in line]
    copied = {line[1] for line in lines if line[1] == line[2]}
    assert copied == {"protocol", "nat", "dht", "crdt_store", "daemon", "swarmd", "models"}
    assert all((ROOT / name).exists() for name in copied)
    assert "USER swarmd" in dockerfile


@pytest.mark.skipif(not os.path.exists("/usr/bin/systemd-analyze"), reason="systemd is not on this machine")
@pytest.mark.slow
def test_the_unit_is_hardened() -> None:
    options = ["--offline=true", "--no-pager", "--threshold=20"]
    command = ["systemd-analyze", "security", *options, str(ROOT / "deploy" / "swarmd.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a unit that is not installed (systemd before 250)")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr
