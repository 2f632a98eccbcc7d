"""What the NAT makes of our UDP port: asks observers how they see it, and before a punch how far one that counts has come.

Decides nothing about paths.
"""

import logging
from collections.abc import Callable, Sequence

import trio
import trio.lowlevel

from daemon.transport.udp_port import ASK_SECONDS, Address, UdpPort
from nat.addresses import multiaddr_of
from nat.observed import Mapping, Observation, ObservedAddresses, ObservedOptions
from nat.port_count import ENOUGH, PortCount, count_of
from nat.punch_messages import MAX_CANDIDATES, Endpoint

KEEP_SECONDS = 20.0
"""Between questions to the observers, which also hold our mapping: NATs forget after 30 s at the earliest (RFC 4787: 120 s)."""

MAX_OBSERVERS = 3
COUNT_SECONDS = 600.0
"""Between looks whether a symmetric NAT counts: each takes four of its mappings, and it is not built anew."""

_FRESH_MAPPINGS = 4
_FRESH_SECONDS = (0.25, 0.35)
"""Waits for the answers about them: what is older says little."""


log = logging.getLogger(__name__)


class UdpMapping:
    """How others see the UDP port that `port` gives, if there is one."""

    def __init__(self, port: Callable[[], UdpPort | None], nonce: Callable[[int], bytes]) -> None:
        self._port = port
        self._nonce = nonce
        self.observers: Callable[[], Sequence[Address]] = lambda: ()
        self.interfaces: Callable[[], Sequence[tuple[str, int]]] = lambda: ()
        self.granted: Callable[[], tuple[str, int] | None] = lambda: None
        """The address that the gateway passes on to our UDP port, where a datagram came in by it."""
        self.works: bool | None = None
        """Whether any observer answered over UDP; None before one was asked."""
        self._observed = ObservedAddresses(ObservedOptions(lifetime=3 * KEEP_SECONDS))
        self._counts = False
        self._count_again = float("-inf")

    async def refresh(self) -> None:
        """Ask up to three observers at which address they see our UDP port, and whether the NAT counts where it is symmetric."""
        port, observers = self._port(), self._chosen()
        if port is None or not observers:
            return
        answers = await _ask_all([(port, observer) for observer in observers])
        for observer, seen in zip(observers, answers, strict=True):
            if seen is not None:
                address = multiaddr_of(*seen, "udp")
                heard = Observation(f"{observer[0]}:{observer[1]}", observer[0], address, trio.current_time())
                self._observed = self._observed.observe(heard)
        self.works = any(seen is not None for seen in answers)
        if self._of_port(port) is Mapping.SYMMETRIC and trio.current_time() >= self._count_again:
            ports = await self._fresh_ports()
            self._counts = count_of(ports) is not None
            if len(ports) >= ENOUGH:
                self._count_again = trio.current_time() + COUNT_SECONDS

    async def count(self) -> PortCount | None:
        """How far a NAT that counts has come: what new sockets are mapped to now; None where it does not, or nobody says."""
        return count_of(await self._fresh_ports())

    async def _fresh_ports(self) -> list[int]:
        port, observers = self._port(), self._chosen()
        if port is None or not observers:
            return []
        host = "::" if port.is_ipv6 else "0.0.0.0"  # noqa: S104 - as the mesh port does, whichever interface leads there
        needed = -(-_FRESH_MAPPINGS // len(observers))
        async with trio.open_nursery() as nursery:
            fresh = []
            for _ in range(needed):
                try:
                    fresh.append(UdpPort(host, 0, self._nonce))
                except OSError as error:
                    log.debug("no socket to count ports with: %s", error.strerror)
                    break
                nursery.start_soon(fresh[-1].run)
            asked = [(opened, observer) for opened in fresh for observer in observers][:_FRESH_MAPPINGS]
            answers = await _ask_all(asked, _FRESH_SECONDS)
            nursery.cancel_scope.cancel()
        return [seen[1] for seen in answers if seen is not None]

    def forget(self) -> None:
        """The network has changed: what was seen of us says nothing any more."""
        self._observed = ObservedAddresses(self._observed.options)
        self.works, self._counts, self._count_again = None, False, float("-inf")

    def kind(self) -> Mapping:
        """What the NAT does to our UDP port."""
        if self.granted() is not None:
            return Mapping.ENDPOINT_INDEPENDENT  # whoever knocks there comes in
        port = self._port()
        kind = Mapping.UNKNOWN if port is None else self._of_port(port)
        return Mapping.PREDICTABLE if kind is Mapping.SYMMETRIC and self._counts else kind

    def hosts(self) -> set[str]:
        """Our IP addresses as others see them."""
        return {host for host, _ in self._seen()}

    def candidates(self) -> tuple[Endpoint, ...]:
        """Where our UDP port may be met; empty where no observer answers over UDP."""
        if not self.works:
            return ()
        granted = self.granted()
        found = [granted] if granted is not None else []
        found += [*reversed(self._seen()), *self.interfaces()]
        return tuple(Endpoint(host, port) for host, port in dict.fromkeys(found))[:MAX_CANDIDATES]

    def _seen(self) -> list[Address]:
        parts = [seen.address.split("/") for seen in self._observed.observations]
        return [(host, int(port)) for _, _, host, _, port in parts]

    def _of_port(self, port: UdpPort) -> Mapping:
        own = frozenset(host for host, _ in self.interfaces())
        return self._observed.mapping(port.port, own, trio.current_time())

    def _chosen(self) -> list[Address]:
        return list(dict.fromkeys(self.observers()))[:MAX_OBSERVERS]


async def _ask_all(asked: Sequence[tuple[UdpPort, Address]], waits: Sequence[float] = ASK_SECONDS) -> list[Address | None]:
    """The answers in order. The questions leave in this order, too, for a NAT that counts."""
    answers: dict[int, Address | None] = {}

    async def ask(number: int, port: UdpPort, observer: Address) -> None:
        answers[number] = await port.observe(observer, waits)

    async with trio.open_nursery() as nursery:
        for number, (port, observer) in enumerate(asked):
            nursery.start_soon(ask, number, port, observer)
            await trio.lowlevel.checkpoint()
    return [answers[number] for number in range(len(asked))]
