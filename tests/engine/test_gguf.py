"""What is said of a model file before an engine sees it."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.engine.gguf import model_name, read_head
from daemon.engine.interface import EngineError
from protocol.wire.ids import is_model_name


def test_head_of_a_real_file(tiny_model: Path) -> None:
    head = read_head(tiny_model)
    assert (head.name, head.architecture, head.quantization, head.context_tokens) == ("tests/random-llama", "llama", "F16", 8192)


def bad(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a GGUF file"),
        (b"GG", "not a GGUF file"),
        (b"PK\x03\x04" * 100, "not a GGUF file"),
        (b"GGUF", "truncated"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 1, 1), "version 1"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 1, 1), "damaged"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 0), "no weights"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 1), "damaged"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 2**40), "damaged"),
        (struct.pack("<4sIQQQ", b"GGUF", 3, 1, 1, 2**50), "damaged"),
        (struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 1, 1, b"a", 99), "damaged"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 1, 1, 1, b"a", 9, 9, 2), "damaged"),
        (struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 1, 1, 1, b"a", 9, 0, 2**23), "truncated"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(EngineError, match=said) as refused:
        read_head(bad(tmp_path, content))
    assert "bad.gguf" in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("share", [0.999, 0.9, 0.5, 0.1, 0.03])
def test_truncated_files(tmp_path: Path, tiny_model: Path, share: float) -> None:
    whole = tiny_model.read_bytes()
    with pytest.raises(EngineError, match="truncated"):
        read_head(bad(tmp_path, whole[: int(len(whole) * share)]))


def test_things_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name, said in (("absent.gguf", "no model file"), (".", "directory"), ("pipe.gguf", "not a regular file")):
        with pytest.raises(EngineError, match=said):
            read_head(tmp_path / name)


@settings(max_examples=300)
@given(place=st.integers(0, 6000), value=st.integers(0, 255))
def test_a_damaged_head_is_read_or_refused(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, place: int, value: int
) -> None:

    raw = bytearray(tiny_model.read_bytes())
    raw[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(raw)
    try:
        head = read_head(path)
    except EngineError:
        return
    assert is_model_name(head.name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen3 0.6B Instruct", "Qwen3-0.6B-Instruct"),
        ("owner/model", "owner/model"),
        ("/etc/passwd", "etc/passwd"),
        ("a/b/c", "b/c"),
        ("--trust-remote-code", "trust-remote-code"),
        ("../../x", "x"),
        ("a..b", "a.b"),
        ("Ünïcode 模型", "n-code"),
        ("模型", "fallback"),
        ("", "fallback"),
        ("x" * 500, "x" * 96),
    ],
)
def test_names_are_made_well_formed(text: str, name: str) -> None:
    assert model_name(text, "fallback") == name


@given(st.text())
def test_no_text_makes_a_malformed_name(text: str) -> None:
    assert is_model_name(model_name(text))
