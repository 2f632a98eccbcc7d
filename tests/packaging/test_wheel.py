"""The wheel: its content, and that it lives beside a package that owns one of our folder names."""

import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]
UNDER_APP = ("protocol", "nat", "dht", "crdt_store", "daemon", "models")

pytestmark = [pytest.mark.slow, pytest.mark.live]


def call(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python_daemon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("python-daemon")
    options = ["-q", "--no-deps", "--retries", "1", "--timeout", "5", "-d", str(out)]
    command = [sys.executable, "-m", "pip", "download", *options, "python-daemon"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip("python-daemon cannot be downloaded here: " + done.stderr.strip().splitlines()[-1][:200])
    (downloaded,) = out.glob("*.whl")
    return downloaded


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path, python_daemon: Path) -> Path:
    """A fresh virtual environment with python-daemon and our wheel; our dependencies come from the running one."""
    folder = tmp_path_factory.mktemp("venv")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    for package in (python_daemon, wheel):
        pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
        call(*pip, "install", "-q", "--no-deps", "--no-index", package, cwd=folder)
    # A folder named in a .pth file is searched, but its own .pth files are not read: our editable install stays out.
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder


def test_the_wheel_holds_the_files_of_the_tree_and_no_others(wheel: Path) -> None:
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"], capture_output=True, text=True
    )
    if listing.returncode:
        pytest.skip("this is no git checkout, so nothing says which files belong to it")
    expected = set()
    for name in filter(None, listing.stdout.split("\0")):
        top = name.partition("/")[0]
        if name.startswith("models/recipe/") or not (ROOT / name).exists():
            continue
        if top in UNDER_APP and "/" in name:
            expected.add(f"swarmd/_app/{name}")
        elif top == "swarmd":
            expected.add(name)
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "swarmd/_app/daemon/cli/__init__.py" in held


def test_the_wheel_names_nothing_but_swarmd_at_top_level(wheel: Path) -> None:
    assert {name.partition("/")[0].partition("-")[0] for name in zipfile.ZipFile(wheel).namelist()} == {"swarmd"}


def test_installed_beside_python_daemon_both_work(environment: Path) -> None:
    python, swarmd = environment / "bin" / "python", environment / "bin" / "swarmd"
    assert call(swarmd, "version", cwd=environment).startswith("swarmd 0.")
    assert call(python, "-m", "swarmd", "version", cwd=environment).startswith("swarmd 0.")
    assert "engine.model" in call(swarmd, "config", "show", cwd=environment)
    program = "import swarmd, daemon; print(swarmd.Client.__name__, daemon.DaemonContext.__name__, daemon.__file__)"
    imported = call(python, "-c", program, cwd=environment)
    assert imported.startswith("Client DaemonContext ")
    assert "_app" not in imported


def test_the_installed_daemon_is_the_wheels_own(environment: Path) -> None:
    program = """
import sys
import swarmd.__main__ as launcher
sys.argv = ["swarmd", "--help"]
try:
    launcher.main()
finally:
    print(sys.modules["daemon"].__file__)
"""
    printed = call(environment / "bin" / "python", "-c", program, cwd=environment)
    assert "swarmd/_app/daemon/__init__.py" in printed


def test_an_editable_install_points_at_the_tree(tmp_path: Path) -> None:
    program = f"import hatchling.build as b; print(b.build_editable({str(tmp_path)!r}))"
    call(sys.executable, "-c", program, cwd=ROOT)
    (built,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(built)
    names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert names == ["_swarmd.pth"]
    assert archive.read("_swarmd.pth").decode().strip() == str(ROOT)


def test_the_installed_daemon_serves_a_shipped_model(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "PYTHONPATH", "SWARMD_SOCKET", "SWARMD_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    # Not below the environment: a socket's path may have 107 bytes only.
    with TemporaryDirectory(prefix="swarmd-test-") as folder:
        home = Path(folder)
        monkeypatch.setenv("HOME", folder)
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        swarmd = environment / "bin" / "swarmd"
        options = ("--listen", "/ip4/127.0.0.1/tcp/0", "--api", "", "--set", "engine.threads=1")
        call(swarmd, "start", "--detach", "--model", "tiny-add-mod", *options, cwd=home)
        try:
            assert call(swarmd, "ask", "add 47 38", cwd=home).strip().isdigit()
            assert call(swarmd, "status", cwd=home).startswith("state")
        finally:
            call(swarmd, "stop", cwd=home)
