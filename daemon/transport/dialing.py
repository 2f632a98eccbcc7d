"""Dialing peers: which of their addresses in which order, one dial a peer at a time, shared by all who ask. Admits nobody."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.abc import INetConn
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.tools.anyio_service import LifecycleError
from multiaddr import Multiaddr

from daemon.transport.dial_errors import DialError, WrongPeerError, other_peer, why

log = logging.getLogger(__name__)

RelayDialer = Callable[[ID, Multiaddr], Awaitable[INetConn]]
"""Dials a peer over a /p2p-circuit address and returns the registered connection."""


@dataclass(slots=True)
class _Dial:
    """A dial under way; no error and no connection at its end means that it was cancelled."""

    answers_for: frozenset[Multiaddr]
    """What it tries, and what it was asked to try and cannot: whoever names no other address shares its error."""
    changed: trio.Event = field(default_factory=trio.Event)
    """Set at the end of the dial, and at each connection with that peer which comes meanwhile; then there is another one."""
    error: SwarmException | None = None
    won: INetConn | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Dialing:
    """The dials of one swarm."""

    def __init__(self, swarm: Any) -> None:
        self._swarm = swarm
        swarm.watchers.append(self._watch)
        self._dials: dict[ID, _Dial] = {}
        self.relay_dialer: RelayDialer | None = None
        self.relayed_guesses: Callable[[ID], list[Multiaddr]] = lambda _peer: []
        """Relayed addresses that are worth trying although nobody named them."""

    async def dial(self, peer_id: ID, first: Sequence[Multiaddr] = ()) -> list[INetConn]:
        """Live connections to a peer, made where there are none, at `first` before what strangers may have told us.

        Raises DialError or WrongPeerError. A dial goes on when who asked for it gives up: on a slow line several who have four
        seconds each would else never connect.
        """
        while True:
            live: list[INetConn] = self._swarm.live(peer_id)
            if live:
                return live
            dial = self._dials.get(peer_id) or self._begin(peer_id, first)
            await dial.changed.wait()
            if dial.won is not None:
                return [dial.won]
            if dial.error is not None and dial.answers_for.issuperset(first) and not self._swarm.live(peer_id):
                raise dial.error

    def again(self) -> None:
        """Our network is another one: begin all dials anew, as those under way may wait for answers that cannot come."""
        for dial in self._dials.values():
            dial.scope.cancel()

    def _watch(self, conn: INetConn, opened: bool) -> None:
        """Whoever waits for a dial is helped as well by a connection that the peer made meanwhile."""
        dial = self._dials.get(conn.muxed_conn.peer_id)
        if opened and dial is not None:
            dial.changed.set()
            dial.changed = trio.Event()

    def _begin(self, peer_id: ID, first: Sequence[Multiaddr]) -> _Dial:
        addresses = self._order(peer_id, first)
        dial = _Dial(frozenset([*first, *addresses]))
        try:
            self._swarm.manager.run_task(self._run, peer_id, addresses, dial)
        except LifecycleError:
            raise SwarmException("this host is stopping") from None
        self._dials[peer_id] = dial
        return dial

    async def _run(self, peer_id: ID, addresses: list[Multiaddr], dial: _Dial) -> None:
        try:
            with dial.scope:
                dial.won = await self._dial_any(peer_id, addresses)
        except SwarmException as error:
            dial.error = error
            self._swarm.counters.dials_failed += 1
        finally:
            del self._dials[peer_id]
            dial.changed.set()

    async def _dial_any(self, peer_id: ID, addresses: list[Multiaddr]) -> INetConn:
        failures: list[tuple[str, str]] = []
        won: list[INetConn] = []
        wrong: list[WrongPeerError] = []
        options = self._swarm.options

        async def attempt(address: Multiaddr, failed: trio.Event, scope: trio.CancelScope) -> None:
            try:
                won.append(await self._dial_one(address, peer_id))
                scope.cancel()
            except WrongPeerError as error:
                wrong.append(error)
                failures.append((str(address), str(error)))
            except Exception as error:  # noqa: BLE001 - any failure of one address leaves the others
                failures.append((str(address), why(error)))
            failed.set()

        with trio.move_on_after(options.connect_timeout) as bound:
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    failed = trio.Event()
                    nursery.start_soon(attempt, address, failed, nursery.cancel_scope)
                    with trio.move_on_after(options.dial_stagger):
                        await failed.wait()
        if won:
            return won[0]
        if bound.cancelled_caught:
            tried = {address for address, _ in failures}
            failures += [(str(a), f"no answer in {options.connect_timeout:g} s") for a in addresses if str(a) not in tried]
        if wrong and len(wrong) == len(failures):
            raise wrong[0]
        raise DialError(failures)

    async def _dial_one(self, address: Multiaddr, peer_id: ID) -> INetConn:
        if is_relayed(address):
            if self.relay_dialer is None:
                raise SwarmException("relayed addresses need the relay service")
            return await self.relay_dialer(peer_id, address)
        try:
            async with self._swarm._global_dial_limiter:
                conn: INetConn = await self._swarm._dial_addr_single_attempt(address, peer_id)
                return conn
        except SwarmException as error:
            found = other_peer(error)
            if found is not None:
                raise WrongPeerError(found) from error
            raise

    def _order(self, peer_id: ID, first: Sequence[Multiaddr]) -> list[Multiaddr]:
        try:
            known = [*first, *self._swarm.peerstore.addrs(peer_id)]
        except PeerStoreError:
            known = list(first)
        dialable = self._swarm.transport_manager.transport_for_dialing
        known += self.relayed_guesses(peer_id)
        usable = [address for address in dict.fromkeys(known) if is_relayed(address) or dialable(address) is not None]
        # A relay soon, not last: a peer behind a NAT names many addresses that lead nowhere, and a direct path follows anyway.
        direct = [address for address in usable if not is_relayed(address)]
        relayed = [address for address in usable if is_relayed(address)]
        return [*direct[:2], *relayed[:3], *direct[2:]][: self._swarm.options.max_dial_addresses]


def is_relayed(address: Multiaddr) -> bool:
    """Whether it is a /p2p-circuit address."""
    return any(protocol.name == "p2p-circuit" for protocol in address.protocols())
