"""Talking to the home gateway: PCP and NAT-PMP over UDP, UPnP through miniupnpc in a thread. Decides nothing."""

import ipaddress
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any, TypeVar

import trio

from daemon.transport.udp_port import RECEIVE_BYTES
from nat import natpmp, pcp
from nat.port_mapping import Ask, Granted, Method, Refused, Release

try:
    import miniupnpc
except ImportError:  # libp2p installs it where it has wheels
    miniupnpc = None

log = logging.getLogger(__name__)

_WAITS = (0.25, 0.5, 1.0)
"""Seconds for an answer, doubling as in RFC 6886 section 3.1, which goes on to 64 s: a gateway that is there answers at once."""

_SEARCH_MILLISECONDS = 2000
_UPNP_SECONDS = 15.0
_UPNP_TRIES = 4
_DESCRIPTION = "swarmd"
_ROUTES = Path("/proc/net/route")
_GATEWAY_FLAG = 0x2

T = TypeVar("T")


def default_gateway() -> str | None:
    """The IPv4 gateway of the default route with the least metric; None where there is none or the system is not Linux."""
    try:
        lines = _ROUTES.read_text("ascii").splitlines()[1:]
    except OSError:
        return None
    rows = [fields for fields in map(str.split, lines) if len(fields) > 7]
    routes = [row for row in rows if row[1] == row[7] == "00000000" and int(row[3], 16) & _GATEWAY_FLAG]
    if not routes:
        return None
    nearest = min(routes, key=lambda row: int(row[6]))
    # The kernel prints the four bytes as one number in the host's order.
    return str(ipaddress.IPv4Address(pack("=I", int(nearest[2], 16))))


