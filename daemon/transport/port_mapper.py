"""Drives the port mappings of one host: what peers see of us in, questions to the gateway out. Decides nothing itself."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import trio

from daemon.transport.gateway import Gateway
from nat.natpmp import Protocol
from nat.port_mapping import Ask, Effect, Method, PortMappings, Prove, Release, State

log = logging.getLogger(__name__)

_STOP_SECONDS = 2.0


class PortMapper:
    """`run` keeps the mappings; `seen` says at which public addresses peers see us, none where no NAT stands between."""

    def __init__(
        self,
        gateway: Gateway,
        ports: Callable[[], Mapping[Protocol, int]],
        seen: Callable[[], Collection[str]],
        prove: Callable[[], None],
    ) -> None:
        """`ports`: what we listen on, by protocol; `prove` has peers dial back."""
        self._gateway = gateway
        self._ports = ports
        self._seen = seen
        self._prove = prove
        self._machine = PortMappings({}, ())
        self._due: deque[Effect] = deque()
        self._kick = trio.Event()

    async def run(self) -> None:
        """Hold mappings while a NAT stands between us and others; give them back when cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                hears = False
                while True:
                    self._kick = trio.Event()
                    self._look()
                    if not hears and self._machine.state is not State.IDLE:
                        hears = True  # not sooner, since it opens a port
                        nursery.start_soon(self._gateway.hear, self._announced)
                    await self._perform()
                    with trio.move_on_at(self._machine.wake):
                        await self._kick.wait()
        finally:
            with trio.CancelScope(deadline=trio.current_time() + _STOP_SECONDS, shield=True):
                async with trio.open_nursery() as nursery:
                    for effect in self._machine.stop():
                        if isinstance(effect, Release):
                            nursery.start_soon(self._gateway.release, effect)

    def look_again(self) -> None:
        """A peer has said at which address it sees us."""
        self._kick.set()

    def forget(self) -> None:
        """The network has changed."""
        self._due.clear()
        self._machine = PortMappings({}, ())
        self._gateway.forget()
        self._kick.set()

    def _announced(self, method: Method, epoch: int) -> None:
        # Anybody in the household can forge one: what is due already is not due twice.
        lost = self._machine.told_epoch(method, epoch, trio.current_time())
        self._due.extend(effect for effect in lost if effect not in self._due)
        self._kick.set()

    def judged(self, protocol: Protocol, came: Iterable[int]) -> None:
        """Peers were asked to come in at our mapped port, and did at these."""
        port = self._machine.to_prove(protocol)
        if port is not None:
            self._due.extend(self._machine.judged(protocol, port, port in set(came)))
            self._kick.set()

    def to_prove(self, protocol: Protocol) -> int | None:
        """The outside port at which peers should try to come in."""
        return self._machine.to_prove(protocol)

    def outside(self, protocol: Protocol) -> tuple[str, int] | None:
        """The mapped address, once a peer came in by it."""
        return self._machine.outside(protocol)

    def view(self) -> dict[str, Any]:
        """For people."""
        machine = self._machine
        ends = machine.ends()
        return {
            "state": str(machine.state),
            "method": None if machine.method is None else str(machine.method),
            "methods": [str(method) for method in self._gateway.methods()],
            "tcp_port": machine.to_prove(Protocol.TCP),
            "udp_port": machine.to_prove(Protocol.UDP),
            "proved": [protocol.name.lower() for protocol in Protocol if machine.outside(protocol)],
            "ends_s": None if ends is None else round(ends - trio.current_time()),
            "reason": machine.reason or None,
            "upnp_installed": Method.UPNP in self._gateway.methods(),
        }

    def _look(self) -> None:
        now, seen = trio.current_time(), self._seen()
        if seen:
            if self._machine.state is State.IDLE:
                self._machine = PortMappings(self._ports(), self._gateway.methods())
            self._due.extend(self._machine.behind(seen, now))
        self._due.extend(self._machine.tick(now))

    async def _perform(self) -> None:
        while self._due:
            match self._due.popleft():
                case Ask() as ask:
                    machine = self._machine
                    answer = await self._gateway.ask(ask)
                    log.info("port mapping: %s %s by %s: %s", ask.protocol.name, ask.internal_port, ask.method, answer)
                    if machine is self._machine:
                        self._due.extend(machine.answered(ask, answer, trio.current_time()))
                case Release() as release:
                    await self._gateway.release(release)
                case Prove():
                    self._prove()
