"""What a peer says of itself: bytes that are no address, more of it than is kept, and more than is read."""

from typing import Any

import pytest
import varint
from hypothesis import given
from hypothesis import strategies as st
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr
from multiaddr.protocols import PROTOCOLS

from daemon.transport.addresses import text_of_address
from daemon.transport.dialing import is_relayed
from daemon.transport.host import Libp2pTransport
from daemon.transport.identify import MAX_ADDRESSES, MAX_IDENTIFY_BYTES
from daemon.transport.interface import TransportError
from daemon.transport.kademlia_wire import decode_answer
from daemon.transport.options import parse_address
from dht.contacts import contact_of
from dht.kad_messages import FindNode
from nat.addresses import dial_order
from protocol.wire.ids import PeerId

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


ZONE = b"\x2a\x06\x05\x7f % \x7f"
"""An `ip6zone` that the library writes as text, and fails at when it has read that."""


async def test_an_address_that_cannot_be_read_again_ends_no_question_and_no_dial(running: Any) -> None:
    async with running(1) as (host,):
        stranger = PeerId("12D3KooWBCLZNDXMrP581VcmTCbSBMaJXzEc9u9U5yyDA8eZkwTy")
        told = Message(type=Message.FIND_NODE)
        told.closerPeers.add(id=ID.from_base58(stranger).to_bytes(), addrs=[GOOD.to_bytes() + ZONE, GOOD.to_bytes()])
        (contact,) = decode_answer(told.SerializeToString(), FindNode(bytes(32))).closer
        assert contact.addresses == (str(GOOD),)
        assert await host._kademlia._walker.ask(contact, FindNode(bytes(32))) is None
        for offered in ("/ip6zone/127.0.0.1", "/ip4/127.0.0.1/tcp/1/ip6zone/\x05\x7f % \x7f", "/ip4/127.0.0.1/tcp/1/unix/%2f"):
            with pytest.raises(TransportError, match="is not a multiaddr"):
                await host.connect(stranger, [offered])
        public = Multiaddr("/ip4/1.2.3.4/tcp/2").to_bytes()
        found = host.relay.keeping._relay_addresses(ID.from_base58(stranger), [public + ZONE, public])
        assert found == (f"/ip4/1.2.3.4/tcp/2/p2p/{stranger}",)


PARTS = st.one_of(st.sampled_from([protocol.code for protocol in PROTOCOLS]).map(varint.encode), st.binary(max_size=12))


@given(st.sampled_from(["", "/ip4/1.2.3.4/tcp/1", "/dns4/a.b/tcp/1", "/ip6/2001::1/udp/1"]), st.lists(PARTS, max_size=6))
def test_what_is_taken_for_an_address_can_be_looked_at(head: str, parts: list[bytes]) -> None:
    text = text_of_address(Multiaddr(head).to_bytes() + b"".join(parts))
    for address in dial_order([text], ["/ip4/9.9.9.9/tcp/1"]):
        read = Multiaddr(address)
        assert is_relayed(read) in (True, False)
        assert str(read)
        assert parse_address(address) == read
