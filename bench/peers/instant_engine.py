"""An OpenAI-compatible server that answers at once, or so many tokens per second and stream: every token is one event.

python -m bench.peers.instant_engine [RATE]      prints its URL and serves until it is ended
"""

import asyncio
import json
import re
import sys

MODEL = "bench/instant"
DEFAULT_TOKENS = 4
"""Of an answer whose request names no bound."""

TOKENS_IN_ONE_WRITE = 64
PACE = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
"""Tokens per second of each stream; 0: all at once."""

_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def _event(choice: dict[str, object] | None, tokens: int = 0) -> bytes:
    event: dict[str, object] = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    event["choices"] = [] if choice is None else [{"index": 0, **choice}]
    if choice is None:
        event["usage"] = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


TOKEN = _event({"delta": {"content": " word"}, "finish_reason": None})
LAST = _event({"delta": {}, "finish_reason": "stop"})


def _whole(fields: dict[str, object]) -> bytes:
    body = json.dumps(fields).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def _complete(asked: dict[str, object], writer: asyncio.StreamWriter) -> None:
    bound = asked.get("max_tokens") or asked.get("max_completion_tokens")
    tokens = bound if isinstance(bound, int) else DEFAULT_TOKENS
    if not asked.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": " word" * tokens}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        writer.write(_whole({"id": "c", "object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}))
        return
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    if PACE:
        await _speak(tokens, writer)
    left = 0 if PACE else tokens
    while left:
        part = TOKEN * min(left, TOKENS_IN_ONE_WRITE)
        left -= min(left, TOKENS_IN_ONE_WRITE)
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()
    end = LAST + _event(None, tokens) + b"data: [DONE]\n\n"
    writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))


async def _speak(tokens: int, writer: asyncio.StreamWriter) -> None:
    """Each token when it is due, in a write of its own, as an engine does."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    for number in range(tokens):
        await asyncio.sleep(start + number / PACE - loop.time())
        writer.write(b"%x\r\n%s\r\n" % (len(TOKEN), TOKEN))
        await writer.drain()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            body = await reader.readexactly(int(length[1])) if length else b""
            path = head.split(b" ", 2)[1]
            if path == b"/v1/chat/completions":
                await _complete(json.loads(body), writer)
            else:
                writer.write(_whole({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 1 << 20}]}))
            await writer.drain()
            if _CLOSE.search(head):
                return
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    """Serve on a free port of loopback."""
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
