"""A home of its own for every test of the configuration."""

from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.config import Loaded, load

Load = Callable[..., Loaded]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load_toml(home: Path) -> Load:
    """Load the configuration of this TOML text, with these flags and this environment alone."""

    def load_it(toml: str | bytes = "", flags: dict[str, object] | None = None, **environ: str) -> Loaded:
        path = home / "swarmd.toml"
        path.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        path.chmod(0o600)
        return load(flags or {}, path, environ)

    return load_it
