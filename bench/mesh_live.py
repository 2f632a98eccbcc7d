"""Finding among real hosts on loopback, in one process a side: ours, and stock py-libp2p kad-dht, one after the other.

`python -m bench.mesh_scale --live [--hosts N]`. All hosts of a side share one core, so that a figure is what the work costs and
not what a network takes: a host joins when all others stand, and looks up what some other host has just stored. A side that is
not done within LIMIT has what it measured until then, or runs again with FEWER hosts where that is nothing.
"""

import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from statistics import median
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

HOSTS = 32
ROUNDS = 40
SIDES = ("swarmd", "py-libp2p")
TARGETS_MS = {"get": 10.0, "find": 10.0}
JOINED = 12
"""Entries of a table with which a host counts as joined: its lookup of itself has ended, and others have met it."""

SETTLE = 3.0
"""Seconds for what joining began to end: refreshes, identify."""

LIMIT = 150.0
"""Seconds of one side."""

FEWER = 8


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that nothing announces."""
    while not condition():  # noqa: ASYNC110 - the table of a transport is no event
        await trio.sleep(0.01)


async def ours(hosts: int) -> None:
    """The daemon's transport as it is."""
    from daemon import collector
    from daemon.transport.host import Libp2pTransport
    from daemon.transport.options import TransportOptions
    from dht.record_store import Opened

    def opened(key: str, value: bytes, wall: int) -> Opened:
        return Opened((0, 0, value), wall + 3_600_000)

    def build() -> Libp2pTransport:
        options = TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",), udp=False, punch=False)
        return Libp2pTransport(Ed25519PrivateKey.generate(), options, opened)

    async with contextlib.AsyncExitStack() as stack:
        mesh = [await stack.enter_async_context(build().running()) for _ in range(hosts - 1)]
        for node in mesh[1:]:
            await node.connect(mesh[0].peer_id, mesh[0].addresses())
        with trio.move_on_after(60):
            await until(lambda: all(node._kademlia.peers >= min(JOINED, hosts - 2) for node in mesh))
        await trio.sleep(SETTLE)
        late = build()
        begun = time.perf_counter()
        await stack.enter_async_context(late.running())
        await late.connect(mesh[0].peer_id, mesh[0].addresses())
        await until(lambda: late._kademlia.peers >= min(JOINED, hosts - 2))
        joined = time.perf_counter() - begun
        mesh.append(late)
        await trio.sleep(SETTLE)
        collector.settle()  # as a daemon does that stands
        await measured(
            len(mesh),
            joined,
            lambda n, key, value: mesh[n].put_record(key, value),
            lambda n, key: mesh[n].get_record(key),
            lambda n, key: mesh[n].provide(key),
            lambda n, key: mesh[n].find_providers(key),
        )


