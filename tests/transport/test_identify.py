"""What a peer says of itself: bytes that are no address, more of it than is kept, and more than is read."""

from typing import Any

import pytest
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from daemon.transport.host import Libp2pTransport
from daemon.transport.identify import MAX_ADDRESSES, MAX_IDENTIFY_BYTES
from daemon.transport.interface import TransportError
from dht.contacts import contact_of
from dht.kad_messages import FindNode

pytestmark = pytest.mark.live

PUSH = "/ipfs/id/push/1.0.0"
NO_ADDRESSES = (b"\xff\xff\xff", b"\x35\xff\xff\xff\xff", b"\x04\x01\x01\x01\x01\x06", b"\x2f\x01\x00", b"\xa5\x03\x02\xff\xff")
GOOD = Multiaddr("/ip4/127.0.0.1/tcp/9")


async def push(attacker: Libp2pTransport, host: Libp2pTransport, message: Identify) -> None:
    stream = await attacker.open_stream(host.peer_id, PUSH)
    await stream.send_all(encode_varint_prefixed(message.SerializeToString()))
    await stream.aclose()


def kept(host: Libp2pTransport, peer: Libp2pTransport) -> list[Multiaddr]:
    return list(host._host.get_peerstore().addrs(ID.from_base58(peer.peer_id)))


async def identified(host: Libp2pTransport, peer: Libp2pTransport, until: Any) -> None:
    await until(lambda: ID.from_base58(peer.peer_id) in host._host._identified_peers)


async def test_bytes_that_are_no_address_are_not_kept_and_end_nobody_who_dials(running: Any, until: Any) -> None:
    async with running(2) as (host, attacker):
        await attacker.connect(host.peer_id, host.addresses())
        await identified(host, attacker, until)
        await push(attacker, host, Identify(listen_addrs=[*NO_ADDRESSES, GOOD.to_bytes()]))
        await until(lambda: kept(host, attacker) == [GOOD])
        await attacker.disconnect(host.peer_id)
        await until(lambda: not host.paths())
        with pytest.raises(TransportError, match="could not be reached"):
            await host.connect(attacker.peer_id)
        assert await host._kademlia._walker.ask(contact_of(attacker.peer_id), FindNode(bytes(32))) is None


async def test_a_peer_is_known_by_few_short_addresses(running: Any, until: Any) -> None:
    async with running(2) as (host, attacker):
        await attacker.connect(host.peer_id, host.addresses())
        await identified(host, attacker, until)
        many = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}").to_bytes() for port in range(1, 1001)]
        long = Multiaddr("/ip4/127.0.0.1/tcp/1" + "/ws" * 200).to_bytes()
        await push(attacker, host, Identify(listen_addrs=[long, *many]))
        await until(lambda: len(kept(host, attacker)) == MAX_ADDRESSES - 1)


async def test_what_is_too_long_or_no_message_costs_the_stream_and_is_counted(running: Any, until: Any) -> None:
    async with running(2) as (host, attacker):
        await attacker.connect(host.peer_id, host.addresses())
        await identified(host, attacker, until)
        before = kept(host, attacker)
        await push(attacker, host, Identify(listen_addrs=[bytes(MAX_IDENTIFY_BYTES)]))
        await until(lambda: host.counters.handler_faults[PUSH] == 1)
        stream = await attacker.open_stream(host.peer_id, PUSH)
        await stream.send_all(b"\x04\x0a\xff\xff\xff")
        await until(lambda: host.counters.handler_faults[PUSH] == 2)
        assert kept(host, attacker) == before


async def test_both_sides_learn_protocols_addresses_and_where_they_are_seen(running: Any, until: Any) -> None:
    heard: list[None] = []
    async with running(2) as (host, other):
        host._relay.observations.heard = lambda: heard.append(None)
        await other.connect(host.peer_id, host.addresses())
        await identified(host, other, until)
        await identified(other, host, until)
        assert "/echo" in other._host.get_peerstore().get_protocols(ID.from_base58(host.peer_id))
        assert kept(host, other)
        assert heard
