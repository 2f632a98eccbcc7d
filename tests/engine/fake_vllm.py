#!/usr/bin/env python3
"""Stands in for the `vllm` command: an OpenAI-compatible server on the socket it is given, which writes down how it was called.

Beside itself it keeps `seen.json` (arguments, environment) and `requests.jsonl`, and it starts a worker as vLLM does, which
outlives a killed server. It answers every prompt with the letters of the alphabet, and stops writing when its client leaves.
Like vLLM it binds its socket long before it listens there, does not act on SIGTERM meanwhile, and leaves sockets behind.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer

HERE = Path(sys.argv[0]).parent
FLAGS = dict(argument.partition("=")[::2] for argument in sys.argv[1:] if argument.startswith("--"))
LOADING_SECONDS = float((HERE / "loading").read_text()) if (HERE / "loading").exists() else 0.3
DRAIN_SECONDS = 0.2
MODEL_LENGTH = 2048
TRACEBACK = "  File core.py, in __init__\n" * 250
FORBIDDEN = {"token": "", "logprob": -9999.0, "bytes": []}


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
            self.reply(200, {})
        elif self.path == "/v1/models":
            model = {
                "id": FLAGS["--served-model-name"],
                "object": "model",
                "owned_by": "vllm",
                "root": "/models/x",
                "parent": None,
            }
            self.reply(200, {"object": "list", "data": [model | {"max_model_len": MODEL_LENGTH}]})
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
        if body["max_tokens"] > MODEL_LENGTH:
            message = f"max_tokens={body['max_tokens']} cannot be greater than max_model_len={MODEL_LENGTH}, see /srv/models/x"
            self.reply(400, {"error": {"message": message, "type": "BadRequestError", "param": "max_tokens", "code": 400}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        written = 0
        try:
            first = {"role": "assistant", "content": ""}
            self.event({"choices": [{"index": 0, "delta": first, "logprobs": None, "finish_reason": None}]})
            for place in range(body["max_tokens"]):
                letter = chr(ord("a") + place % 26)
                ended = "length" if place + 1 == body["max_tokens"] else None
                choice = {"index": 0, "delta": {"content": letter}, "logprobs": None, "finish_reason": ended}
                if "structured_outputs" in body:
                    one, other = body["structured_outputs"]["choice"]
                    choice["delta"] = {"content": other}
                    if body.get("logprobs"):
                        top = [{"token": other, "logprob": -0.28768}, {"token": one, "logprob": -1.3863}]
                        top += [FORBIDDEN] * (body["top_logprobs"] - 2)
                        choice["logprobs"] = {"content": [{"token": other, "logprob": -0.28768, "top_logprobs": top}]}
                self.event({"choices": [choice]})
                written += 1
                time.sleep(0.002)
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


CRASH = """
(Worker pid=3) ERROR 11-23 03:46:03 [multiproc_executor.py:953] RuntimeError: Cannot find any model weights with `/srv/models/x`
(EngineCore pid=2) ERROR 11-23 03:46:05 [core.py:1510] Exception: WorkerProc failed to start. See stack trace for root cause.
"""
LAST_WORDS = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"


def main() -> None:
    if (HERE / "broken").exists():
        sys.exit(f"{CRASH}{TRACEBACK}{LAST_WORDS}")
    worker = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
    seen = {"argv": sys.argv[1:], "environment": dict(os.environ), "pid": os.getpid(), "worker": worker.pid}
    (HERE / "seen.new").write_text(json.dumps(seen))
    (HERE / "seen.new").rename(HERE / "seen.json")

    def drain(*_: object) -> None:
        worker.kill()
        time.sleep(DRAIN_SECONDS)
        (HERE / "drained").touch()
        os._exit(0)

    with socket.socket(socket.AF_UNIX) as internal:
        internal.bind(f"{os.environ['VLLM_RPC_BASE_PATH']}/{uuid.uuid4()}")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("loading weights", flush=True)
    with Server(FLAGS["--uds"], Handler, bind_and_activate=False) as server:
        server.server_bind()
        time.sleep(LOADING_SECONDS)
        signal.signal(signal.SIGTERM, drain)
        server.server_activate()
        server.serve_forever()


main()
