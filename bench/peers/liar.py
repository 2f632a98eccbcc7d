"""A peer that shares a file and sends other bytes of the right length: real transport, real calls, false content.

python -m bench.peers.liar FILE ADDRESS        joins through ADDRESS, prints its own address, serves until it is ended
"""

import os
import sys
import tempfile
from pathlib import Path
from random import SystemRandom

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.calls import Calls
from daemon.content.exchange import ContentExchange, ContentPolicy
from daemon.transport.host import Libp2pTransport
from daemon.transport.options import TransportOptions
from protocol.wire.ids import PeerId


async def lie(file: Path, joined: str) -> None:
    """Share `file`, and lie about every chunk."""
    options = TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",))
    async with Libp2pTransport(Ed25519PrivateKey.generate(), options).running() as transport, trio.open_nursery() as nursery:
        calls = Calls(transport)
        with tempfile.TemporaryDirectory(prefix="bench-liar-") as folder:
            exchange = ContentExchange(Path(folder) / "content", calls, transport, ContentPolicy(0, 0.0), SystemRandom())
            honest = exchange.serving._read
            exchange.serving._read = lambda address, index: os.urandom(len(honest(address, index)))  # type: ignore[method-assign]
            await nursery.start(calls.run)
            await nursery.start(exchange.run)
            await transport.connect(PeerId(joined.rpartition("/p2p/")[2]), (joined,))
            await exchange.seed(file)
            print(transport.addresses()[0], flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(lie, Path(sys.argv[1]), sys.argv[2])
