"""Runs a GGUF file on the engine that the daemon embeds, and asks it what the daemon asks: an answer, or a letter.

Nothing here imports torch: what is measured is the shipped file, not the network it came from.
"""

from pathlib import Path
from typing import Any

import xllamacpp

from .skills import judge_turns

ANSWER_TOKENS = 12
_LETTERS = 'root ::= "A" | "B"'
_TOP = 5
_ABSENT = -20.0
"""Stands for a letter outside the top few tokens; it counts as good as impossible."""


class Engine:
    """One loaded model."""

    def __init__(self, path: Path) -> None:
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel = 512, 4
        params.ui, params.verbosity = False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self._server = xllamacpp.Server(params)

    @property
    def address(self) -> str:
        """Where the engine's own HTTP server listens, on loopback."""
        return str(self._server.listening_address)

    def answer(self, prompt: str) -> str:
        """The greedy answer."""
        return str(self._ask([{"role": "user", "content": prompt}], max_tokens=ANSWER_TOKENS)["message"]["content"])

    def letters(self, prompt: str, own: str, first: str, second: str) -> tuple[float, float]:
        """The natural-log probabilities of "A" and of "B", before the grammar narrows the choice."""
        return self.choose(judge_turns(prompt, own, first, second))

    def choose(self, turns: list[dict[str, str]]) -> tuple[float, float]:
        """The same for a judging conversation that is already made."""
        choice = self._ask(turns, max_tokens=1, logprobs=True, top_logprobs=_TOP, grammar=_LETTERS)
        top = {entry["token"]: float(entry["logprob"]) for entry in choice["logprobs"]["content"][0]["top_logprobs"]}
        return top.get("A", _ABSENT), top.get("B", _ABSENT)

    def _ask(self, turns: list[dict[str, str]], **options: object) -> dict[str, Any]:
        reply = self._server.handle_chat_completions({"messages": turns, "temperature": 0, **options})
        choice: dict[str, Any] = reply["choices"][0]
        return choice
