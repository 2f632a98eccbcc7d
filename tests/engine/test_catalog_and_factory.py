"""The shipped models and the building of engines from configuration."""

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from daemon.engine import catalog
from daemon.engine.catalog import DEFAULT_MODEL, models_folder, shipped_model, shipped_models, verified_file
from daemon.engine.factory import EngineSpec, build_engine
from daemon.engine.http_engine import HttpEngine
from daemon.engine.interface import EngineError

RNG = Random(1)


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    """A catalog of one model."""
    raw = tiny_model.read_bytes()
    (tmp_path / "tiny-all.gguf").write_bytes(raw)
    write(tmp_path, sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))
    return tmp_path


def write(folder: Path, **change: Any) -> None:
    entry = {"name": "tiny-all", "file": "tiny-all.gguf", "sha256": "0" * 64, "bytes": 1, "judge_prompt": "compact"}
    (folder / "catalog.json").write_text(json.dumps([entry | {"context_tokens": 128, "skills": ["add"], "extra": 1} | change]))


async def test_a_shipped_model_is_found_and_verified(folder: Path) -> None:
    model = shipped_model(folder=folder)
    assert (model.name, model.judge_prompt, model.skills) == (DEFAULT_MODEL, "compact", ("add",))
    assert verified_file(model, folder) == folder / "tiny-all.gguf"
    with pytest.raises(EngineError, match="there are: tiny-all"):
        shipped_model("tiny-none", folder)


async def test_a_file_that_was_changed_is_not_the_shipped_one(folder: Path) -> None:
    model = shipped_model(folder=folder)
    path = folder / "tiny-all.gguf"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EngineError, match="not the one that was shipped"):
        verified_file(model, folder)
    path.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        verified_file(model, folder)


@pytest.mark.parametrize(
    "change", [{"file": "../x"}, {"file": "a/b"}, {"file": "/x"}, {"name": "-x"}, {"bytes": 0}, {"sha256": "x"}]
)
def test_a_damaged_catalog(folder: Path, change: dict[str, Any]) -> None:
    write(folder, **change)
    with pytest.raises(EngineError, match="catalog"):
        shipped_models(folder)


def test_no_catalog(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="catalog"):
        shipped_models(tmp_path)


def test_each_kind_is_built(folder: Path, tiny_model: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "models_folder", lambda: folder)
    assert build_engine(EngineSpec("none"), run_folder, RNG) is None
    for spec in (
        EngineSpec(),
        EngineSpec("embedded", "tiny-all"),
        EngineSpec("embedded", str(tiny_model)),
        EngineSpec("url", url="http://127.0.0.1:9/v1"),
        EngineSpec("vllm", "owner/model", executable=Path("/bin/sh")),
    ):
        assert isinstance(build_engine(spec, run_folder, RNG), HttpEngine)
    for spec in (
        EngineSpec("embedded", "tiny-none"),
        EngineSpec("embedded", "absent.gguf"),
        EngineSpec("embedded", judge_prompt="x"),
        EngineSpec("url"),
        EngineSpec("vllm"),
    ):
        with pytest.raises(EngineError):
            build_engine(spec, run_folder, RNG)
    (folder / "tiny-all.gguf").write_bytes(b"GGUF and something else")
    with pytest.raises(EngineError, match="not the one that was shipped"):
        build_engine(EngineSpec(), run_folder, RNG)


async def test_the_models_that_are_really_shipped() -> None:
    if not (models_folder() / "catalog.json").exists():
        pytest.skip("the models have not been trained in this tree (make models)")
    listed = shipped_models()
    assert DEFAULT_MODEL in [model.name for model in listed]
    for model in listed:
        assert verified_file(model) == models_folder() / model.file
