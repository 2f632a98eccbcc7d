"""Writes a llama model of a few kilobytes with random weights: a real engine loads it, and its answers last as long as asked."""

import struct
from dataclasses import dataclass
from pathlib import Path
from random import Random

WIDTH, HEADS, HIDDEN = 64, 2, 64
CONTROL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + ('assistant' if m['role'] == 'assistant' else 'user') + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
UINT32, FLOAT32, INT32, BOOL, STRING, ARRAY = 4, 6, 5, 7, 8, 9


TOOL_TEMPLATE = """{%- if tools %}Tools: {% for tool in tools %}{{ tool | tojson }}{% endfor %}
Respond with {"name": function name, "parameters": dictionary}.{% endif %}
{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}<|assistant|>{% for call in m.tool_calls -%}
{"name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}{% endfor %}</s>
{%- else %}<|{{ m.role }}|>{{ m.content }}</s>
{%- endif %}{% endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}"""
"""Shows tools as Llama 3.1's own does, where a mere brace begins a call: noise soon happens upon one."""


@dataclass(frozen=True)
class ModelShape:
    """What a test may vary: a big context and many layers make a completion that lasts for seconds."""

    layers: int = 1
    context: int = 8192
    name: str | None = "tests/random-llama"
    ascii: bool = False
    """Says printable ASCII alone, so that its text is whole however it is cut."""
    template: str = TEMPLATE


def _text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def _entry(key: str, kind: int, value: object) -> bytes:
    formats = {UINT32: "<I", FLOAT32: "<f", BOOL: "<?"}
    packed = _text(value) if isinstance(value, str) else struct.pack(formats[kind], value)
    return _text(key) + struct.pack("<I", kind) + packed


def _list(key: str, kind: int, values: list[str] | list[int]) -> bytes:
    packed = b"".join(_text(v) if isinstance(v, str) else struct.pack("<i", v) for v in values)
    return _text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + packed


def _vocabulary() -> tuple[list[str], str]:
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    symbols = [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(hidden))]
    nul = chr(256)
    return [*CONTROL, *sorted(symbols), nul * 2], nul


def _metadata(shape: ModelShape) -> list[bytes]:
    tokens, nul = _vocabulary()
    numbers = {
        "context_length": shape.context,
        "embedding_length": WIDTH,
        "block_count": shape.layers,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "rope.dimension_count": WIDTH // HEADS,
        "vocab_size": len(tokens),
    }
    return [
        _entry("general.architecture", STRING, "llama"),
        *([_entry("general.name", STRING, shape.name)] if shape.name is not None else []),
        *(_entry(f"llama.{key}", UINT32, value) for key, value in numbers.items()),
        _entry("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        _entry("general.file_type", UINT32, 1),
        _entry("tokenizer.ggml.model", STRING, "gpt2"),
        _entry("tokenizer.ggml.pre", STRING, "gpt-2"),
        _list("tokenizer.ggml.tokens", STRING, tokens),
        _list("tokenizer.ggml.token_type", INT32, [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL))),
        _list("tokenizer.ggml.merges", STRING, [f"{nul} {nul}"]),
        _entry("tokenizer.ggml.bos_token_id", UINT32, 1),
        _entry("tokenizer.ggml.eos_token_id", UINT32, 2),
        _entry("tokenizer.ggml.padding_token_id", UINT32, 0),
        _entry("tokenizer.ggml.add_bos_token", BOOL, False),
        _entry("tokenizer.chat_template", STRING, shape.template),
    ]


def _tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Name to sizes, the fastest-moving first, as GGUF has them."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (WIDTH, len(_vocabulary()[0])), "output_norm.weight": (WIDTH,)}
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        found |= {f"{block}.{name}.weight": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        found |= {f"{block}.{name}.weight": (WIDTH, HIDDEN) for name in ("ffn_gate", "ffn_up")}
        found |= {f"{block}.ffn_down.weight": (HIDDEN, WIDTH)}
        found |= {f"{block}.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    return found


def write_gguf(path: Path, shape: ModelShape) -> Path:
    """Write a loadable GGUF (version 3) of weights from a fixed seed; control tokens have zero rows: never likeliest."""
    rng = Random(7)
    infos, blob = b"", bytearray()
    tensors = _tensors(shape)
    for name, sizes in tensors.items():
        is_norm = len(sizes) == 1
        infos += _text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0 if is_norm else 1, len(blob))
        count = sizes[0] * (1 if is_norm else sizes[1])
        values = [1.0] * count if is_norm else [rng.gauss(0, 0.2) for _ in range(count)]
        if name.startswith("token_embd"):
            for place, token in enumerate(_vocabulary()[0]):
                if place < 3 or (shape.ascii and not (len(token) == 1 and token.isascii())):
                    values[place * WIDTH : (place + 1) * WIDTH] = [0.0] * WIDTH
        blob += struct.pack(f"<{count}{'f' if is_norm else 'e'}", *values)
        blob += bytes(-len(blob) % 32)
    entries = _metadata(shape)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries)) + b"".join(entries) + infos
    path.write_bytes(head + bytes(-len(head) % 32) + blob)
    return path
