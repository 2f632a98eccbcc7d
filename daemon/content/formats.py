"""Whether a file is a model in a format that holds data alone. Decides what may be shared and kept; loads and runs nothing.

GGUF, and safetensors (github.com/huggingface/safetensors, README: 8 bytes of header length, little endian, a JSON header, then
the tensors). Formats that can carry code, such as pickles, are refused.
"""

from pathlib import Path

import msgspec

from daemon.engine.gguf import read_head
from daemon.engine.interface import EngineError

_MAX_HEADER_BYTES = 100 << 20
"""As the format's own library allows."""

_NAME_BYTES = 8


class FormatError(Exception):
    """The file is no model that may be shared. The message is one sentence."""


class _Tensor(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def model_suffix(path: Path) -> str:
    """".gguf" or ".safetensors", by what the file holds, whatever it is called; raises FormatError."""
    try:
        with path.open("rb") as file:
            beginning = file.read(_NAME_BYTES + 1)
    except OSError as error:
        raise FormatError(f"{path.name} cannot be read: {error.strerror}") from None
    if beginning.startswith(b"GGUF"):
        try:
            read_head(path)
        except EngineError as error:
            raise FormatError(str(error)) from None
        return ".gguf"
    if beginning[_NAME_BYTES:] == b"{":
        _check_safetensors(path)
        return ".safetensors"
    raise FormatError(f"{path.name} is neither a GGUF nor a safetensors file; only models are shared")


def _check_safetensors(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_NAME_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            raise FormatError(f"{path.name} is no safetensors file: its header claims {length} bytes")
        header = file.read(length)
    room = path.stat().st_size - _NAME_BYTES - length
    try:
        tensors = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        tensors.pop("__metadata__", None)
        ends = [msgspec.json.decode(tensor, type=_Tensor).data_offsets[1] for tensor in tensors.values()]
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise FormatError(f"{path.name} has a damaged safetensors header") from None
    if len(header) < length or max(ends, default=0) > room:
        raise FormatError(f"{path.name} is truncated: its end is missing")
    if not ends:
        raise FormatError(f"{path.name} holds no weights")
