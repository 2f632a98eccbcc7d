"""Decides the shape of the models: a small Llama in plain torch, with like matrices stacked for a batched optimiser.

It must compute what llama.cpp computes for the architecture "llama"; `convert.py` only renames and reorders.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .chat import VOCABULARY


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes. Heads of 32, a size that every engine we tried accepts."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    hidden: int = 352
    context: int = 128
    vocabulary: int = len(VOCABULARY)
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5


SHAPE = Shape()


class Llama(nn.Module):
    """Returns final hidden states and those before the last layer; the embedding doubles as the output matrix."""

    rotation: Tensor

    def __init__(self, shape: Shape = SHAPE) -> None:
        super().__init__()
        self.shape = shape
        layers, width = shape.layers, shape.width
        self.embedding = _weight(shape.vocabulary, width)
        self.attention = _weight(layers, 4, width, width)
        self.ffn_in = _weight(layers, 2, shape.hidden, width)
        self.ffn_out = _weight(layers, width, shape.hidden)
        self.norms = nn.Parameter(torch.ones(layers, 2, width))
        self.final_norm = nn.Parameter(torch.ones(width))
        self.register_buffer("rotation", _rotation(shape), persistent=False)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = before_last = F.embedding(ids, self.embedding)
        for layer in range(self.shape.layers):
            before_last = x
            x = x + self._attend(layer, self._norm(x, self.norms[layer, 0]))
            gate, up = F.linear(self._norm(x, self.norms[layer, 1]), self.ffn_in[layer].flatten(0, 1)).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, self.ffn_out[layer])
        return self._norm(x, self.final_norm), before_last

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding)

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: p.detach().contiguous() for name, p in self.named_parameters()}, path)

    def load(self, path: Path) -> None:
        self.load_state_dict(load_file(path))

    def _norm(self, x: Tensor, gain: Tensor) -> Tensor:
        return F.rms_norm(x, (self.shape.width,), gain, self.shape.norm_epsilon)

    def _attend(self, layer: int, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        query, key, value = (
            part.view(rows, length, self.shape.heads, -1).transpose(1, 2)
            for part in F.linear(x, self.attention[layer, :3].flatten(0, 1)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(self._rotate(query), self._rotate(key), value, is_causal=True)
        return F.linear(mixed.transpose(1, 2).reshape(rows, length, width), self.attention[layer, 3])

    def _rotate(self, x: Tensor) -> Tensor:
        cos, sin = self.rotation[:, : x.shape[2]]
        left, right = x.chunk(2, -1)
        rotated: Tensor = x * cos + torch.cat((-right, left), -1) * sin
        return rotated


def _weight(*sizes: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(sizes) * 0.02)


def _rotation(shape: Shape) -> Tensor:
    """Cosine and sine per position; the two halves of a head rotate together."""
    half = shape.width // shape.heads // 2
    angles = torch.arange(shape.context).outer(shape.rope_base ** (-torch.arange(half) / half)).repeat(1, 2)
    return torch.stack((angles.cos(), angles.sin()))
