"""What the quick commands do not import: trio and libp2p take a second, and a person waits."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def imported(program: str, *arguments: str) -> set[str]:
    """The top-level modules after `program` ran in a fresh interpreter."""
    report = "import atexit, sys; atexit.register(lambda: print(*sorted(sys.modules), file=open(3, 'w')))\n"
    wrapper = f"import os, sys\nos.dup2(1, 3)\nos.dup2(os.open(os.devnull, 1), 1)\nexec({report + program!r})"
    command = [sys.executable, "-c", wrapper, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env={"PATH": "", "HOME": "/nonexistent"})
    assert done.stdout, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], ["status"], ["peers", "--json"], ["config", "show"], ["version"], ["start", "--help"]]
)
def test_quick_commands_import_no_network(arguments: list[str]) -> None:
    modules = imported("from swarmd.__main__ import main\nmain()", *arguments)
    assert "daemon.cli" in modules
    assert not {"trio", "libp2p", "multiaddr", "httpx2", "starlette", "cryptography"} & modules


def test_the_client_library_needs_the_standard_library_alone() -> None:
    modules = imported("import swarmd")
    ours = {name for name in modules if name.partition(".")[0] in ("swarmd", "daemon", "protocol", "nat", "dht", "crdt_store")}
    assert ours == {"swarmd", "swarmd.client", "swarmd.places"}
    known = {*sys.stdlib_module_names, "swarmd", "__main__", "sitecustomize"}
    assert not {top for name in modules if (top := name.partition(".")[0]) not in known and not top.startswith("_")}


def test_an_interrupt_while_modules_load_is_no_traceback() -> None:
    program = """
import signal, sys
import swarmd.__main__ as launcher

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "daemon.cli":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background does not inherit
sys.meta_path.insert(0, Interrupting())
launcher.main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")
