"""How long joining takes, with real daemons on loopback: cold by a bootstrap, and from the cache while the bootstrap is dead.

`python -m bench.joining [--peers N] [--json] [--check]`. Counted from when the daemon itself runs (`status` has it) to
the first connection and to half of all peers, so that the interpreter's start, 3 s of CPU, does not weigh in.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from swarmd import Client, ClientError

COLD_SECONDS, CACHED_SECONDS = 10.0, 1.0
COMMAND = [sys.executable, "-P", "-m", "swarmd"]
WAIT_SECONDS = 90.0


class Running:
    """One daemon without a model."""

    def __init__(self, folder: Path, *extra: str) -> None:
        (folder / "run").mkdir(parents=True, mode=0o700, exist_ok=True)
        self.client = Client(folder / "run" / "api.sock", timeout=10)
        options = ["--data-dir", str(folder / "data"), "--set", f"runtime_dir={folder / 'run'}", "--no-model", "--api", ""]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SWARMD_")}
        with (folder / "log").open("ab") as log:
            command = [*COMMAND, "start", *options, "--listen", "/ip4/127.0.0.1/tcp/0", *extra]
            self.child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)

    def status(self) -> dict[str, Any] | None:
        try:
            return self.client.status()
        except ClientError:
            return None

    def connected(self, count: int) -> float:
        """Seconds from the daemon's start to `count` connections, as its own clock has them."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and status["mesh"]["connected"] >= count:
                ages = sorted(oldest for _, oldest in status["mesh"]["paths"].values())
                return float(status["uptime_s"] - ages[-1]) if count == 1 else float(status["uptime_s"])
            time.sleep(0.02)
        raise SystemExit(f"not {count} connections within {WAIT_SECONDS:g} s")

    def address(self) -> str:
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and status["addresses"]:
                return str(status["addresses"][0])
            time.sleep(0.05)
        raise SystemExit("no address")

    def end(self, how: int = signal.SIGTERM) -> None:
        """Stop it, if it still runs."""
        if self.child.poll() is None:
            self.child.send_signal(how)
            self.child.wait(30)


def measure(base: Path, peers: int) -> dict[str, float]:
    """Seconds: the first connection and half of the peers, cold and cached. No daemon outlives it, whatever happens."""
    with ExitStack() as running:

        def run(name: str, *extra: str) -> Running:
            one = Running(base / name, *extra)
            running.callback(one.end)
            return one

        boot = run("boot", "--set", "role=bootstrap")
        join = ("--join", boot.address())
        others = [run(f"p{number}", *join) for number in range(peers - 1)]
        for other in others:
            other.connected(1)
        last = run("last", *join)
        half = max(2, peers // 2)
        found = {"cold_first_s": last.connected(1), "cold_half_s": last.connected(half)}
        _await_cache(base / "last" / "data" / "peers.json", half)
        last.end()
        boot.end(signal.SIGKILL)
        again = run("last", *join)
        return found | {"cached_first_s": again.connected(1), "cached_half_s": again.connected(half)}


def _await_cache(cache: Path, peers: int) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not cache.exists() or cache.read_text().count('"peer"') < peers:
        if time.monotonic() > deadline:
            raise SystemExit(f"not {peers} peers in {cache.name} within {WAIT_SECONDS:g} s")
        time.sleep(0.1)


def main() -> int:
    """Run, print, and with --check exit with 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swarmd-joining-") as folder:
        found = measure(Path(folder), given.peers)
    if given.json:
        print(json.dumps(found))
    else:
        for name, seconds in found.items():
            print(f"{name:16} {seconds:.2f}")
    short = []
    if found["cold_half_s"] >= COLD_SECONDS:
        short.append(f"a cold join took {found['cold_half_s']:.1f} s (target {COLD_SECONDS:g})")
    if found["cached_first_s"] >= CACHED_SECONDS:
        short.append(f"a rejoin from the cache took {found['cached_first_s']:.2f} s (target {CACHED_SECONDS:g})")
    if given.check and short:
        print("short: " + "; ".join(short), file=sys.stderr)
    return 1 if given.check and short else 0


if __name__ == "__main__":
    sys.exit(main())
