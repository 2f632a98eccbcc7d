"""Calls for minutes, while peers come and go: does memory, tasks or descriptors grow, does a call outlive its deadline?

    python -m bench.soak [--minutes 10] [--strangers 0.33] [--json] [--check]

One process with real transports on TCP loopback: a server, a caller that stays and loses its connection every few seconds, and
callers that join, call and leave, some of them under a new identity. All rest for each sample, caches are emptied and the
allocator gives back what is free, so that samples compare: what grows then is held. The stores of met peers are bounded, here at
KNOWN_PEERS: they are full long before the part of the run that counts, as a real daemon's are after its first thousand strangers.
"""

import ctypes
import gc
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import _lru_cache_wrapper
from pathlib import Path
from random import Random

import click
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemon.calls import Calls, InboundCall
from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import TransportError
from daemon.transport.options import TransportOptions
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

SAMPLES = 40
VISITORS = 4
IDENTITIES = 8
BULK_BYTES = 200 << 10
KNOWN_PEERS = 32
STUCK_SECONDS = 1.0
"""How far beyond its deadline a call may come back: this process is busy, and its loop is late. Seconds in which the process
got no CPU at all are no call's: a machine that stands still is told by a task that does nothing but tick."""

TICK_SECONDS = 0.1

GUARD_SECONDS = 20.0
MAX_RSS_MIB_PER_MINUTE = 0.5
MAX_COUNT_PER_MINUTE = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at rest, `at` seconds after the start."""

    at: float
    rss_mib: float
    tasks: int
    descriptors: int


@dataclass(slots=True)
class Soak:
    """What a run saw. `latest_s` is how far beyond its deadline the latest call came back; of seconds that the process got."""

    samples: list[Sample] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    strangers: float = 0.0
    """Share of visits under an identity that was never seen before."""
    visits: int = 0
    drops: int = 0
    stuck: int = 0
    latest_s: float = -1e9
    frozen_s: float = 0.0
    due: float = math.inf
    """When the next tick is."""
    worked: float = 0.0
    """CPU time of the process at the last one."""
    running: int = 0
    gate: trio.Event = field(default_factory=trio.Event)
    rest: trio.Event = field(default_factory=trio.Event)

    async def call(self, name: str, timeout: float, ask: Callable[[], Awaitable[None]]) -> None:
        """Make one call, count how it ended, and hold it to its deadline."""
        start, frozen = time.perf_counter(), self.frozen()
        outcome = "left"
        try:
            with trio.move_on_after(timeout + GUARD_SECONDS):
                await ask()
                outcome = "ok"
        except RemoteError as error:
            outcome = error.code.value
        finally:
            late = time.perf_counter() - start - timeout - (self.frozen() - frozen)
            self.latest_s = max(self.latest_s, late)
            self.stuck += late > STUCK_SECONDS
            self.outcomes[f"{name}: {outcome}"] += 1

    def frozen(self) -> float:
        """Seconds until now in which a tick was due, did not come, and the process did nothing instead."""
        worked = time.process_time() - self.worked
        return self.frozen_s + max(0.0, time.perf_counter() - self.due - worked)

    async def tick(self) -> None:
        """Notice when the process stands still."""
        while True:
            self.due, self.worked = time.perf_counter() + TICK_SECONDS, time.process_time()
            await trio.sleep(TICK_SECONDS)
            self.frozen_s = self.frozen()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One piece of work; none begins while a sample is taken."""
        await self.gate.wait()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if not self.running:
                self.rest.set()

    async def sample(self, start: float) -> None:
        """Wait until all rest, collect garbage, and look."""
        self.gate = trio.Event()
        self.rest = trio.Event()
        if self.running:
            await self.rest.wait()
        await trio.sleep(0.5)  # for the far ends of what was closed
        gc.collect()
        _give_back()
        self.samples.append(
            Sample(
                at=time.perf_counter() - start,
                rss_mib=_rss_mib(),
                tasks=trio.lowlevel.current_statistics().tasks_living,
                descriptors=len(os.listdir("/proc/self/fd")),
            )
        )
        self.gate.set()

    def slope(self, of: str) -> float:
        """Least-squares growth per minute over the last two thirds of the samples; the first fills caches."""
        taken = self.samples[len(self.samples) // 3 :]
        times, values = [one.at / 60 for one in taken], [float(getattr(one, of)) for one in taken]
        mean_time, mean_value = sum(times) / len(times), sum(values) / len(values)
        spread = sum((at - mean_time) ** 2 for at in times)
        return sum((at - mean_time) * (value - mean_value) for at, value in zip(times, values, strict=True)) / spread


def _rss_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _give_back() -> None:
    """Empty the caches, which are bounded and which these strangers do not fill, and return the allocator's free memory."""
    for found in gc.get_objects():
        if isinstance(found, _lru_cache_wrapper) and found.cache_parameters()["maxsize"] is not None:
            found.cache_clear()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


async def _echo(call: InboundCall) -> bytes:
    return call.body


async def _slow(call: InboundCall) -> None:
    await trio.sleep_forever()


async def _items(call: InboundCall) -> None:
    for _ in range(200):
        await call.send(bytes(64))


@asynccontextmanager
async def _node(key: Ed25519PrivateKey) -> AsyncIterator[tuple[Libp2pTransport, Calls]]:
    transport = Libp2pTransport(key, TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",), known_peers=KNOWN_PEERS))
    async with transport.running(), trio.open_nursery() as nursery:
        calls = Calls(transport)
        await nursery.start(calls.run)
        yield transport, calls
        nursery.cancel_scope.cancel()


async def _some_calls(soak: Soak, calls: Calls, server: PeerId) -> None:
    async def echo(size: int) -> None:
        if len(await calls.unary(server, "echo", bytes(size), timeout=5)) != size:
            raise click.ClickException("a reply was not the body that was sent")

    async def small() -> None:
        await echo(128)

    async def bulk() -> None:
        await echo(BULK_BYTES)

    async def slow() -> None:
        await calls.unary(server, "slow", b"", timeout=0.3)

    async def whole() -> None:
        async with calls.stream(server, "items", b"", timeout=5) as stream:
            async for _ in stream:
                pass

    async def part() -> None:
        async with calls.stream(server, "items", b"", timeout=5) as stream:
            async for _ in stream:
                return

    async with trio.open_nursery() as nursery:
        for name, timeout, ask in (("echo", 5.0, small), ("bulk echo", 5.0, bulk), ("slow", 0.3, slow), ("items", 5.0, whole)):
            for _ in range(4 if ask is small else 1):
                nursery.start_soon(soak.call, name, timeout, ask)
        nursery.start_soon(soak.call, "items left early", 5.0, part)


async def _visit(soak: Soak, server: PeerId, address: str, keys: list[Ed25519PrivateKey], rng: Random) -> None:
    while True:
        async with soak.turn():
            fresh = not keys or rng.random() < soak.strangers
            key = Ed25519PrivateKey.generate() if fresh else keys.pop()
            async with _node(key) as (transport, calls):
                with suppress(TransportError):
                    await transport.connect(server, [address])
                    with trio.move_on_after(rng.uniform(0.05, 1.0)):  # most leave in the middle of their calls
                        await _some_calls(soak, calls, server)
                    if rng.random() < 0.5:
                        await transport.disconnect(server)
            if not fresh:
                keys.insert(0, key)
            soak.visits += 1


async def _stay(soak: Soak, transport: Libp2pTransport, calls: Calls, server: PeerId, address: str) -> None:
    while True:
        async with soak.turn():
            with suppress(TransportError):
                await transport.connect(server, [address])
            await _some_calls(soak, calls, server)


async def _drop(soak: Soak, transport: Libp2pTransport, server: PeerId, rng: Random) -> None:
    while True:
        await trio.sleep(rng.uniform(0.5, 3.0))
        async with soak.turn():
            await transport.disconnect(server)
            soak.drops += 1


async def soak_for(minutes: float, strangers: float) -> Soak:
    """Run, and take `SAMPLES` samples at even distances."""
    soak, rng = Soak(strangers=strangers), Random(1)
    async with _node(Ed25519PrivateKey.generate()) as (serving, served), _node(Ed25519PrivateKey.generate()) as (staying, calls):
        for method, handler in (("echo", _echo), ("slow", _slow), ("items", _items)):
            served.serve(method, handler)
        server, address = serving.peer_id, serving.addresses()[0]
        keys = [Ed25519PrivateKey.generate() for _ in range(IDENTITIES)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(soak.tick)
            nursery.start_soon(_stay, soak, staying, calls, server, address)
            nursery.start_soon(_drop, soak, staying, server, rng)
            for _ in range(VISITORS):
                nursery.start_soon(_visit, soak, server, address, keys, rng)
            soak.gate.set()
            start = time.perf_counter()
            for number in range(1, SAMPLES + 1):
                await trio.sleep(max(1.0, start + number * minutes * 60 / SAMPLES - time.perf_counter()))
                await soak.sample(start)
            nursery.cancel_scope.cancel()
    return soak


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="How long.")
@click.option("--strangers", type=click.FloatRange(0, 1), default=0.33, show_default=True, help="Share of never seen visitors.")
@click.option("--json", "json_wanted", is_flag=True, help="Print every sample as JSON instead of the table.")
@click.option("--check", is_flag=True, help="Exit 1 where something grows or a call outlived its deadline.")
def main(minutes: float, strangers: float, json_wanted: bool, check: bool) -> None:
    """Soak calls and connections, and print what grew."""
    soak = trio.run(soak_for, minutes, strangers)
    bounds = {"rss_mib": MAX_RSS_MIB_PER_MINUTE, "tasks": MAX_COUNT_PER_MINUTE, "descriptors": MAX_COUNT_PER_MINUTE}
    slopes = {name: soak.slope(name) for name in bounds}
    short = [f"{name} grows by {slopes[name]:.2f} a minute" for name, bound in bounds.items() if slopes[name] > bound]
    short += [f"{soak.stuck} calls outlived their deadline"] if soak.stuck else []
    if json_wanted:
        samples = [asdict(sample) for sample in soak.samples]
        told = {
            "slopes_per_minute": slopes,
            "stuck": soak.stuck,
            "latest_s": soak.latest_s,
            "frozen_s": soak.frozen_s,
            "outcomes": soak.outcomes,
        }
        run = {"minutes": minutes, "visits": soak.visits, "drops": soak.drops}
        click.echo(json.dumps({**run, **told, "samples": samples}, indent=1))
    else:
        click.echo(_table(soak, slopes, bounds))
    for line in short if check else []:
        click.echo(f"short: {line}", err=True)
    if check and short:
        sys.exit(1)


def _table(soak: Soak, slopes: dict[str, float], bounds: dict[str, float]) -> str:
    lines = [
        f"{soak.visits} visits, {soak.drops} dropped connections, {soak.outcomes.total()} calls in {soak.samples[-1].at:.0f} s",
        f"{'':12}{'first':>9}{'middle':>9}{'last':>9}  per minute (last two thirds)",
    ]
    for name, bound in bounds.items():
        row = [float(getattr(soak.samples[place], name)) for place in (0, len(soak.samples) // 2, -1)]
        verdict = "ok" if slopes[name] <= bound else "GROWS"
        lines.append(f"{name:12}" + "".join(f"{value:9.1f}" for value in row) + f"  {slopes[name]:+.2f} (<= {bound:g}) {verdict}")
    lines.append(
        f"calls beyond their deadline: {soak.stuck}; the latest came {soak.latest_s:+.3f} s from its own; "
        f"the process stood still for {soak.frozen_s:.1f} s in all"
    )
    return "\n".join([*lines, *(f"  {count:7} {name}" for name, count in sorted(soak.outcomes.items()))])


if __name__ == "__main__":
    main()
