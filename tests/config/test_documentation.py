"""Every setting says what it trades, and docs/configuration.md says the same. `REWRITE=1 pytest tests/config` writes it anew."""

import ast
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

from daemon.config import fields
from daemon.config.layers import settings

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

FOLDERS = {"data_dir": "~/.local/share/swarmd", "runtime_dir": "$XDG_RUNTIME_DIR/swarmd"}
HEAD = """# Configuration

Command line over environment over file over default. `swarmd config show --origin` says what holds and where it came from,
`swarmd config validate` what is wrong. The file is `~/.config/swarmd/config.toml`, or what `--config` or `SWARMD_CONFIG` names.
Every setting can also be a variable (`engine.model` is `SWARMD_ENGINE_MODEL`; lists are separated by commas) or an option
(`swarmd start --set engine.threads=2`). Keys and tokens stand in files of their own, never here. `SWARMD_SOCKET`, no
setting, names the socket of the daemon that the other commands and `swarmd.Client()` mean.

`--mesh NAME` (or `SWARMD_MESH`) means the daemon of that name, for a box that is in several meshes: its data folder is
`~/.local/share/swarmd/meshes/NAME`, its file `~/.config/swarmd/meshes/NAME.toml` and not the usual one, it listens on a port from
20000 to 29999 that follows from the name, and its OpenAI endpoint takes a free port.

```toml
join = ["/ip4/192.0.2.7/tcp/4711/p2p/12D3KooW..."]

[engine]
model = "/srv/models/some.gguf"
```

<!-- The tables are written from daemon/config/fields.py by REWRITE=1 pytest tests/config -->
"""


def documented(section: ast.ClassDef, defaults: object) -> Iterator[tuple[str, str, str]]:
    """(name, default, text) of each setting in a section."""
    for line, text in zip(section.body, [*section.body[1:], ast.Pass()], strict=True):
        if not isinstance(line, ast.AnnAssign) or "Config" in ast.unparse(line.annotation):
            continue
        assert isinstance(line.target, ast.Name)
        assert isinstance(text, ast.Expr), f"{section.name}.{line.target.id} is not documented"
        assert isinstance(text.value, ast.Constant)
        name = line.target.id
        yield name, FOLDERS.get(name) or shown(getattr(defaults, name)), str(text.value.value).replace("|", "\\|")


def shown(default: object) -> str:
    if isinstance(default, tuple):
        return "[" + ", ".join(f'"{item}"' for item in default) + "]"
    return f'"{default}"' if isinstance(default, str) else str(default).lower()


def page() -> tuple[str, set[str]]:
    text, names = [HEAD], set()
    config = fields.Config(data_dir=Path(), runtime_dir=Path())
    classes = {node.name: node for node in ast.parse(inspect.getsource(fields)).body if isinstance(node, ast.ClassDef)}
    sections = ("api", "engine", "relay", "nat", "lan", "round", "limits", "patience", "content", "probe", "verify", "log")
    for section in (None, *sections):
        shape = classes[f"{(section or '').capitalize()}Config"]
        rows = []
        for name, default, meaning in documented(shape, getattr(config, section) if section else config):
            full = f"{section}.{name}" if section else name
            names.add(full)
            rows.append(f"| `{full}` | `{default}` | {meaning} |")
        about = f"## [{section}]\n{ast.get_docstring(shape)}\n" if section else "## Top level\n"
        text.append(f"{about}\n| setting | default | what it does |\n|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(text), names


def test_the_page_says_what_the_code_says() -> None:
    text, names = page()
    assert names == set(settings())
    if "REWRITE" in os.environ:
        PAGE.write_text(text)
    assert PAGE.read_text() == text
