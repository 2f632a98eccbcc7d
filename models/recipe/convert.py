"""Decides how trained weights become a GGUF file that llama.cpp runs as architecture "llama". It changes no number but the width.

Matrices are stored as 16-bit floats, gains as 32-bit ones, as llama.cpp's own converter does.
"""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from . import chat
from .llama import SHAPE, Shape

_Array = NDArray[np.float32]


def convert(weights: Path, out: Path, name: str) -> None:
    """Writes `out` from the weights that training saved."""
    writer = gguf.GGUFWriter(str(out), "llama")
    _describe(writer, name, SHAPE)
    _add_tokenizer(writer)
    for key, tensor in _tensors(load_file(weights), SHAPE).items():
        writer.add_tensor(key, tensor.astype(np.float16 if tensor.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, name: str, shape: Shape) -> None:
    head = shape.width // shape.heads
    writer.add_name(name)
    writer.add_license("Apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    kinds = [gguf.TokenType.CONTROL] * len(chat.CONTROL)
    kinds += [gguf.TokenType.NORMAL] * (len(chat.VOCABULARY) - len(chat.CONTROL))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(chat.VOCABULARY)
    writer.add_token_types(kinds)
    writer.add_token_merges(chat.MERGES)
    writer.add_bos_token_id(chat.BOS)
    writer.add_eos_token_id(chat.EOS)
    writer.add_pad_token_id(chat.PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(chat.TEMPLATE)


def _tensors(stacks: dict[str, _Array], shape: Shape) -> dict[str, _Array]:
    """One entry per tensor that llama.cpp looks for. Without an output matrix it uses the embedding, which is what we want."""
    tensors = {"token_embd.weight": stacks["embedding"], "output_norm.weight": stacks["final_norm"]}
    for layer in range(shape.layers):
        query, key, value, output = stacks["attention"][layer]
        gate, up = stacks["ffn_in"][layer]
        parts = {
            "attn_q": _interleave(query, shape.heads),
            "attn_k": _interleave(key, shape.heads),
            "attn_v": value,
            "attn_output": output,
            "ffn_gate": gate,
            "ffn_up": up,
            "ffn_down": stacks["ffn_out"][layer],
            "attn_norm": stacks["norms"][layer, 0],
            "ffn_norm": stacks["norms"][layer, 1],
        }
        tensors |= {f"blk.{layer}.{part}.weight": np.ascontiguousarray(tensor) for part, tensor in parts.items()}
    return tensors


def _interleave(matrix: _Array, heads: int) -> _Array:
    """Training rotates the halves of a head against each other, llama.cpp neighbouring rows: the same after this reordering."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
