"""One choice of an OpenAI reply as it grows out of an ask's events: text, tool calls, log-probabilities. Knows no endpoint."""

from typing import Any

import msgspec

from daemon.api.backend import ResultEvent, TokenEvent
from protocol.delta import CallDelta, TokenLogprob
from protocol.wire.errors import malformed

MAX_CALL_CHARS = 256 << 10
"""All tool calls of one choice, so that a peer cannot fill this box's memory with them."""


class Choice:
    """What has come so far. `result` is None until the ask has ended; `begun`: a first piece has left, maybe an empty one."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.begun = False
        self.spoken = False
        self.result: ResultEvent | None = None
        self._calls: dict[int, dict[str, Any]] = {}
        self._call_chars = 0
        self._logprobs: list[TokenLogprob] = []

    def take(self, event: TokenEvent) -> None:
        """Add a piece; raises RemoteError(malformed) where the calls are too long."""
        for call in event.tool_calls:
            self._take_call(call)
        self._logprobs += event.logprobs

    def _take_call(self, delta: CallDelta) -> None:
        call = self._calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
        call["id"] = delta.id or call["id"]
        if delta.function is not None:
            call["name"] = delta.function.name or call["name"]
            call["arguments"] += delta.function.arguments or ""
            self._call_chars += len(delta.function.arguments or "")
        if self._call_chars > MAX_CALL_CHARS:
            raise malformed(f"the tool calls are over {MAX_CALL_CHARS} characters")

    def tool_calls(self) -> list[dict[str, Any]]:
        """The complete calls in OpenAI's shape."""
        return [
            {
                "id": call["id"] or f"call_{index}",
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for index, call in sorted(self._calls.items())
        ]

    def message(self, text: str) -> dict[str, Any]:
        """The assistant's message."""
        calls = self.tool_calls()
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        return message | {"tool_calls": calls} if calls else message

    def logprobs(self) -> dict[str, Any] | None:
        """OpenAI's logprobs object; None where none came."""
        return shown_logprobs(self._logprobs)


def shown_logprobs(tokens: "list[TokenLogprob] | tuple[TokenLogprob, ...]") -> dict[str, Any] | None:
    """OpenAI's logprobs object; None for no tokens."""
    return {"content": msgspec.to_builtins(tokens), "refusal": None} if tokens else None
