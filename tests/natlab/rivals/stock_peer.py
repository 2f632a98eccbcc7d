"""A relay or a peer of py-libp2p as it is shipped, with its own circuit relay and DCUtR: prints who it is, answers JSON lines.

Usage: stock_peer.py PORT [RELAY [TARGET]]; without a relay it is one. None of this is on by default in the library: its limits
are raised, and the reservation is made right after connecting, since it would look for relays every 300 s alone.
"""

import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
from libp2p.relay.circuit_v2.dcutr import DCUtRProtocol
from libp2p.relay.circuit_v2.protocol import CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.transport import CircuitV2Transport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

ECHO = TProtocol("/natlab/echo/1")
HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
LIMITS = RelayLimits(duration=3600, data=1 << 30, max_circuit_conns=64, max_reservations=64)
IDENTIFY_SECONDS = 0.5
RETRY_SECONDS = 1.0


async def echo(stream: Any) -> None:
    try:
        await stream.write(await stream.read(64))
        await stream.close()
    except StreamError:
        await stream.reset()


class Peer:
    """One host and its relay services."""

    def __init__(self) -> None:
        self.host = new_host(key_pair=create_new_key_pair())
        self.transport: CircuitV2Transport | None = None

    async def run(self, stack: AsyncExitStack, port: str, relay: str | None) -> None:
        await stack.enter_async_context(self.host.run([Multiaddr(f"/ip4/0.0.0.0/tcp/{port}")]))
        self.host.set_stream_handler(ECHO, echo)
        protocol = CircuitV2Protocol(self.host, limits=LIMITS, allow_hop=relay is None)
        await stack.enter_async_context(background_trio_service(protocol))
        client = RelayRole.STOP | RelayRole.CLIENT
        config = RelayConfig(roles=client | RelayRole.HOP if relay is None else client, limits=LIMITS)
        self.transport = CircuitV2Transport(self.host, protocol, config)
        if relay is not None:
            await stack.enter_async_context(background_trio_service(DCUtRProtocol(self.host)))
            await self._reserve(relay)

    async def _reserve(self, relay: str) -> None:
        known = info_from_p2p_addr(Multiaddr(relay))
        await self.host.connect(known)
        await trio.sleep(IDENTIFY_SECONDS)
        stream = await self.host.new_stream(known.peer_id, [HOP])
        async with trio.open_nursery() as nursery:
            await self.transport.reserve(stream, known.peer_id, nursery)
            nursery.cancel_scope.cancel()

    async def meet(self, target: str) -> None:
        """Dial over the relay until it succeeds."""
        peer = ID.from_base58(target.rsplit("/", 1)[1])
        while peer not in self.host.get_network().connections:
            try:
                await self.transport.dial(Multiaddr(target))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                print(f"no relayed connection yet: {error!r}", file=sys.stderr)
                await trio.sleep(RETRY_SECONDS)

    async def answer(self, ask: str, peer: str) -> Any:
        target = ID.from_base58(peer)
        if ask == "paths":
            live = self.host.get_network().connections.get(target, [])
            return [str(address) for conn in live for address in conn.get_transport_addresses()]
        try:
            with trio.fail_after(10):
                stream = await self.host.new_stream(target, [ECHO])
                await stream.write(b"x" * 64)
                return {"right": await stream.read(64) == b"x" * 64}
        except Exception as error:  # noqa: BLE001 - that is the result
            return {"right": False, "why": repr(error)[:200]}


async def main() -> None:
    port, relay, target = (*sys.argv[1:], None, None)[:3]
    async with AsyncExitStack() as stack:
        peer = Peer()
        await peer.run(stack, port, relay)
        print(json.dumps({"peer": str(peer.host.get_id())}), flush=True)
        async with trio.open_nursery() as nursery:
            if target is not None:
                nursery.start_soon(peer.meet, target)
            while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                print(json.dumps(await peer.answer(**json.loads(line))), flush=True)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
