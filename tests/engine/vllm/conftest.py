"""A Llama of 263,000 random weights in the Hugging Face layout, written at test time: vLLM loads it and streams from it."""

import json
import os
import struct
from array import array
from pathlib import Path
from random import Random

import pytest

WIDTH, HEADS, LAYERS, CONTEXT = 128, 2, 2, 8192
CONTROL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + ('assistant' if m['role'] == 'assistant' else 'user') + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "dtype": "float32",
}


def _vocabulary() -> list[str]:
    """The control tokens, printable ASCII, then the stand-ins of all other bytes (GPT-2's), and the one merge."""
    ascii_, latin = [*range(33, 127)], [*range(161, 173), *range(174, 256)]
    hidden = 256 - len(ascii_) - len(latin)
    return [*CONTROL, *map(chr, ascii_), *map(chr, latin), *(chr(256 + place) for place in range(hidden)), chr(256) * 2]


def _tokenizer(vocabulary: list[str]) -> dict[str, object]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": place, "content": token, **plain} for place, token in enumerate(CONTROL)],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: place for place, token in enumerate(vocabulary)},
            "merges": [[chr(256), chr(256)]],
        },
    }


def _weights(vocabulary: list[str]) -> bytes:
    """A safetensors file: the length of a JSON header, the header, and the tensors as they come."""
    rng = Random(7)
    shapes = {"model.embed_tokens": (len(vocabulary), WIDTH), "model.norm": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{name}layernorm": (WIDTH,) for name in ("input_", "post_attention_")}
        names = (*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))
        shapes |= {f"{block}.{name}": (WIDTH, WIDTH) for name in names}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    blob = bytearray()
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = array("f", [1.0] * count if len(shape) == 1 else (rng.gauss(0, 0.2) for _ in range(count)))
        if name == "model.embed_tokens":
            # Rows of zeros are never likeliest: it says printable ASCII alone, and never that it has ended.
            said = range(len(CONTROL) * WIDTH, (len(CONTROL) + 94) * WIDTH)
            values = array("f", (value if place in said else 0.0 for place, value in enumerate(values)))
        raw = values.tobytes()
        header[f"{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(blob), len(blob) + len(raw)]}
        blob += raw
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + bytes(blob)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model: the owner's own, or a random one that never ends an answer by itself."""
    if own := os.environ.get("SWARMD_VLLM_MODEL"):
        return Path(own)
    folder = tmp_path_factory.mktemp("models") / "random-llama"
    folder.mkdir()
    vocabulary = _vocabulary()
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": len(vocabulary)}))
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(vocabulary)))
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "model.safetensors").write_bytes(_weights(vocabulary))
    return folder
