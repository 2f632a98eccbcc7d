"""What an operator may set of the transport, and what it counts. Holds values alone; opens nothing."""

from collections import Counter
from dataclasses import dataclass, field

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """Where to listen and how much to take. Times are in seconds, sizes in bytes.

    The counts follow go-libp2p's resource manager (64 base inbound, 128 in all, 8 per IP) and js-libp2p's 32 inbound
    streams per peer; research found every one of them missing or off by default in py-libp2p 0.8.1.
    """

    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    announce: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    """Relays to keep a reservation at, each ending in /p2p/<relay>."""
    serve_relay: bool = False
    relay_reservations: int = 64
    relay_circuits: int = 64
    relay_peer_circuits: int = 16
    relay_circuit_bytes: int = 4 << 30
    relay_rate: int = 0
    """Bytes a second for all circuits that we carry; 0 for no limit."""
    punch: bool = True
    udp: bool = True
    """Open UDP on the number of each listening port, to pass NATs that TCP cannot."""
    birthday: bool = True
    """Send up to 1,024 probes to find a peer behind a symmetric NAT."""
    port_mapping: bool = False
    """Ask the gateway to pass our ports on, once a peer sees us behind a NAT."""
    max_connections: int = 128
    reserved_outbound: int = 16
    max_connections_per_peer: int = 4
    max_connections_per_ip: int = 8
    loopback_exempt: bool = True
    max_pending_handshakes: int = 16
    upgrade_timeout: float = 10.0
    connect_timeout: float = 10.0
    dial_stagger: float = 0.25
    max_dial_addresses: int = 8
    known_peers: int = 1000
    """Peers whose addresses, keys and protocols are remembered, connected or not; the oldest are forgotten first."""
    max_inbound_streams_per_peer: int = 32
    max_inbound_streams_per_relay: int = 160
    """For a relay that holds a reservation of ours: every peer that reaches us through it is one of its streams."""
    max_inbound_streams_per_protocol: int = 16
    max_outbound_streams: int = 256
    max_stream_window: int = 4 << 20
    receive_memory: int = 256 << 20
    send_queue: int = 1 << 20
    keepalive_interval: float = 3.0
    keepalive_timeout: float = 5.0
    stream_open_timeout: float = 10.0

    def validate(self) -> None:
        """Raise ValueError with one sentence that names the bad value."""
        for text in (*self.listen, *self.announce, *self.relays):
            parse_address(text)
        counts = (
            "max_connections", "max_connections_per_peer", "max_connections_per_ip", "max_pending_handshakes",
            "max_dial_addresses", "max_inbound_streams_per_peer", "max_inbound_streams_per_protocol",
            "max_inbound_streams_per_relay", "max_outbound_streams", "send_queue",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"transport option {name} must be at least 1, not {getattr(self, name)}")
        for name in ("upgrade_timeout", "connect_timeout", "keepalive_interval", "keepalive_timeout", "stream_open_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"transport option {name} must be more than 0 seconds, not {getattr(self, name)}")
        if not 0 <= self.reserved_outbound < self.max_connections:
            raise ValueError(f"transport option reserved_outbound must be below max_connections, not {self.reserved_outbound}")
        if not 256 << 10 <= self.max_stream_window <= 16 << 20:
            raise ValueError(f"transport option max_stream_window must be 256 KiB to 16 MiB, not {self.max_stream_window}")
        if self.receive_memory < self.max_connections * (256 << 10):
            raise ValueError("transport option receive_memory must hold 256 KiB for each of max_connections")


def read_address(text: str) -> Multiaddr:
    """`text` as a multiaddr that can be looked at; raises errors of many kinds. The library reads some texts (of `ip6zone`, say)
    into bytes that it fails at later, or cannot write, and writes some that it does not read."""
    address = Multiaddr(text)
    str(address)
    for _ in address.protocols():
        pass
    return address


def parse_address(text: str) -> Multiaddr:
    """`text` as a multiaddr; raises ValueError naming it."""
    try:
        if not text.startswith("/") or len(text) < 2:
            raise ValueError("it must begin with /ip4, /ip6 or /dns4")
        return read_address(str(read_address(text)))
    except (MultiaddrError, ValueError, TypeError, UnicodeError) as error:
        raise ValueError(f"{text!r} is not a multiaddr such as /ip4/0.0.0.0/tcp/4001: {str(error)[:100]}") from None


@dataclass(slots=True)
class TransportCounters:
    """Running totals since start; every key is a short stable word fit for a metric label."""

    accepted: int = 0
    dialed: int = 0
    dials_failed: int = 0
    handshakes_failed: Counter[str] = field(default_factory=Counter)
    """By kind of failure: the name of the error that ended the upgrade."""
    refused: Counter[str] = field(default_factory=Counter)
    """Connections refused, by reason: total, ip, rate (too many of one IP, open or lately), peer (too many of one), identity (not
    Ed25519, or our own)."""
    streams_refused: Counter[str] = field(default_factory=Counter)
    """Inbound streams refused, by reason: peer (too many of one peer), protocol."""
    handler_faults: Counter[str] = field(default_factory=Counter)
    """Exceptions that left a stream handler, by protocol ("negotiation" before one was agreed)."""
    streams_reset: int = 0
    """Inbound streams reset by us because of a fault."""
    connections_closed: Counter[str] = field(default_factory=Counter)
    """By cause: peer (it left), local, silent (keep-alive), protocol, cipher, memory, lost."""
