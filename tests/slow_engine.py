"""An OpenAI-compatible server that says "word0 word1 ..." at a set pace, whatever it is asked: slow enough to be cut at leisure.

`python slow_engine.py PORT WORDS PAUSE` runs one; the standard library alone, so that it starts at once in a namespace.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "slow"


def words(count: int) -> list[str]:
    """What it says, in pieces."""
    return [f"word{place} " for place in range(count)]


class SlowEngine(ThreadingHTTPServer):
    """Says `count` words, or as many as it is asked for where these are fewer, with `pause` seconds behind each."""

    def __init__(self, port: int, count: int, pause: float) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.words = words(count)
        self.pause = pause


class _Handler(BaseHTTPRequestHandler):
    server: SlowEngine

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        raw = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_POST(self) -> None:
        if self.path != "/v1/chat/completions":
            self.send_error(404)
            return
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = self.server.words[: wanted["max_tokens"]]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(OSError):
            for word in said:
                self._event({"choices": [{"index": 0, "delta": {"content": word}}]})
                time.sleep(self.server.pause)
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": len(said)}})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, body: object) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())
        self.wfile.flush()


@contextlib.contextmanager
def slow_engine(count: int, pause: float) -> Iterator[str]:
    """One in a thread of this process; the address for `--engine-url`."""
    with SlowEngine(0, count, pause) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    SlowEngine(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])).serve_forever()
