"""Lattica (Rust core, Python API), asked in the way that is fastest for it; runs in its own environment.

Calls go out as futures from one thread: asyncio costs it a tenth more. A body of 64 MiB goes up by `rpc_stream`, which is
faster than its other way, an iterator of chunks. It pickles arguments and replies: that is its product, as frames are ours.
"""

import importlib
import socket
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from bench.loads import ACK, ITEMS_PER_STREAM, Kind, Load
from bench.peers.measure import Measured, WrongReplyError
from bench.peers.program import Program

# Not installed where types are checked, and untyped.
_lattica: Any = importlib.import_module("lattica")
Handler: Any = _lattica.ConnectionHandler

TIMEOUT = 60
CONNECT_SECONDS = 20


class Service(Handler):  # type: ignore[misc]
    """The loads' methods."""

    @_lattica.rpc_method  # type: ignore[untyped-decorator]
    def echo(self, body: Any) -> Any:
        return body

    @_lattica.rpc_method  # type: ignore[untyped-decorator]
    def ack(self, body: Any) -> Any:
        return ACK

    @_lattica.rpc_stream  # type: ignore[untyped-decorator]
    def push(self, body: Any) -> Any:
        return len(body)

    @_lattica.rpc_stream_iter  # type: ignore[untyped-decorator]
    def items(self, asked: Any) -> Any:
        count, size = asked
        item = bytes(size)
        for _ in range(count):
            yield item


def node(folder: str, port: int = 0, bootstrap: str | list[str] = "") -> Any:
    """A Lattica node on loopback with its state in `folder`."""
    builder = _lattica.Lattica.builder().with_mdns(False).with_upnp(False).with_listen_addrs([f"/ip4/127.0.0.1/tcp/{port}"])
    builder = builder.with_storage_path(f"{folder}/store").with_dht_db_path(f"{folder}/dht").with_key_path(folder)
    bootstraps = [bootstrap] if isinstance(bootstrap, str) else bootstrap
    return (builder.with_bootstraps(bootstraps) if bootstrap else builder).build()


def serve(program: Program, folder: str) -> None:
    """Serve until the benchmark closes our input."""
    with socket.socket() as probe:  # it does not say which port it bound, so we choose one
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    lattica = node(folder, port)
    service = Service(lattica)
    program.say(address=f"/ip4/127.0.0.1/tcp/{port}/p2p/{lattica.peer_id()}")
    program.next_order()
    del service


def measure(stub: Any, load: Load, seconds: float) -> Measured:
    """As `bench.peers.measure.measure`, with Lattica's futures. Streams that end early count for what came of them."""
    body = bytes(load.size) if load.kind is not Kind.ITEMS else b""
    units, cut = 0.0, 0
    start = time.perf_counter()
    end = start + seconds
    if load.kind is Kind.PUSH:
        while time.perf_counter() < end:
            _check(stub.push(body).result(TIMEOUT), load.size)
            units += load.size / 1e6
    elif load.kind is Kind.ITEMS:
        while time.perf_counter() < end:
            came = sum(len(item) == load.size for item in stub.items([ITEMS_PER_STREAM, load.size]))
            units += came
            cut += came < ITEMS_PER_STREAM
    else:
        call, wanted = getattr(stub, load.kind.value), load.size if load.kind is Kind.ECHO else len(ACK)
        waiting = deque(call(body) for _ in range(load.in_flight))
        while waiting:
            _check(len(waiting.popleft().result(TIMEOUT)), wanted)
            units += 1
            if time.perf_counter() < end:
                waiting.append(call(body))
    return Measured(units, time.perf_counter() - start, cut)


def _check(got: int, wanted: int) -> None:
    if got != wanted:
        raise WrongReplyError(f"{got} came where {wanted} must")


def call(program: Program, folder: str) -> None:
    """Connect and take orders until the benchmark closes our input."""
    stub = Service(node(folder, bootstrap=program.address)).get_stub(program.address.rsplit("/p2p/", 1)[1])
    give_up = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            stub.ack(b"are you there").result(5)
            break
        except Exception:  # it raises many things until it has connected
            if time.monotonic() > give_up:
                raise
            time.sleep(0.2)
    program.say(ready=True)
    while order := program.next_order():
        program.say_measured(measure(stub, order.load, order.seconds))


def main() -> None:
    """Play the role that the command line asks for."""
    program = Program()
    with tempfile.TemporaryDirectory(prefix="bench-lattica-") as folder:
        (call if program.address else serve)(program, str(Path(folder)))


if __name__ == "__main__":
    main()
