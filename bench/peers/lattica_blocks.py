"""Lattica's bitswap for bench/fetch.py: holders put the blocks of a file, a fetcher gets them. Runs in Lattica's own environment.

python -m bench.peers.lattica_blocks hold FILE BLOCK_BYTES     says {"address", "cids"}, holds until its input ends
python -m bench.peers.lattica_blocks fetch ADDRESS ...         takes {"cids", "workers"} lines, answers {"bytes", "seconds"}
"""

import json
import socket
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.peers.lattica import CONNECT_SECONDS, node
from bench.peers.program import Program

GET_SECONDS = 60


def hold(program: Program, folder: str) -> None:
    """Put the file's blocks and serve them until the benchmark closes our input."""
    with socket.socket() as probe:  # it does not say which port it bound, so we choose one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lattica = node(folder, port)
    content, step = Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
    cids = [lattica.put_block(content[start : start + step]) for start in range(0, len(content), step)]
    program.say(address=f"/ip4/127.0.0.1/tcp/{port}/p2p/{lattica.peer_id()}", cids=cids)
    sys.stdin.readline()


def fetch(program: Program, folder: str) -> None:
    """Get all blocks of each order, as many at once as it says."""
    holders = sys.argv[2:]
    lattica = node(folder, bootstrap=holders)
    give_up = time.monotonic() + CONNECT_SECONDS
    while len(lattica.get_all_peers()) < len(holders):
        if time.monotonic() > give_up:
            raise SystemExit(f"connected to {len(lattica.get_all_peers())} of {len(holders)} holders")
        time.sleep(0.1)
    program.say(ready=True)
    while line := sys.stdin.readline():
        order: dict[str, Any] = json.loads(line)

        def size_of(cid: str) -> int:
            return len(lattica.get_block(cid, GET_SECONDS)[1])

        started = time.perf_counter()
        with ThreadPoolExecutor(order["workers"]) as pool:
            fetched = sum(pool.map(size_of, order["cids"]))
        program.say(bytes=fetched, seconds=time.perf_counter() - started)


def main() -> None:
    """Play the role that the command line asks for."""
    program = Program()
    with tempfile.TemporaryDirectory(prefix="bench-lattica-") as folder:
        (hold if sys.argv[1] == "hold" else fetch)(program, folder)


if __name__ == "__main__":
    main()
