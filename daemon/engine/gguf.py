"""Reads the head of a GGUF file to say, before an engine is started, whether it can be a model and what it is called.

Format: github.com/ggml-org/ggml, docs/gguf.md. Must not read weights.
"""

import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from daemon.engine.interface import EngineError
from protocol.wire.ids import is_model_name
from protocol.wire.limits import MAX_NAME_CHARS

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_ENTRIES = 1 << 16
_MAX_TEXT = 16 << 20
_MAX_LIST = 1 << 24

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}

# Values per block and bytes per block of each tensor type; of a type not listed only the beginning is checked.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2),
}  # fmt: skip

# llama.cpp's file types (enum llama_ftype), by the names people use.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 32: "BF16",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufHead:
    """What a file says of itself."""

    name: str
    """`general.name`, else the file's stem, made a well-formed model name."""
    architecture: str
    quantization: str
    context_tokens: int
    """The context it was trained for; 0 where it does not say."""


def read_head(path: Path) -> GgufHead:
    """Raises EngineError, in one sentence that names the file but not its folder, for anything that no engine could load."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise EngineError(f"the model {path.name} is a directory where a GGUF file is needed")
        if not stat.S_ISREG(mode):
            raise EngineError(f"the model {path.name} is not a regular file")
        with path.open("rb") as file:
            return _Reader(file, path, path.stat().st_size).head()
    except FileNotFoundError:
        raise EngineError(f"there is no model file {path.name}") from None
    except OSError as error:
        raise EngineError(f"the model file {path.name} cannot be read: {error.strerror}") from None


def model_name(text: str, fallback: str = "model") -> str:
    """`text` with everything a model's name may not hold replaced by "-"; `fallback` where nothing is left."""
    parts = [re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", part)).strip(".-_")[:96] for part in text.split("/")]
    name = "/".join(part for part in parts[-2:] if part)[:MAX_NAME_CHARS]
    return name if is_model_name(name) else fallback


class _Reader:
    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self._file = file
        self._path = path
        self._size = size

    def head(self) -> GgufHead:
        if self._file.read(4) != _MAGIC:
            raise EngineError(f"the model {self._path.name} is not a GGUF file")
        version, tensors, entries = self._number("<I"), self._count("<Q", _MAX_ENTRIES), self._count("<Q", _MAX_ENTRIES)
        if version not in _VERSIONS:
            raise EngineError(f"the model {self._path.name} is GGUF version {version}, where 2 and 3 are known")
        values = dict(self._entry() for _ in range(entries))
        self._check_tensors(tensors, values.get("general.alignment", 32))
        architecture = str(values.get("general.architecture", ""))
        context = values.get(f"{architecture}.context_length", 0)
        return GgufHead(
            name=model_name(str(values.get("general.name", "")), model_name(self._path.stem)),
            architecture=architecture,
            quantization=_FILE_TYPES.get(_integer(values.get("general.file_type")), "unknown"),
            context_tokens=max(0, _integer(context)),
        )

    def _check_tensors(self, count: int, alignment: object) -> None:
        if count == 0:
            raise EngineError(f"the model {self._path.name} holds no weights")
        end = 0
        for _ in range(count):
            self._text()
            sizes = [self._number("<Q") for _ in range(self._count("<I", 8))]
            kind, offset = self._number("<I"), self._number("<Q")
            values = 1
            for size in sizes:
                values *= size
            per_block, block_bytes = _BLOCKS.get(kind, (max(values, 1), 1))
            end = max(end, offset + -(-values // per_block) * block_bytes)
        step = max(1, _integer(alignment))
        if -(-self._file.tell() // step) * step + end > self._size:
            raise self._truncated()

    def _entry(self) -> tuple[str, object]:
        key = self._text()
        return key, self._value(self._number("<I"))

    def _value(self, kind: int) -> object:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._scalar(kind)
        inner, count = self._number("<I"), self._count("<Q", _MAX_LIST)
        if inner == _STRING:
            for _ in range(count):
                self._skip(self._count("<Q", _MAX_TEXT))
        elif inner in _SCALARS:
            self._skip(count * struct.calcsize(_SCALARS[inner]))
        else:
            raise self._damaged()
        return None

    def _scalar(self, kind: int) -> object:
        if kind not in _SCALARS:
            raise self._damaged()
        code = _SCALARS[kind]
        return struct.unpack(code, self._bytes(struct.calcsize(code)))[0]

    def _number(self, code: str) -> int:
        return int(struct.unpack(code, self._bytes(struct.calcsize(code)))[0])

    def _count(self, code: str, limit: int) -> int:
        count = self._number(code)
        if count > limit:
            raise self._damaged()
        return count

    def _text(self) -> str:
        return self._bytes(self._count("<Q", _MAX_TEXT)).decode(errors="replace")

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise self._truncated()
        self._file.seek(count, 1)

    def _bytes(self, count: int) -> bytes:
        raw = self._file.read(count)
        if len(raw) < count:
            raise self._truncated()
        return raw

    def _truncated(self) -> EngineError:
        return EngineError(f"the model {self._path.name} is truncated: its end is missing")

    def _damaged(self) -> EngineError:
        return EngineError(f"the model {self._path.name} has a damaged GGUF head")


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0
