"""Builds a py-libp2p host that one bad peer cannot end: Noise and Yamux only, contained handlers, bounded streams.

What it closes was measured on the stock 0.8.1 host, and tests/transport/test_hardening.py shows each on stock and on this one.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError
from libp2p.abc import IMuxedConn, INetStream, IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import StreamHandlerFn, TMuxerClass, TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import AddrsFactory, BasicHost
from libp2p.identity.identify.identify import ID as IDENTIFY
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from libp2p.protocol_muxer.exceptions import MultiselectClientError, MultiselectError
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.transport.exceptions import MuxerUpgradeFailure, SecurityUpgradeFailure
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from daemon.transport.addresses import with_peer
from daemon.transport.dial_errors import causes
from daemon.transport.identify import MAX_ADDRESSES, is_readable, keep, observed, receive_identify
from daemon.transport.interface import MeshGate, TransportError
from daemon.transport.mesh_noise import MESH_NOISE, MeshNoise, NotAdmitted
from daemon.transport.muxed_stream import MuxedStream
from daemon.transport.muxer import MuxedConnection
from daemon.transport.muxer_settings import InboundSlots, MuxerSettings, ReceiveMemory
from daemon.transport.noise_session import NOISE, NoiseSecurity
from daemon.transport.options import TransportCounters, TransportOptions
from daemon.transport.swarm import HardenedSwarm
from daemon.transport.yamux_frames import YamuxConfig
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId

log = logging.getLogger(__name__)

MAX_PROTOCOL_CHARS = 256
MAX_PROTOCOLS_PER_PEER = 128


class BoundedPeerStore(PeerStore):
    """What is said of peers, the newest of it: the stock one keeps 1000 addresses and any number of protocols of each, and bytes
    that are no address, which it raises at whoever dials them.

    Of more than `most` peers it forgets the oldest. The stock one begins with those that have no addresses, the first of which is
    ourselves: after a thousand strangers nobody could identify us any more. `keeps` says who stays whatever comes.
    """

    def __init__(self, most: int) -> None:
        super().__init__(max_records=2 * most, max_peers=most)
        self.keeps: Callable[[ID], bool] = lambda _: False

    def _enforce_peer_limit(self) -> None:
        surplus = len(self.peer_data_map) - self.max_peers
        if surplus > 0:
            for peer in [peer for peer in self.peer_data_map if not self.keeps(peer)][:surplus]:
                self.peer_record_map.pop(peer, None)
                del self.peer_data_map[peer]

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        try:
            known = list(self.addrs(peer_id))
        except PeerStoreError:
            known = []
        together = list(dict.fromkeys([*known, *filter(is_readable, addrs)]))
        if len(together) > MAX_ADDRESSES:
            self.clear_addrs(peer_id)
        super().add_addrs(peer_id, together[-MAX_ADDRESSES:], ttl)

    def add_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        kept = [protocol for protocol in protocols[:MAX_PROTOCOLS_PER_PEER] if len(protocol) <= MAX_PROTOCOL_CHARS]
        super().add_protocols(peer_id, kept)


class NoiseYamuxUpgrader(TransportUpgrader):
    """Offers Noise and Yamux and nothing else; the stock muxer negotiation ignores any Yamux but its own."""

    def __init__(self, security: NoiseSecurity | MeshNoise, settings: MuxerSettings) -> None:
        muxers: dict[TProtocol, TMuxerClass] = {TProtocol(YAMUX): MuxedConnection}
        self._private = isinstance(security, MeshNoise)
        super().__init__({MESH_NOISE if self._private else NOISE: security}, muxers)
        self._settings = settings

    async def upgrade_security(self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None) -> ISecureConn:
        try:
            return await super().upgrade_security(raw_conn, is_initiator, peer_id)
        except SecurityUpgradeFailure as error:
            if not isinstance(error.__cause__, (MultiselectError, MultiselectClientError)):
                raise
            other = "it is not in our private mesh" if self._private else "it speaks no Noise, as the peers of a private mesh"
            raise SecurityUpgradeFailure(other) from None

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        try:
            await self.muxer_multistream.select_transport(conn)
        except (MultiselectError, MultiselectClientError) as error:
            refused = next((cause for cause in causes(error) if isinstance(cause, NotAdmitted)), None)
            raise MuxerUpgradeFailure("the peer does not speak Yamux") from refused or error
        return MuxedConnection(conn, peer_id, self._settings)


class HardenedHost(BasicHost):
    """A host whose stream handlers may fail: what leaves one is counted and costs that stream alone."""

    def __init__(self, swarm: HardenedSwarm, slots: InboundSlots, addresses: AddrsFactory) -> None:
        self.swarm = swarm
        self.slots = slots
        self.counters = swarm.counters
        self._served: Counter[tuple[ID, str]] = Counter()
        self._tasks: trio.Nursery | None = None
        super().__init__(swarm, addrs_factory=addresses)
        for protocol, handler in list(self.multiselect.handlers.items()):
            if protocol is not None and handler is not None:
                self.set_stream_handler(protocol, handler)
        self.set_stream_handler(ID_PUSH, self._take_push)

    def set_stream_handler(self, protocol_id: TProtocol, stream_handler: StreamHandlerFn) -> None:
        async def bounded(stream: INetStream) -> None:
            peer = stream.muxed_conn.peer_id
            served = (peer, str(protocol_id))
            if self._served[served] >= self._limit_per_protocol(peer):
                self.counters.streams_refused["protocol"] += 1
                await stream.reset()
                return
            self._served[served] += 1
            try:
                await stream_handler(stream)
            finally:
                self._served[served] -= 1
                if not self._served[served]:
                    del self._served[served]

        super().set_stream_handler(protocol_id, bounded)

    def _limit_per_protocol(self, peer: ID) -> int:
        options = self.swarm.options
        most = self.slots.limit_of(peer)
        return most if most > options.max_inbound_streams_per_peer else options.max_inbound_streams_per_protocol

    def get_addrs(self) -> list[Multiaddr]:
        """What identify tells others. Unlike the library's, it leaves the relay's id in a relayed address."""
        candidates = self.get_transport_addrs()
        if self._observed_addr_manager is not None:
            candidates += self._observed_addr_manager.addrs()
        chosen = candidates if self._addrs_factory is None else self._addrs_factory(candidates)
        peer = PeerId(str(self.get_id()))
        return [Multiaddr(with_peer(address, peer)) for address in chosen]

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:  # noqa: BLE001 - what a stranger can cause must not leave the stream
            protocol = str(net_stream.get_protocol() or "negotiation")[:MAX_PROTOCOL_CHARS]
            if not net_stream.muxed_conn.is_closed:
                self.counters.handler_faults[protocol] += 1
                self.counters.streams_reset += 1
            level = logging.DEBUG if _is_peers_fault(error) else logging.WARNING
            log.log(level, "the handler of %s failed for %s: %r", protocol, net_stream.muxed_conn.peer_id, error)
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await net_stream.reset()
        finally:
            muxed = getattr(net_stream, "muxed_stream", None)
            if isinstance(muxed, MuxedStream):
                muxed.handled()

    async def run_tasks(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Host the library's background work, which it would start as system tasks: an error in one ends the process."""
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._tasks = None

    def _schedule_identify(self, peer_id: ID, *, reason: str) -> None:
        known = peer_id == self.get_id() or peer_id in self._identify_inflight or peer_id in self._identified_peers
        if self._tasks is None or known or not self._should_identify_peer(peer_id):
            return
        self._identify_inflight.add(peer_id)
        self._tasks.start_soon(self._identify_contained, peer_id, reason)

    async def _identify_contained(self, peer_id: ID, reason: str) -> None:
        try:
            with trio.move_on_after(self.swarm.options.stream_open_timeout * 2):
                await self._identify_peer(peer_id, reason=reason)
        except Exception as error:  # noqa: BLE001 - the peer's answer decides what is raised here
            self.counters.handler_faults["identify"] += 1
            log.debug("identify of %s failed: %r", peer_id, error)
        finally:
            self._identify_inflight.discard(peer_id)

    async def _identify_peer(self, peer_id: ID, *, reason: str) -> None:
        connections = self.swarm.get_connections(peer_id)
        if not connections:
            return
        try:
            stream = await self.new_stream(peer_id, [IDENTIFY])
        except Exception as error:  # noqa: BLE001 - it may have left already, in many ways
            log.debug("no identify stream to %s (%s): %r", peer_id, reason, error)
            return
        try:
            message = await receive_identify(stream)
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()
        keep(self.peerstore, peer_id, message)
        if self.swarm.get_connections(peer_id):
            self._identified_peers[peer_id] = reason
        address, over, heard = observed(message), connections[0], self._observed_addr_manager
        if address is not None and heard is not None and over.get_connection_type() != ConnectionType.RELAYED:
            heard.record_observation(over, address, self.get_transport_addrs())

    async def _take_push(self, stream: INetStream) -> None:
        keep(self.peerstore, stream.muxed_conn.peer_id, await receive_identify(stream))
        await stream.close()


