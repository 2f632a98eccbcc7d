#!/usr/bin/env python3
"""Stands in for the `vllm` command: an OpenAI-compatible server on the socket it is given, which writes down how it was called.

Beside itself it keeps `seen.json` (arguments, environment) and `requests.jsonl`, and it starts a worker as vLLM does, which
outlives a killed server. It answers every prompt with the letters of the alphabet, and stops writing when its client leaves.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

HERE = Path(sys.argv[0]).parent
FLAGS = dict(argument.partition("=")[::2] for argument in sys.argv[1:] if argument.startswith("--"))
STARTED = time.monotonic()
LOADING_SECONDS = 0.3


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, status: int, body: object) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def allowed(self) -> bool:
        if not self.path.startswith("/v1") or self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}":
            return True
        self.reply(401, {"error": "Unauthorized"})
        return False

    def do_GET(self) -> None:
        if not self.allowed():
            return
        if self.path == "/health":
            self.reply(200 if time.monotonic() > STARTED + LOADING_SECONDS else 503, {})
        elif self.path == "/v1/models":
            self.reply(200, {"data": [{"id": FLAGS["--served-model-name"], "root": "/models/x", "max_model_len": 2048}]})
        elif self.path == "/version":
            self.reply(200, {"version": "0.32.0"})
        else:
            self.reply(404, {"error": {"message": "not found"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        with (HERE / "requests.jsonl").open("a") as file:
            file.write(json.dumps(body) + "\n")
        if body["max_tokens"] > 2048:
            self.reply(400, {"error": {"message": "max_tokens is too large, see /srv/models/x", "type": "BadRequestError"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        written = 0
        try:
            for place in range(body["max_tokens"]):
                letter = chr(ord("a") + place % 26)
                choice = {"index": 0, "delta": {"content": letter}, "finish_reason": None}
                if "structured_outputs" in body:
                    first, second = body["structured_outputs"]["choice"]
                    choice["delta"] = {"content": second}
                    if body.get("logprobs"):
                        top = [{"token": first, "logprob": -1.3863}, {"token": second, "logprob": -0.28768}]
                        top.append({"token": "zzz", "logprob": -9999.0})
                        choice["logprobs"] = {"content": [{"token": second, "logprob": -0.28768, "top_logprobs": top}]}
                self.event({"choices": [choice]})
                written += 1
                time.sleep(0.002)
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
            self.event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": written, "total_tokens": 5 + written}})
            self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        except OSError:
            self.close_connection = True
            (HERE / "left.json").write_text(json.dumps(written))

    def event(self, body: object) -> None:
        raw = f"data: {json.dumps(body)}\n\n".encode()
        self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        self.wfile.flush()


class Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[object, tuple[str, int]]:  # type: ignore[override]
        return self.socket.accept()[0], ("local", 0)


def main() -> None:
    worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
    seen = {"argv": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid(), "worker": worker.pid}
    (HERE / "seen.new").write_text(json.dumps(seen))
    (HERE / "seen.new").rename(HERE / "seen.json")

    def drain(*_: object) -> None:
        worker.kill()
        (HERE / "drained").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, drain)
    print("loading weights", flush=True)
    with Server(FLAGS["--uds"], Handler) as server:
        server.serve_forever()


main()
