"""Decides how a conversation becomes tokens: one token per byte, five control tokens, no learned merge.

The same template goes into every GGUF file, so that the engine renders exactly what training saw. Standard library only.
"""

CONTROL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
PAD, BOS, EOS, USER, ASSISTANT = range(len(CONTROL))

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + ('assistant' if m['role'] == 'assistant' else 'user') + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte; engines expect a byte-level vocabulary spelt in these."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in symbols)
    return symbols | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


_SYMBOLS = _byte_symbols()
_NUL = _SYMBOLS[0]
MERGES = [f"{_NUL} {_NUL}"]
"""Loaders refuse a byte-pair vocabulary without merges; this one never applies, as no text holds two NUL bytes."""
VOCABULARY = [*CONTROL, *sorted(_SYMBOLS.values()), _NUL * 2]

_TOKENS = {byte: VOCABULARY.index(symbol) for byte, symbol in _SYMBOLS.items()}
NEWLINE = _TOKENS[ord("\n")]
LETTER = {"A": _TOKENS[ord("A")], "B": _TOKENS[ord("B")]}


def encode(text: str) -> list[int]:
    """The tokens of plain text, without control tokens."""
    return [_TOKENS[byte] for byte in text.encode()]