def build_host(
    key: Ed25519PrivateKey,
    options: TransportOptions,
    counters: TransportCounters,
    addresses: AddrsFactory,
    gate: MeshGate | None = None,
) -> HardenedHost:
    """A host that is ready to `run`; nothing listens yet. With a `gate` it speaks to members of that private mesh alone."""
    key_pair = _key_pair(key)
    peer_id = ID.from_pubkey(key_pair.public_key)
    peerstore = BoundedPeerStore(options.known_peers)
    peerstore.add_key_pair(peer_id, key_pair)

    def refused(_peer: ID) -> None:
        counters.streams_refused["peer"] += 1

    slots = InboundSlots(options.max_inbound_streams_per_peer)
    settings = MuxerSettings(
        yamux=YamuxConfig(options.max_inbound_streams_per_relay, options.max_outbound_streams, options.max_stream_window),
        memory=ReceiveMemory(options.receive_memory, options.receive_memory // options.max_connections),
        send_queue=options.send_queue,
        keepalive_interval=options.keepalive_interval,
        keepalive_timeout=options.keepalive_timeout,
        slots=slots,
        on_stream_refused=refused,
    )

    def noise_failed(kind: str) -> None:
        log.debug("a Noise handshake failed: %s", kind)

    security = NoiseSecurity(key_pair, noise_failed) if gate is None else MeshNoise(key, key_pair, gate, noise_failed)
    upgrader = NoiseYamuxUpgrader(security, settings)
    swarm = HardenedSwarm(peer_id, peerstore, upgrader, options, counters)
    peerstore.keeps = lambda peer: peer == peer_id or peer in swarm.connections
    return HardenedHost(swarm, slots, addresses)


def quiet_library_logs() -> None:
    """Keep py-libp2p off stderr: its loggers and its records on the root logger go to ours at debug level. Idempotent."""
    library = logging.getLogger("libp2p")
    if not any(isinstance(handler, _ToDebug) for handler in library.handlers):
        library.addHandler(_ToDebug())
    library.propagate = False
    # Its hot paths format a record per frame at debug level, so that level stays off at the source.
    library.setLevel(logging.WARNING)
    root = logging.getLogger()
    if not root.handlers and logging.lastResort is not None:
        # logging.warning(), which the library calls, would otherwise install a handler of its own on the root logger.
        root.addHandler(logging.lastResort)
    if _not_from_library not in root.filters:
        root.addFilter(_not_from_library)


class _ToDebug(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.debug("%s: %s", record.name, record.getMessage().splitlines()[:1])


def _not_from_library(record: logging.LogRecord) -> bool:
    if "/libp2p/" not in record.pathname.replace("\\", "/"):
        return True
    if record.levelno > logging.DEBUG:
        log.debug("libp2p: %s", record.getMessage().splitlines()[:1])
    return False


def _is_peers_fault(error: Exception) -> bool:
    return isinstance(error, (BaseLibp2pError, DecodeError, RemoteError, TransportError, trio.TooSlowError, EOFError))


def _key_pair(key: Ed25519PrivateKey) -> KeyPair:
    return create_new_key_pair(key.private_bytes_raw())
