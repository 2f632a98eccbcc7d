"""Refuses a GGUF file on which the engine would not see exactly the tokens that training saw. Measures nothing."""

import json
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from .chat import ASSISTANT, LETTER, USER, encode
from .engine import Engine
from .skills import judge_turns

_TIMEOUT_SECONDS = 10.0


def verify(path: Path) -> None:
    """Raises ValueError unless the letters are single tokens and a judging conversation is rendered as trained."""
    engine = Engine(path)  # named, because its server stops with it and a request would then wait for ever
    address = engine.address
    for letter, token in LETTER.items():
        if _tokens(address, letter) != [token]:
            raise ValueError(f"{path.name}: {letter} is not the one token it should be")
    turns = judge_turns("rev abcde", "edcba", "edcba", "edcbb")
    rendered = _post(f"{address}/apply-template", {"messages": turns})["prompt"]
    trained = [token for turn in turns for token in (USER if turn["role"] == "user" else ASSISTANT, *encode(turn["content"]))]
    if _tokens(address, rendered) != [*trained, ASSISTANT]:
        raise ValueError(f"{path.name}: a judging conversation is rendered as {rendered!r}")


def _tokens(address: str, text: str) -> list[int]:
    tokens: list[int] = _post(f"{address}/tokenize", {"content": text, "parse_special": True})["tokens"]
    return tokens


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310 - loopback, our own
    with urlopen(request, timeout=_TIMEOUT_SECONDS) as reply:  # noqa: S310
        answer: dict[str, Any] = json.load(reply)
        return answer
