"""A relay's word on where a peer comes from, so that nobody can aim a punch at a third party. Tells no address."""

import logging
from typing import Any

import trio
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError

from daemon.transport.interface import TransportError
from daemon.transport.muxer import MuxedConnection
from daemon.transport.relay_hop import Hop
from daemon.transport.streams import Libp2pStream, open_stream, receive_message
from nat.punch_messages import WITNESS_PROTOCOL, WitnessReply, WitnessRequest
from protocol.wire.codec import encode, frame
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

WITNESS = TProtocol(WITNESS_PROTOCOL)
_MAX_BYTES = 512
_SECONDS = 3.0

log = logging.getLogger(__name__)


class Witnessing:
    """Both sides: answers for the circuits of our own relay, and asks the relay of a relayed connection."""

    def __init__(self, host: Any, hop: Hop) -> None:
        self._swarm = host.swarm
        self._hop = hop
        self._host = host

    async def handle(self, stream: Any) -> None:
        """Answer one request; only about a peer with whom the asker has a circuit through us."""
        asker: ID = stream.muxed_conn.peer_id
        own = Libp2pStream(PeerId(asker.to_base58()), stream.muxed_stream)
        with trio.fail_after(_SECONDS):
            request = await receive_message(own, WitnessRequest, _MAX_BYTES)
            peer = ID.from_base58(request.peer)
            yes = self._hop.joins(asker, peer) and request.host in self._hosts_of(peer)
            await own.send_all(frame(encode(WitnessReply(yes))))
        await own.aclose()

    def _hosts_of(self, peer: ID) -> set[str]:
        found = set()
        for conn in self._swarm.get_connections(peer):
            remote = conn.muxed_conn.get_remote_address()
            if remote is not None and conn.get_connection_type() != ConnectionType.RELAYED:
                found.add(remote[0])
        return found

    async def sees(self, relay: ID, peer: ID, host: str) -> bool:
        """Whether `relay` sees `peer` come from `host`; no where it does not answer in 3 s."""
        for conn in self._swarm.get_connections(relay):
            muxed = conn.muxed_conn
            if conn.is_closed or not isinstance(muxed, MuxedConnection):
                continue
            try:
                with trio.fail_after(_SECONDS):
                    asked = frame(encode(WitnessRequest(peer.to_base58(), host)))
                    stream = await open_stream(PeerId(relay.to_base58()), muxed, WITNESS, early=asked)
                    try:
                        return bool((await receive_message(stream, WitnessReply, _MAX_BYTES)).yes)
                    finally:
                        await stream.aclose()
            except (TransportError, RemoteError, PeerStoreError, trio.TooSlowError) as error:
                log.debug("the relay %s is no witness: %s", relay, error)
        return False