class Gateway:
    """Asks by whichever method it is told; each call is bound by a few seconds."""

    def __init__(self, nonce: Callable[[int], bytes], find: Callable[[], str | None] = default_gateway) -> None:
        self._find = find
        # One nonce for all: the gateway knows our mappings by it, and only who sees our datagrams could guess it.
        self._nonce = nonce(pcp.NONCE_BYTES)
        self._igd: Any = None

    def methods(self) -> tuple[Method, ...]:
        """Those that can be tried here."""
        asked = (Method.PCP, Method.NAT_PMP) if self._find() is not None else ()
        return (*asked, Method.UPNP) if miniupnpc is not None else asked

    def forget(self) -> None:
        """The network has changed: search anew."""
        self._igd = None

    async def ask(self, ask: Ask) -> Granted | Refused:
        """The gateway's answer; raises nothing."""
        try:
            match ask.method:
                case Method.PCP:
                    return await self._pcp(ask)
                case Method.NAT_PMP:
                    return await self._nat_pmp(ask)
                case Method.UPNP:
                    return await _in_thread(lambda: self._upnp(ask))
        except (OSError, trio.TooSlowError) as error:
            return Refused(str(error) or "no answer in time")

    async def release(self, release: Release) -> None:
        """Give one back; raises nothing, as it ends by itself in any case."""
        ask = Ask(release.method, release.protocol, release.internal_port, release.external_port, 0)
        try:
            match release.method:
                case Method.PCP:
                    await self._pcp(ask)
                case Method.NAT_PMP:
                    wish = natpmp.ask_mapping(ask.protocol, ask.internal_port, 0, 0)
                    await self._exchange(lambda _own: wish, natpmp.decode)
                case Method.UPNP:
                    await _in_thread(lambda: self._upnp_release(ask))
        except (OSError, trio.TooSlowError) as error:
            log.debug("a port mapping was not given back: %s", error)

    async def hear(self, told: Callable[[Method, int], None]) -> None:
        """Tell `told` of each epoch that our gateway announces, as after a restart, until cancelled; raises nothing."""
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hearing:
            try:
                for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                    hearing.setsockopt(socket.SOL_SOCKET, option, 1)
                await hearing.bind(("", natpmp.ANNOUNCED_PORT))
                while True:
                    raw, source = await hearing.recvfrom(RECEIVE_BYTES)
                    if source[0] == self._find():
                        _tell_epoch(raw, told)
            except OSError as error:
                log.debug("announcements of the gateway are not heard: %s", error)

    # ---- PCP and NAT-PMP

    async def _exchange(self, question: Callable[[str], bytes], accept: Callable[[bytes], T | None]) -> T:
        """The first answer of the gateway that is accepted; `question` is told our own address; raises OSError."""
        gateway = self._find()
        if gateway is None:
            raise OSError("no gateway is known")
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            await asking.connect((gateway, natpmp.PORT))
            asked = question(str(asking.getsockname()[0]))
            for wait in _WAITS:
                await asking.send(asked)
                with trio.move_on_after(wait):
                    while True:
                        answer = accept(await asking.recv(RECEIVE_BYTES))
                        if answer is not None:
                            return answer
        raise OSError("the gateway does not answer")

    async def _pcp(self, ask: Ask) -> Granted | Refused:
        def question(own: str) -> bytes:
            return pcp.encode(
                pcp.MapRequest(self._nonce, ask.protocol, own, ask.internal_port, ask.external_port, lifetime=ask.lifetime)
            )

        def accept(raw: bytes) -> pcp.Mapped | pcp.Refusal | None:
            answer = pcp.decode(raw)
            if isinstance(answer, pcp.Mapped):
                ours = (answer.nonce, answer.protocol, answer.internal_port) == (self._nonce, ask.protocol, ask.internal_port)
                return answer if ours else None
            return answer

        answer: pcp.Mapped | pcp.Refusal = await self._exchange(question, accept)
        if isinstance(answer, pcp.Refusal):
            return Refused(str(answer))
        return Granted(answer.external_host, answer.external_port, answer.lifetime, answer.epoch)

    async def _nat_pmp(self, ask: Ask) -> Granted | Refused:
        def address(raw: bytes) -> natpmp.OutsideAddress | natpmp.Refusal | None:
            answer = natpmp.decode(raw)
            return None if isinstance(answer, natpmp.Mapped) else answer

        def mapping(raw: bytes) -> natpmp.Mapped | natpmp.Refusal | None:
            answer = natpmp.decode(raw)
            if isinstance(answer, natpmp.Mapped):
                return answer if (answer.protocol, answer.internal_port) == (ask.protocol, ask.internal_port) else None
            return answer if isinstance(answer, natpmp.Refusal) else None

        outside: natpmp.OutsideAddress | natpmp.Refusal = await self._exchange(lambda _own: natpmp.ask_address(), address)
        if isinstance(outside, natpmp.Refusal):
            return Refused(str(outside))
        wish = natpmp.ask_mapping(ask.protocol, ask.internal_port, ask.external_port, ask.lifetime)
        mapped: natpmp.Mapped | natpmp.Refusal = await self._exchange(lambda _own: wish, mapping)
        if isinstance(mapped, natpmp.Refusal):
            return Refused(str(mapped))
        return Granted(outside.host, mapped.external_port, mapped.lifetime, mapped.epoch)

    # ---- UPnP, in a worker thread: miniupnpc blocks, and lets go of the interpreter's lock while it does

    def _device(self) -> Any:
        if self._igd is None:
            found = miniupnpc.UPnP()
            found.discoverdelay = _SEARCH_MILLISECONDS
            if not found.discover():
                raise OSError("no gateway speaks UPnP")
            found.selectigd()
            self._igd = found
        return self._igd

    def _upnp(self, ask: Ask) -> Granted | Refused:
        try:
            device = self._device()
            return self._upnp_map(device, ask)
        except Exception as error:  # noqa: BLE001 - miniupnpc raises plain Exceptions
            self._igd = None
            return Refused(str(error)[:100] or type(error).__name__)

    def _upnp_map(self, device: Any, ask: Ask) -> Granted | Refused:
        host, refusal = str(device.externalipaddress()), "every port is taken"
        for offset in range(_UPNP_TRIES):
            port = ask.external_port + offset
            for lifetime in (ask.lifetime, 0):  # some gateways grant mappings without end alone (error 725)
                try:
                    name = (ask.protocol.name, device.lanaddr, ask.internal_port, _DESCRIPTION, "", lifetime)
                    if port <= 65535 and device.addportmapping(port, *name):
                        return Granted(host, port, lifetime)
                except Exception as error:  # noqa: BLE001 - as above
                    refusal = str(error)[:100]
        return Refused(refusal)

    def _upnp_release(self, ask: Ask) -> None:
        try:
            self._device().deleteportmapping(ask.external_port, ask.protocol.name)
        except Exception as error:  # noqa: BLE001 - as above
            log.debug("a port mapping was not given back: %s", error)


def _tell_epoch(raw: bytes, told: Callable[[Method, int], None]) -> None:
    answer = natpmp.decode(raw)
    if isinstance(answer, natpmp.OutsideAddress):
        told(Method.NAT_PMP, answer.epoch)
    elif (epoch := pcp.announced_epoch(raw)) is not None:
        told(Method.PCP, epoch)


async def _in_thread(work: Callable[[], T]) -> T:
    with trio.fail_after(_UPNP_SECONDS):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)  # type: ignore[call-arg]  # libp2p's trio-typing is old
