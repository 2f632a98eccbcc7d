"""From a relayed to a direct connection: DCUtR sessions and TCP simultaneous open from the listening port.

Decides when to try and which role to take; the relayed connection keeps serving meanwhile, and for a grace period after.
"""

import ipaddress
import logging
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch
from multiaddr import Multiaddr

from daemon.transport.interface import PathKind, TransportError
from daemon.transport.relay_hop import RelayOptions, direct_addresses, quietly_reset, receive, send
from nat.addresses import Reach, dial_order, parse, reach_of, without_peer

DCUTR = TProtocol("/libp2p/dcutr")
MAX_ADDRESSES = 8
_GLARE_SECONDS = 1.5
_UNILATERAL_SECONDS = 3.0

log = logging.getLogger(__name__)


class Puncher:
    """Upgrades relayed connections. The side that accepted the relayed connection starts (DCUtR), so roles never race."""

    def __init__(self, host: Any, options: RelayOptions) -> None:
        self._host = host
        self._swarm = host.swarm
        self._options = options
        self._under_way: set[ID] = set()
        self._changed = trio.Event()
        self._swarm.watchers.append(self._watch)
        self.succeeded = 0
        self.failed = 0

    async def upgrade(self, peer: ID) -> None:
        """Try for a direct connection to a peer that reached us over a relay; raises nothing."""
        if peer in self._under_way:
            return
        self._under_way.add(peer)
        try:
            await self._upgrade(peer)
        except Exception as error:  # noqa: BLE001 - the relayed connection serves on, whatever happened to this attempt
            log.debug("no direct connection to %s: %r", peer, error)
        finally:
            self._under_way.discard(peer)
        if self._direct(peer):
            self.succeeded += 1
            await self._retire_relayed(peer)
        else:
            self.failed += 1

    async def handle(self, stream: Any) -> None:
        """Answer a DCUtR session: exchange addresses, then dial when told to, as the connection's client."""
        peer: ID = stream.muxed_conn.peer_id
        with trio.fail_after(2 * self._options.punch_timeout):
            request = await receive(stream, HolePunch)
            if request.type != HolePunch.CONNECT:
                raise TransportError("a DCUtR session starts with CONNECT")
            await send(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._candidates()))
            if (await receive(stream, HolePunch)).type != HolePunch.SYNC:
                raise TransportError("a DCUtR session goes on with SYNC")
        await stream.close()
        await self._punch(peer, self._targets(request.ObsAddrs), responder=False)

    async def _upgrade(self, peer: ID) -> None:
        await self._dial_known(peer)
        for attempt in range(self._options.punch_attempts):
            if self._direct(peer) or not self._connected(peer):
                return
            await self._session(peer)
            if not self._direct(peer):
                await trio.sleep(2.0**attempt)

    async def _dial_known(self, peer: ID) -> None:
        """A plain dial first: a peer with an open port needs no punch."""
        try:
            known = [str(address) for address in self._host.get_peerstore().addrs(peer)]
        except PeerStoreError:
            return
        ours = [str(address) for address in self._host.get_addrs()]
        addresses = [Multiaddr(text) for text in dial_order(known, ours) if reach_of(text) is not Reach.RELAYED]
        with trio.move_on_after(_UNILATERAL_SECONDS):
            async with trio.open_nursery() as nursery:
                for address in addresses[:MAX_ADDRESSES]:
                    nursery.start_soon(self._dial, peer, address, False, None, nursery.cancel_scope)

    async def _session(self, peer: ID) -> None:
        stream = await self._host.new_stream(peer, [DCUTR])
        try:
            with trio.fail_after(2 * self._options.punch_timeout):
                sent = trio.current_time()
                await send(stream, HolePunch(type=HolePunch.CONNECT, ObsAddrs=self._candidates()))
                answer = await receive(stream, HolePunch)
                if answer.type != HolePunch.CONNECT:
                    raise TransportError("a DCUtR session is answered with CONNECT")
                half = (trio.current_time() - sent) / 2
                await send(stream, HolePunch(type=HolePunch.SYNC))
                await trio.sleep(min(half, 2.0))
            await self._punch(peer, self._targets(answer.ObsAddrs), responder=True)
        finally:
            with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                await quietly_reset(stream)

    async def _punch(self, peer: ID, targets: list[Multiaddr], responder: bool) -> None:
        """Dial every target from our listening port until one connection stands.

        The session's initiator takes the Noise responder's role, as both SYNs may merge into one connection. Where only our SYN
        arrives, the other listener is a responder too and both would wait: after a while we dial as a client.
        """
        already = self._direct(peer)
        with trio.move_on_after(self._options.punch_timeout) as scope:
            async with trio.open_nursery() as nursery:
                for target in targets:
                    nursery.start_soon(self._dial, peer, target, responder, PathKind.PUNCHED, scope)
                nursery.start_soon(self._until_direct, peer, scope)
                if responder:
                    await trio.sleep(_GLARE_SECONDS)
                    for target in targets:
                        nursery.start_soon(self._dial, peer, target, False, PathKind.PUNCHED, scope)
        if not already:
            for conn in self._direct(peer):
                if conn.muxed_conn.path_kind is None:  # type: ignore[attr-defined]
                    conn.muxed_conn.path_kind = PathKind.PUNCHED  # type: ignore[attr-defined]

    async def _dial(self, peer: ID, address: Multiaddr, responder: bool, kind: PathKind | None, won: trio.CancelScope) -> None:
        source = source_for(self._swarm, address)
        try:
            if responder:
                conn = await self._swarm.dial_addr_as_responder(address, peer, source)
            else:
                conn = await self._swarm._dial_addr_single_attempt(address, peer, source)
        except Exception as error:  # noqa: BLE001 - most dials of a punch fail
            log.debug("a dial to %s failed: %r", address, error)
            return
        conn.muxed_conn.path_kind = kind
        won.cancel()

    async def _until_direct(self, peer: ID, won: trio.CancelScope) -> None:
        while not self._direct(peer):
            await self._changed.wait()
        won.cancel()

    def _watch(self, _conn: INetConn, opened: bool) -> None:
        if opened:
            self._changed.set()
            self._changed = trio.Event()

    async def _retire_relayed(self, peer: ID) -> None:
        await trio.sleep(self._options.relayed_grace)
        if self._direct(peer):
            for conn in self._swarm.get_connections(peer):
                if conn.get_connection_type() == ConnectionType.RELAYED:
                    await conn.close()

    def _candidates(self) -> list[bytes]:
        """Where others may reach us: as observed, as a port-preserving NAT would map it, and as we listen; bare multiaddrs."""
        listening = direct_addresses(self._host)
        observed = [without_peer(str(address)) for address in self._host._observed_addr_manager.addrs(min_observers=1)]
        observed = [address for address in observed if reach_of(address) is not Reach.RELAYED]
        ports = {endpoint.port for endpoint in map(parse, listening) if endpoint is not None}
        guessed = ["/".join([*address.split("/")[:4], str(port)]) for address in observed for port in sorted(ports)]
        found = [address for address in (*observed, *guessed, *listening) if reach_of(address) is not Reach.NOWHERE]
        return [Multiaddr(address).to_bytes() for address in dict.fromkeys(found)][: 2 * MAX_ADDRESSES]

    def _targets(self, raw: Any) -> list[Multiaddr]:
        texts = []
        for entry in raw[: 2 * MAX_ADDRESSES]:
            try:
                texts.append(str(Multiaddr(entry)))
            except Exception as error:  # noqa: BLE001 - the library raises many kinds for bytes that are no multiaddr
                log.debug("not an address: %r", error)
        ours = [str(address) for address in self._host.get_addrs()]
        return [Multiaddr(text) for text in dial_order(texts, ours) if reach_of(text) is not Reach.RELAYED][:MAX_ADDRESSES]

    def _connected(self, peer: ID) -> bool:
        return any(not conn.is_closed for conn in self._swarm.get_connections(peer))

    def _direct(self, peer: ID) -> list[INetConn]:
        connections = self._swarm.get_connections(peer)
        return [conn for conn in connections if not conn.is_closed and conn.get_connection_type() != ConnectionType.RELAYED]


def source_for(swarm: Any, target: Multiaddr) -> tuple[str, int] | None:
    """The (IP, port) we listen on in the target's family, to dial from; None where there is none or it could not reach there."""
    endpoint = parse(str(target))
    if endpoint is None:
        return None
    try:
        wanted = ipaddress.ip_address(endpoint.host)
    except ValueError:
        return None
    for listener in swarm.listeners.values():
        for address in listener.get_addrs():
            own = parse(str(address))
            ip = ipaddress.ip_address(own.host) if own is not None else None
            if own is None or ip is None or ip.version != wanted.version or own.transport != "tcp":
                continue
            if ip.is_unspecified or ip.is_loopback == wanted.is_loopback:
                return own.host, own.port
    return None
