"""The laboratory's commands where no laboratory can run: each says so in one line and ends with 1, by --skip with 0."""

import importlib
import sys

import pytest

from tests.natlab import commands

COMMANDS = ("__main__", "beside", "netcheck", "scenarios")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("arguments", "status"), [([], 1), (["--skip"], 0)])
def test_what_is_missing_is_said(monkeypatch, capsys, name, arguments, status):
    monkeypatch.setattr(commands, "what_is_missing", lambda: "network namespaces need root")
    monkeypatch.setattr(sys, "argv", ["natlab", *arguments])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tests.natlab.{name}").main()
    assert ended.value.code == status
    assert capsys.readouterr() == ("", "natlab is skipped: network namespaces need root\n")
