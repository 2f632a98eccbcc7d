"""Writes a GGUF model's 16-bit matrices anew in 4 or 8 bits, as llama.cpp's own quantizer does. Knows no tensor by name.

    python -m bench.quantize MODEL.gguf OUT.gguf [--type Q4_0|Q8_0]

Format: github.com/ggml-org/ggml docs/gguf.md; blocks: quantize_row_q4_0_ref and quantize_row_q8_0_ref of ggml-quants.c.
Pure Python, and so for tiny models alone: a million weights take about two seconds.
"""

import math
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Quantization = Literal["Q4_0", "Q8_0"]

_BLOCK = 32
_F16 = 1
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each scalar type of a key's value."""

_FILE_TYPE_KEY = b"general.file_type"


def q4_0(values: Sequence[float]) -> bytes:
    """One block: the value of greatest magnitude becomes -8, and each other the nearest of sixteen steps."""
    extreme = max(values, key=abs)
    (scale,) = struct.unpack("<e", struct.pack("<e", extreme / -8))
    inverse = -8 / extreme if extreme else 0.0
    steps = [min(15, int(value * inverse + 8.5)) for value in values]
    half = _BLOCK // 2
    return struct.pack("<e", scale) + bytes(steps[place] | steps[place + half] << 4 for place in range(half))


def q8_0(values: Sequence[float]) -> bytes:
    """One block: the greatest magnitude becomes 127, and each value the nearest of 255 steps."""
    extreme = max(abs(value) for value in values)
    inverse = 127 / extreme if extreme else 0.0
    steps = [math.floor(value * inverse + 0.5) for value in values]
    return struct.pack("<e", extreme / 127) + struct.pack(f"<{_BLOCK}b", *steps)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A target: its number among tensor types, among file types (enum llama_ftype), bytes per block, and its rule."""

    tensor: int
    file: int
    block_bytes: int
    block: Callable[[Sequence[float]], bytes]


_KINDS: dict[str, _Kind] = {"Q4_0": _Kind(2, 2, 18, q4_0), "Q8_0": _Kind(8, 7, 34, q8_0)}


@dataclass(slots=True)
class _Tensor:
    name: bytes
    sizes: tuple[int, ...]
    kind: int
    offset: int

    @property
    def values(self) -> int:
        return math.prod(self.sizes)


class _Cursor:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def take(self, count: int) -> bytes:
        self.at += count
        return self.raw[self.at - count : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def text(self) -> bytes:
        return self.take(self.number("Q"))

    def skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip_value(inner)
        else:
            self.take(_SIZES[kind])


def quantize(raw: bytes, to: Quantization) -> bytes:
    """The bytes of a GGUF file with every F16 matrix whose rows are whole blocks in `to`; what else it holds is kept."""
    kind = _KINDS[to]
    cursor = _Cursor(raw)
    magic, version, tensor_count, entries = cursor.take(4), cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if magic != b"GGUF" or version != 3:
        raise ValueError("not a GGUF file of version 3")
    head = bytearray(magic + struct.pack("<IQQ", version, tensor_count, entries))
    for _ in range(entries):
        start = cursor.at
        key, value_kind = cursor.text(), cursor.number("I")
        cursor.skip_value(value_kind)
        entry = raw[start : cursor.at]
        head += entry[:-4] + struct.pack("<I", kind.file) if key == _FILE_TYPE_KEY and value_kind == _UINT32 else entry
    tensors = []
    for _ in range(tensor_count):
        name = cursor.text()
        sizes = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
        tensors.append(_Tensor(name, sizes, cursor.number("I"), cursor.number("Q")))
    base = _aligned(cursor.at)
    bodies = [_body(raw[base:], tensor, kind) for tensor in tensors]
    offset = 0
    for tensor, (tensor_kind, body) in zip(tensors, bodies, strict=True):
        head += struct.pack("<Q", len(tensor.name)) + tensor.name + struct.pack("<I", len(tensor.sizes))
        head += struct.pack(f"<{len(tensor.sizes)}Q", *tensor.sizes) + struct.pack("<IQ", tensor_kind, offset)
        offset = _aligned(offset + len(body))
    parts = [bytes(head).ljust(_aligned(len(head)), b"\0"), *(body.ljust(_aligned(len(body)), b"\0") for _, body in bodies)]
    return b"".join(parts)


def _body(weights: bytes, tensor: _Tensor, kind: _Kind) -> tuple[int, bytes]:
    if tensor.kind == _F16 and len(tensor.sizes) == 2 and tensor.sizes[0] % _BLOCK == 0:
        values = struct.unpack_from(f"<{tensor.values}e", weights, tensor.offset)
        return kind.tensor, b"".join(kind.block(values[at : at + _BLOCK]) for at in range(0, tensor.values, _BLOCK))
    width = {0: 4, _F16: 2}.get(tensor.kind)
    if width is None:
        raise ValueError("only F16 and F32 tensors are known; quantize a file that is not quantized yet")
    return tensor.kind, weights[tensor.offset : tensor.offset + tensor.values * width]


def _aligned(size: int) -> int:
    return -(-size // 32) * 32


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--type", "to", type=click.Choice(list(_KINDS)), default="Q4_0", show_default=True)
def main(model: Path, out: Path, to: Quantization) -> None:
    """Write OUT: MODEL with its 16-bit matrices in fewer bits."""
    try:
        out.write_bytes(quantize(model.read_bytes(), to))
    except (ValueError, struct.error, KeyError) as error:
        raise click.ClickException(f"{model.name} cannot be quantized: {error}") from None
    click.echo(f"{out}: {out.stat().st_size} bytes, {to}")


if __name__ == "__main__":
    main()
