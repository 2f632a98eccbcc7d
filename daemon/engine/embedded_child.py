"""The process in which llama.cpp runs: starts its server on a Unix socket and ends when told to or when its parent dies.

Imports the standard library and xllamacpp alone: a node on a small box pays for every module it loads.
"""

import argparse
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

NOT_A_MODEL = 65
"""Exit status where the file cannot be loaded (EX_DATAERR of sysexits.h); no restart will mend it."""

NO_ENGINE = 69
"""Exit status where xllamacpp itself cannot be imported (EX_UNAVAILABLE)."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="engine", allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens of one slot")
    parser.add_argument("--http-threads", type=int, required=True)
    options = parser.parse_args(arguments)
    os.umask(0o077)
    key = sys.stdin.buffer.readline().strip().decode()
    if not key:
        return 0  # the parent died before it could say anything
    threading.Thread(target=_die_with_parent, args=(options.socket,), daemon=True).start()
    try:
        import xllamacpp
    except ImportError as error:
        print(f"xllamacpp cannot be imported: {error}", file=sys.stderr)
        return NO_ENGINE
    params = xllamacpp.CommonParams()
    params.model.path = str(options.model)
    params.model_alias = {options.name}
    params.hostnames = [options.socket]
    params.api_keys = [key]
    params.n_ctx = options.context * options.slots
    params.n_parallel = options.slots
    params.n_threads_http = options.http_threads
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    # A request that its client has left is noticed between two batches of its prompt: small ones keep that under a second.
    params.n_batch = params.n_ubatch = 256
    params.cache_ram_mib = 64
    # Vectors beside text, by the state of a text's last token: measured, answers keep their bits and their speed.
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_LAST
    params.endpoint_metrics = params.endpoint_slots = True
    params.ui = False
    params.offline = True
    params.verbosity = 0
    try:
        server = xllamacpp.Server(params)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the binding has no narrower type; the parent shows the sentence
        print(f"llama.cpp cannot load this model: {error}", file=sys.stderr)
        return NOT_A_MODEL
    while server is not None:
        signal.pause()
    return 0


def _die_with_parent(socket: str) -> None:
    """The parent holds the other end of standard input until it dies. At once, as there is nobody left to tell."""
    while os.read(0, 4096):
        pass
    with contextlib.suppress(OSError):
        os.unlink(socket)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
