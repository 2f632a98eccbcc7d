"""What peers say of themselves by identify: read within bounds, and what of it is kept. Decides nothing on it and answers nobody.

In the library's place, which keeps addresses that are none and fall apart where they are dialled, a thousand of them one by one
(a seventh of a second), and a thousand of any size in a cache for good.
"""

from contextlib import suppress
from typing import Any

import trio
from libp2p.abc import IPeerStore
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from daemon.transport.addresses import text_of_address
from daemon.transport.streams import receive_protobuf

MAX_IDENTIFY_BYTES = 32 << 10
"""Of one message; go-libp2p takes 8 KiB of each part."""

MAX_ADDRESSES = 32
ADDRESS_SECONDS = 7200
READ_SECONDS = 10.0


def is_readable(address: Multiaddr) -> bool:
    """Whether `address` is one at all: the library keeps any bytes, and raises where they are looked at."""
    return bool(text_of_address(address.to_bytes()))


async def receive_identify(stream: Any) -> Identify:
    """The one message that comes; raises as `receive_protobuf`, and trio.TooSlowError."""
    with trio.fail_after(READ_SECONDS):
        return await receive_protobuf(stream, Identify, MAX_IDENTIFY_BYTES)


def keep(peerstore: IPeerStore, peer: ID, message: Identify) -> None:
    """Replace what is known of `peer` by what it says; the key is in its id, and a signed record would say the same again."""
    if message.listen_addrs:
        with suppress(PeerStoreError):
            peerstore.clear_addrs(peer)
        peerstore.add_addrs(peer, [Multiaddr(raw) for raw in message.listen_addrs[:MAX_ADDRESSES]], ADDRESS_SECONDS)
    if message.protocols:
        with suppress(PeerStoreError):
            peerstore.clear_protocol_data(peer)
        peerstore.add_protocols(peer, message.protocols)


def observed(message: Identify) -> Multiaddr | None:
    """Where the peer sees us; None where it does not say, or says no address."""
    address = Multiaddr(message.observed_addr)
    return address if message.observed_addr and is_readable(address) else None