async def stock(hosts: int) -> None:
    """Stock hosts with stock KadDHT; tables are refreshed by hand, or they would stay empty for ten minutes."""
    from libp2p import new_host
    from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
    from libp2p.peer.peerinfo import PeerInfo
    from libp2p.records.validator import Validator
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    class Anything(Validator):
        def validate(self, key: str, value: bytes) -> None:
            """Accept."""

        def select(self, key: str, values: list[bytes]) -> int:
            return 0

    @contextlib.asynccontextmanager
    async def node() -> AsyncIterator[tuple[Any, Any]]:
        host = new_host()
        async with host.run([Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            dht = KadDHT(host, DHTMode.SERVER)
            dht.register_validator("swarmd", Anything())
            async with background_trio_service(dht):
                yield host, dht

    async def refreshed(dht: Any) -> None:
        with trio.move_on_after(20):
            await dht.refresh_routing_table()

    async with contextlib.AsyncExitStack() as stack:
        mesh = [await stack.enter_async_context(node()) for _ in range(hosts - 1)]
        for host, _ in mesh[1:]:
            await host.connect(PeerInfo(mesh[0][0].get_id(), mesh[0][0].get_addrs()))
        for _, dht in mesh:
            await refreshed(dht)
        begun = time.perf_counter()
        late = await stack.enter_async_context(node())
        await late[0].connect(PeerInfo(mesh[0][0].get_id(), mesh[0][0].get_addrs()))
        while late[1].get_routing_table_size() < min(JOINED, hosts - 2) and time.perf_counter() - begun < 60:
            await refreshed(late[1])
        joined = time.perf_counter() - begun
        mesh.append(late)
        names = {f"/swarmd/model/{n}": Random(n).randbytes(32).hex() for n in range(ROUNDS)}
        await measured(
            len(mesh),
            joined,
            lambda n, key, value: mesh[n][1].put_value(key, value),
            lambda n, key: mesh[n][1].get_value(key),
            lambda n, key: mesh[n][1].provide("1220" + names[key]),
            lambda n, key: mesh[n][1].find_providers("1220" + names[key]),
        )


Put = Callable[[int, str, bytes], Awaitable[Any]]
Do = Callable[[int, str], Awaitable[Any]]


async def measured(hosts: int, joined: float, put: Put, get: Do, provide: Do, find: Do) -> None:
    """Print a line of JSON a round: medians so far of each operation, each by another host than the one that stored."""
    rng, took = Random(7), {"put": [], "get": [], "provide": [], "find": []}  # type: ignore[var-annotated]
    missed = 0

    async def timed(kind: str, work: Awaitable[Any]) -> Any:
        begun = time.perf_counter()
        try:
            with trio.fail_after(30):
                return await work
        except Exception as error:  # noqa: BLE001 - a side that cannot do it is a figure of that side
            logging.debug("%s failed: %r", kind, error)
            return None
        finally:
            took[kind].append(1000 * (time.perf_counter() - begun))

    for number in range(ROUNDS):
        writer, reader = rng.sample(range(hosts), 2)
        value = b"%d" % number + b"x" * 560
        await timed("put", put(writer, f"/swarmd/offer/{number}", value))
        missed += await timed("get", get(reader, f"/swarmd/offer/{number}")) != value
        await timed("provide", provide(writer, f"/swarmd/model/{number}"))
        missed += not await timed("find", find(reader, f"/swarmd/model/{number}"))
        figures: dict[str, Any] = {f"{kind}_ms": round(median(times), 1) for kind, times in took.items()}
        figures |= {f"{kind}_max_ms": round(max(times), 1) for kind, times in took.items()}
        figures |= {"missed": missed, "of": 2 * (number + 1), "hosts": hosts, "join_ms": round(1000 * joined, 1)}
        print(json.dumps(figures), flush=True)


def run(hosts: int) -> dict[str, dict[str, Any]]:
    """Both sides, each in a process of its own."""
    return {side: _side(side, hosts) for side in SIDES}


def _side(side: str, hosts: int) -> dict[str, Any]:
    """What a side printed last, and in `failed` why that is not all."""
    command = [sys.executable, "-m", "bench.mesh_live", side, str(hosts)]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        failed = ""
        try:
            code = subprocess.run(command, stdout=said, stderr=errors, timeout=LIMIT, check=False).returncode
        except subprocess.TimeoutExpired:
            failed = f"{hosts} hosts were not done in {LIMIT:.0f} s"
        else:
            errors.seek(0)
            failed = f"{hosts} hosts: {errors.read().strip()[-300:]}" if code else ""
        said.seek(0)
        lines = said.read().strip().splitlines()
    figures: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    if figures.get("of") == 2 * ROUNDS:  # a side may measure all and then not end
        return figures
    if not figures and hosts > FEWER:
        figures = _side(side, FEWER)
        failed += "; " + figures.get("failed", "")
    return figures | ({"failed": failed.removesuffix("; ")} if failed else {})


def as_table(found: dict[str, dict[str, Any]]) -> str:
    """For people: medians, the longest in brackets, and how often stock's time is ours."""
    us, them = found[SIDES[0]], found[SIDES[1]]
    lines = ["all hosts of a side in one process, loopback; ms: median (longest)"]
    lines.append(f"{'':10}{SIDES[0]:>20}{SIDES[1]:>20}{'times':>8}")
    lines.append(f"{'hosts':10}{us.get('hosts')!s:>20}{them.get('hosts')!s:>20}")
    lines.append(f"{'rounds':10}{us.get('of', 0) // 2:>20}{them.get('of', 0) // 2:>20}")
    for name in ("join", "put", "get", "provide", "find"):
        cells, values = [], []
        for side in (us, them):
            value, most = side.get(f"{name}_ms"), side.get(f"{name}_max_ms")
            cells.append("-" if value is None else f"{value:.1f}" + (f" ({most:.0f})" if most is not None else ""))
            values.append(value)
        ratio = f"{values[1] / values[0]:.1f}" if None not in values and values[0] else "-"
        lines.append(f"{name:10}{cells[0]:>20}{cells[1]:>20}{ratio:>8}")
    lines.append(f"{'not found':10}{us.get('missed')!s:>20}{them.get('missed')!s:>20}")
    lines += [f"{side}: {figures['failed']}" for side, figures in found.items() if "failed" in figures]
    return "\n".join(lines)


def shortfalls(found: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each figure of ours that misses its target."""
    us = found[SIDES[0]]
    missed = [
        f"short: {k} takes {us.get(f'{k}_ms')} ms, target {t}" for k, t in TARGETS_MS.items() if us.get(f"{k}_ms", 1e9) >= t
    ]
    missed += [f"short: {us['failed']}"] if "failed" in us else []
    return missed + ([f"short: {us['missed']} of {us['of']} were not found"] if us.get("missed") else [])


def main() -> int:
    """One side: figures as lines of JSON."""
    logging.disable(logging.CRITICAL)
    side = {"swarmd": ours, "py-libp2p": stock}[sys.argv[1]]
    trio.run(side, int(sys.argv[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
