"""Gossip, records and relaying as the daemon uses them: through the transport, over real sockets on loopback."""

from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.transport.host import Libp2pTransport
from daemon.transport.interface import GossipHandler, PathKind, TransportError
from daemon.transport.options import TransportOptions
from dht.record_store import Opened
from protocol.wire.errors import malformed
from protocol.wire.ids import PeerId

pytestmark = [pytest.mark.live, pytest.mark.slow]


def opened(key: str, value: bytes, wall: int) -> Opened:
    if not key.startswith("/swarmd/") or value == b"bad":
        raise malformed("no record")
    return Opened((len(value), 0, value), wall + 60_000)


def transport(seed: int, **options: Any) -> Libp2pTransport:
    chosen = TransportOptions(**{"listen": ("/ip4/127.0.0.1/tcp/0",), **options})
    return Libp2pTransport(Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32), chosen, opened)


async def test_gossip_reaches_every_subscriber_with_its_author(until: Any) -> None:
    heard: list[tuple[str, PeerId, bytes]] = []
    a, b, c = (transport(seed) for seed in (1, 2, 3))

    def listener(name: str) -> GossipHandler:
        def hear(who: PeerId, payload: bytes) -> bool:
            heard.append((name, who, payload))
            return True

        return hear

    async with a.running(), b.running(), c.running():
        for name, one in (("a", a), ("b", b), ("c", c)):
            await one.subscribe("/swarmd/presence/1", listener(name))
        await b.connect(a.peer_id, a.addresses())
        await c.connect(a.peer_id, a.addresses())
        with trio.fail_after(10):
            while {name for name, _, _ in heard} < {"a", "c"}:
                await b.publish("/swarmd/presence/1", b"here I am")
                await trio.sleep(0.2)
        assert {(who, payload) for _, who, payload in heard} == {(b.peer_id, b"here I am")}


async def test_records_and_providers_are_found_by_others() -> None:
    a, b, c = (transport(seed) for seed in (1, 2, 3))
    async with a.running(), b.running(), c.running():
        await b.connect(a.peer_id, a.addresses())
        await c.connect(a.peer_id, a.addresses())
        await b.put_record("/swarmd/offer/b", b"an offer")
        assert await c.get_record("/swarmd/offer/b") == b"an offer"
        with pytest.raises(TransportError):
            await b.put_record("/swarmd/offer/b", b"bad")
        await b.provide("/swarmd/model/tiny")
        found = await c.find_providers("/swarmd/model/tiny")
        assert found[b.peer_id]


async def test_a_peer_is_served_through_a_relay(echoes: Any, until: Any) -> None:
    hub = transport(1, serve_relay=True)
    async with hub.running():
        hidden = transport(2, relays=(hub.addresses()[0],), punch=False)
        visitor = transport(3, punch=False)

        async def echo(stream: Any) -> None:
            while received := await stream.receive_some():
                await stream.send_all(received)

        hidden.handle("/echo", echo)
        async with hidden.running(), visitor.running():
            await until(lambda: any("/p2p-circuit/" in address for address in hidden.addresses()))
            assert "/p2p-circuit/" in hidden.addresses()[-1]
            assert hidden.addresses()[-1].endswith(f"/p2p/{hidden.peer_id}")
            assert hidden._stream_limit(hidden._host.swarm.get_connections()[0].muxed_conn.peer_id) > 100
            await visitor.connect(hidden.peer_id, [hidden.addresses()[-1]])
            assert visitor.paths()[hidden.peer_id].kind == PathKind.RELAYED
            assert "/p2p-circuit" in visitor.paths()[hidden.peer_id].address
            assert await echoes(visitor, hidden.peer_id, b"over the relay" * 1000)
            assert visitor.service_counters().keys() == {"gossip", "kademlia", "relay", "punch", "paths"}
