"""Does compressing big bodies pay? Calls with and without it over lines of given rates, alternating. Decides what is compared.

    python -m bench.packing [--rates 10,100,1000] [--rounds 5] [--json] [--check]

Each rate has its own pair of peers on loopback with a relay of bytes between them that passes no more than the rate each way, and
the round trip of a line of its kind. A body is prose of 128 KiB, as a long prompt; the reply is short.
"""

import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

import click
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemon.calls import Calls, InboundCall
from daemon.transport.host import Libp2pTransport
from daemon.transport.options import TransportOptions
from protocol.wire.ids import PeerId

BODY_BYTES = 128 << 10
DELAY_SECONDS = 0.005
"""One way: a round trip of 10 ms, as in one country."""

MOST_PACKED_MBIT = 100
"""Up to this rate it has to pay; a gigabit line says what it costs where a far peer has one."""

PIECE_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of one rate, in ms for a call; `ratio` is plain time to packed time."""

    mbit: float
    plain_ms: float
    packed_ms: float
    ratio: float


def prose(size: int) -> bytes:
    """Text that people wrote: our own documents and sources."""
    root = Path(__file__).resolve().parent.parent
    files = sorted([*root.glob("docs/*.md"), *root.glob("daemon/**/*.py"), *root.glob("*.md")])
    return b"\n".join(file.read_bytes() for file in files)[:size]


async def _pass(source: trio.SocketStream, target: trio.SocketStream, rate: float) -> None:
    """Bytes on their way: sent at `rate` bytes a second, delivered DELAY_SECONDS later."""
    send, receive = trio.open_memory_channel[tuple[float, bytes]](1 << 16)

    async def deliver() -> None:
        async for at, piece in receive:
            await trio.sleep_until(at)
            await target.send_all(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver)
        free_at = trio.current_time()
        while piece := await source.receive_some(PIECE_BYTES):
            free_at = max(free_at, trio.current_time()) + len(piece) / rate
            await send.send((free_at + DELAY_SECONDS, piece))
            await trio.sleep_until(free_at - 0.002)


@asynccontextmanager
async def _node() -> AsyncIterator[tuple[Libp2pTransport, Calls]]:
    transport = Libp2pTransport(Ed25519PrivateKey.generate(), TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",)))
    async with transport.running(), trio.open_nursery() as nursery:
        calls = Calls(transport)
        await nursery.start(calls.run)
        yield transport, calls
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def line(mbit: float) -> AsyncIterator[tuple[Calls, Calls, PeerId]]:
    """A caller, a server, and a line of `mbit` megabits a second each way between them."""
    async with _node() as (serving, served), _node() as (asking, calls), trio.open_nursery() as nursery:
        _, _, host, _, port, _, peer = serving.addresses()[0].split("/")

        async def on_near(near: trio.SocketStream) -> None:
            far = await trio.open_tcp_stream(host, int(port))
            async with near, far, trio.open_nursery() as pair:
                pair.start_soon(_pass, near, far, mbit * 125_000)
                await _pass(far, near, mbit * 125_000)
                pair.cancel_scope.cancel()

        listeners = await nursery.start(partial(trio.serve_tcp, on_near, 0, host="127.0.0.1"))
        near = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}/p2p/{peer}"
        await asking.connect(serving.peer_id, [near])

        async def length(call: InboundCall) -> bytes:
            return b"%d" % len(call.body)

        served.serve("length", length)
        yield calls, served, serving.peer_id
        nursery.cancel_scope.cancel()


async def compare(mbit: float, rounds: int) -> Row:
    """Medians over `rounds` calls each way of one rate."""
    body, taken = prose(BODY_BYTES), {False: list[float](), True: list[float]()}
    wanted = [False]
    async with line(mbit) as (calls, _, server):
        calls._packs = lambda peer: wanted[0]  # type: ignore[method-assign]  # before any link holds it
        for number in range(-1, rounds):
            for packs in (False, True) if number % 2 else (True, False):
                wanted[0] = packs
                start = time.perf_counter()
                reply = await calls.unary(server, "length", body, timeout=120)
                if int(reply) != len(body):
                    raise click.ClickException("the body did not arrive whole")
                if number >= 0:  # the first opens the link
                    taken[packs].append((time.perf_counter() - start) * 1000)
    plain, packed = median(taken[False]), median(taken[True])
    return Row(mbit, plain, packed, plain / packed)


@click.command()
@click.option("--rates", default="10,100,1000", show_default=True, help="Megabits per second, by commas.")
@click.option("--rounds", type=click.IntRange(min=3), default=7, show_default=True, help="Calls of each kind and rate.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the figures as JSON.")
@click.option("--check", is_flag=True, help=f"Exit 1 where it does not pay on a line of up to {MOST_PACKED_MBIT} Mbit/s.")
def main(rates: str, rounds: int, json_wanted: bool, check: bool) -> None:
    """Compare calls with and without compression."""
    rows = [trio.run(compare, float(rate), rounds) for rate in rates.split(",")]
    if json_wanted:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        trip = f"round trip {2000 * DELAY_SECONDS:.0f} ms"
        click.echo(f"128 KiB of prose up, a short reply, {trip}; medians of {rounds}, alternating")
        click.echo(f"{'Mbit/s':>8}{'plain ms':>11}{'packed ms':>11}{'ratio':>8}")
        for row in rows:
            click.echo(f"{row.mbit:8g}{row.plain_ms:11.1f}{row.packed_ms:11.1f}{row.ratio:8.2f}")
    missed = [row for row in rows if row.mbit <= MOST_PACKED_MBIT and row.ratio < 1]
    for row in missed if check else []:
        click.echo(f"short: compressing does not pay at {row.mbit:g} Mbit/s: {row.ratio:.2f}", err=True)
    if check and missed:
        sys.exit(1)


if __name__ == "__main__":
    main()
