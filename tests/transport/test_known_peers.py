"""Who is remembered once more peers were met than there is room for."""

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from daemon.transport.hardening import BoundedPeerStore
from daemon.transport.host import Libp2pTransport
from daemon.transport.options import TransportOptions


def test_the_oldest_are_forgotten_and_who_must_stay_stays() -> None:
    peers = [ID(bytes([0, 1, place])) for place in range(12)]
    store = BoundedPeerStore(4)
    store.keeps = lambda peer: peer in (peers[0], peers[2])
    store.add_protocols(peers[0], ["/x"])  # as ourselves: it has no address
    for peer in peers[1:]:
        store.add_addrs(peer, [Multiaddr("/ip4/127.0.0.1/tcp/4001")], 60)
    assert set(store.peer_data_map) == {peers[0], peers[2], *peers[-2:]}


async def test_who_met_more_than_it_remembers_is_still_identified(nursery: trio.Nursery) -> None:
    """With the stock rule the first to be forgotten was the box itself: its key was gone, and identify failed from then on."""
    few = TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",), known_peers=2)
    many = TransportOptions(listen=("/ip4/127.0.0.1/tcp/0",))
    server, staying = Libp2pTransport(Ed25519PrivateKey.generate(), few), Libp2pTransport(Ed25519PrivateKey.generate(), many)
    async with server.running(), staying.running():
        address = server.addresses()[0]
        await staying.connect(server.peer_id, [address])
        for _ in range(4):
            guest = Libp2pTransport(Ed25519PrivateKey.generate(), many)
            async with guest.running():
                await guest.connect(server.peer_id, [address])
                with trio.fail_after(10):
                    while server.peer_id not in guest.paths() or not _knows(guest, server):
                        await trio.sleep(0.02)
        assert server._host.counters.handler_faults["identify"] == 0
        assert not server._host.counters.handler_faults
        assert staying.peer_id in server.paths()


def _knows(guest: Libp2pTransport, server: Libp2pTransport) -> bool:
    """Whether identify told `guest` what `server` speaks."""
    store = guest._host.get_peerstore()
    return bool(store.get_protocols(ID.from_string(server.peer_id)))
