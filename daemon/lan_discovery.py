"""mDNS on the local network, as libp2p specifies it (`_p2p._udp.local`, TXT `dnsaddr=`). Says that we are there, hears of others.

It speaks only on interfaces with a private address and only of addresses that others there can dial. What it hears is anybody's
word: the handshake says who is there. A private mesh has a service name of its own, and the name says nothing but the mesh's id.
"""

import ipaddress
import secrets
from collections.abc import Callable, Sequence

import structlog
import trio
from zeroconf import Error, InterfaceChoice, IPVersion, ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from daemon.lan_link import guard
from nat.addresses import parse
from protocol.wire.ids import PeerId, is_peer_id

log = structlog.get_logger("swarmd.lan")

SERVICE = "_p2p._udp.local."
KEY = b"dnsaddr="
LOOK_SECONDS = 5.0
"""Between looks at whether our addresses changed."""

LONGEST_PAUSE = 300.0
"""Between tries to take part where that failed, as while an interface comes up."""

MAX_ADDRESSES = 8
MAX_WAITING = 64
"""Finds that wait to be looked at; a network with more is scanned again at the next announcement."""

Found = Callable[[PeerId, tuple[str, ...]], None]


def private_addresses(addresses: Sequence[str]) -> tuple[str, ...]:
    """Those of `addresses` that only a local network can dial: private and link-local IPs, no loopback and no relay."""
    kept = []
    for address in addresses:
        endpoint = parse(address)
        if endpoint is None or endpoint.relayed:
            continue
        try:
            ip = ipaddress.ip_address(endpoint.host)
        except ValueError:
            continue
        if (ip.is_private or ip.is_link_local) and not ip.is_loopback and not ip.is_unspecified:
            kept.append(address)
    return tuple(kept[:MAX_ADDRESSES])


class LanDiscovery:
    """`addresses()` are ours now; `found(peer, addresses)` is called in the event loop for each peer that is heard of."""

    def __init__(self, me: PeerId, addresses: Callable[[], Sequence[str]], found: Found, network: str = "") -> None:
        """`network` names a private mesh's service: at most 40 letters, digits and dashes."""
        self._me = me
        self._addresses = addresses
        self._found = found
        self._service = f"_p2p-{network}._udp.local." if network else SERVICE
        self.counters = {"announced": 0, "heard": 0, "ignored": 0, "unanswered": 0}

    async def run(self) -> None:
        """Announce and listen until cancelled; where the network does not allow it, say so once and try ever more seldom."""
        pause = LOOK_SECONDS
        while True:
            ours = private_addresses(self._addresses())
            if ours:
                try:
                    await self._take_part(ours)
                    pause = LOOK_SECONDS
                except (OSError, Error, TimeoutError) as error:
                    reason = getattr(error, "strerror", None) or repr(error)
                    (log.warning if pause == LOOK_SECONDS else log.debug)("no mDNS on this network", reason=reason)
                    pause = min(2 * pause, LONGEST_PAUSE)
            await trio.sleep(pause)

    async def _take_part(self, ours: tuple[str, ...]) -> None:
        """Announce `ours` and listen, until they are not ours any more."""
        send, receive = trio.open_memory_channel[tuple[PeerId, tuple[str, ...]]](MAX_WAITING)
        interfaces = sorted({endpoint.host for address in ours if (endpoint := parse(address)) is not None})
        listener = _Listener(self._service, self._me, send, trio.lowlevel.current_trio_token(), self.counters)
        opened = await trio.to_thread.run_sync(_open, self._service, interfaces, ours, listener, self.counters)
        self.counters["announced"] += 1
        log.info("found by mDNS on the local network", addresses=list(ours))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hear, receive)
                while private_addresses(self._addresses()) == ours:  # noqa: ASYNC110 - addresses change without a word
                    await trio.sleep(LOOK_SECONDS)
                nursery.cancel_scope.cancel()
        finally:
            listener.closed = True
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await trio.to_thread.run_sync(opened.close)

    async def _hear(self, receive: "trio.MemoryReceiveChannel[tuple[PeerId, tuple[str, ...]]]") -> None:
        async for peer, addresses in receive:
            self.counters["heard"] += 1
            self._found(peer, addresses)


def _open(
    service: str, interfaces: list[str], ours: tuple[str, ...], listener: "_Listener", counters: dict[str, int]
) -> Zeroconf:
    """In a thread: zeroconf runs an event loop of its own, in another."""
    zeroconf = Zeroconf(interfaces=interfaces or InterfaceChoice.Default, ip_version=IPVersion.All)
    try:
        own = secrets.token_hex(16)
        guard(zeroconf, (service.split(".")[0].encode(), own.encode(), b"_services"), counters)
        name = f"{own}.{service}"  # the specification: a random name, as the TXT record says who it is
        port = next((endpoint.port for address in ours if (endpoint := parse(address)) is not None), 0)
        # Bytes, because the specification repeats the key and a mapping could not.
        text = b"".join(bytes([len(entry)]) + entry for entry in (KEY + address.encode() for address in ours) if len(entry) < 256)
        packed = [ipaddress.ip_address(host).packed for host in interfaces]
        info = ServiceInfo(service, name, port=port, properties=text, addresses=packed, server=f"{own}.local.")
        listener.own_name = name
        # Not strict: RFC 6763's 15 bytes are for registered names, and libp2p's name of a private network is longer.
        zeroconf.register_service(info, cooperating_responders=True, strict=False)
        ServiceBrowser(zeroconf, service, listener=listener)
    except BaseException:
        zeroconf.close()
        raise
    return zeroconf


class _Listener(ServiceListener):
    """Lives in zeroconf's thread; hands what is well formed to the event loop."""

    def __init__(
        self,
        service: str,
        me: PeerId,
        send: "trio.MemorySendChannel[tuple[PeerId, tuple[str, ...]]]",
        token: trio.lowlevel.TrioToken,
        counters: dict[str, int],
    ) -> None:
        self._service = service
        self._me = me
        self._send = send
        self._token = token
        self._counters = counters
        self.own_name = ""
        self.closed = False

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Somebody announced itself."""
        if name == self.own_name or self.closed:
            return
        info = zc.get_service_info(type_, name, timeout=1000)
        peer, addresses = read_text(info.text if info is not None else b"")
        if peer is None or peer == self._me:
            self._counters["ignored"] += peer is None
            return
        if not self.closed:
            self._token.run_sync_soon(self._hand_over, peer, addresses)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """It announced something else."""
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """It said goodbye, which a connection tells better."""

    def _hand_over(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        try:
            self._send.send_nowait((peer, addresses))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self._counters["ignored"] += 1


def read_text(text: bytes) -> tuple[PeerId | None, tuple[str, ...]]:
    """The peer of a TXT record and where it can be dialled here; one that names no or several peers of this network is none."""
    named: dict[str, list[str]] = {}
    entries, at = 0, 0
    while at < len(text) and entries < 4 * MAX_ADDRESSES:
        entry = text[at + 1 : at + 1 + text[at]]
        at, entries = at + 1 + text[at], entries + 1
        address = entry.removeprefix(KEY).decode("ascii", "replace")
        peer = address.rpartition("/p2p/")[2]
        if entry.startswith(KEY) and is_peer_id(peer) and private_addresses([address]):
            named.setdefault(peer, []).append(address)
    if len(named) != 1:
        return None, ()
    ((peer, addresses),) = named.items()
    return PeerId(peer), tuple(addresses[:MAX_ADDRESSES])
