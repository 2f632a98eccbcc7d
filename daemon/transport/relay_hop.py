"""Serving as a circuit relay v2: reservations, circuits and their limits. Decides who may use this box as a relay; dials nobody.

Our own and not the library's, whose relay lets one peer reserve for another, closes the wrong circuit when a peer has two, and
retries a closed stream for a second.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio
from google.protobuf.unknown_fields import UnknownFieldSet
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.network.stream.exceptions import StreamEOF
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb import circuit_pb2 as pb
from libp2p.utils import encode_varint_prefixed
from libp2p.utils.varint import encode_uvarint
from multiaddr import Multiaddr

from daemon.transport.streams import receive_protobuf
from nat.addresses import Reach, reach_of, with_peer, without_peer

HOP = TProtocol("/libp2p/circuit/relay/0.2.0/hop")
STOP = TProtocol("/libp2p/circuit/relay/0.2.0/stop")
MAX_MESSAGE_BYTES = 4096
_CHUNK_BYTES = 64 << 10
_LOAD_FIELD = 4711

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RelayOptions:
    """Relaying, as a server and as a client; seconds, bytes and counts. 0 bytes means no limit.

    64 reservations and circuits: research (the library's 4 and 8 starve a small mesh). Data and duration are what an inference
    connection needs in a day, not the specification's 128 KiB and 2 minutes, which are meant for hole punching alone.
    """

    serve: bool = False
    max_reservations: int = 64
    max_circuits: int = 64
    max_circuits_per_peer: int = 16
    max_circuit_bytes: int = 4 << 30
    max_circuit_duration: float = 24 * 3600.0
    rate: int = 0
    """Bytes a second for all circuits together, shared alike by the peers that opened those in use; 0 means no limit."""
    reservation_lifetime: float = 3600.0
    message_timeout: float = 10.0
    retry_min: float = 1.0
    retry_max: float = 60.0
    punch: bool = True
    punch_attempts: int = 3
    punch_timeout: float = 5.0
    punch_again: float = 60.0
    """Seconds until the attempts are made again, doubling up to a quarter of an hour: lines and NATs change."""
    relayed_grace: float = 60.0
    relays: int = 2
    """Reservations to hold: one may die at any time."""
    max_known_relays: int = 32
    udp: bool = True
    birthday: bool = True
    """Whether up to 1,024 probes may look for the port of a peer behind a symmetric NAT."""
    port_mapping: bool = False
    """Whether the gateway is asked to pass our ports on, once a peer sees us behind a NAT."""


_BURST_BYTES = 256 << 10
_RATE_SECONDS = 1.0
"""A circuit that carried something in the last second counts as in use."""


@dataclass(slots=True)
class _Budget:
    """What one circuit may still carry, and when it may carry the next of it. `owner` opened it."""

    left: int | None
    owner: ID
    level: float = 0.0
    since: float = 0.0
    used: float = float("-inf")


class Hop:
    """The relay's side: handles HOP streams."""

    def __init__(self, host: Any, options: RelayOptions) -> None:
        self._host = host
        self._options = options
        self._reserved: dict[ID, float] = {}
        self._circuits: Counter[ID] = Counter()
        self._joined: Counter[tuple[ID, ID]] = Counter()
        self.willing: Callable[[], bool] = lambda: True
        """Whether we take new reservations: a relay that nobody can reach helps nobody."""
        self._budgets: list[_Budget] = []
        self.counters: Counter[str] = Counter()

    @property
    def reservations(self) -> int:
        """Reservations in force."""
        self._forget_expired()
        return len(self._reserved)

    @property
    def circuits(self) -> int:
        """Circuits open now."""
        return self._circuits.total() // 2

    @property
    def load(self) -> float:
        """The share of our places or circuits that is taken, whichever is more; who has left keeps nobody from a place."""
        options = self._options
        held = sum(self._is_here(peer) for peer in self._reserved)
        return max(held / max(1, options.max_reservations), self.circuits / max(1, options.max_circuits))

    def joins(self, one: ID, other: ID) -> bool:
        """Whether a circuit between the two is open."""
        return self._joined[one, other] + self._joined[other, one] > 0

    async def handle(self, stream: Any) -> None:
        """Serve one HOP stream: one request, and for CONNECT the circuit that follows."""
        peer: ID = stream.muxed_conn.peer_id
        with trio.fail_after(self._options.message_timeout):
            request = await receive(stream, pb.HopMessage)
        if stream.muxed_conn.get_connection_type() == ConnectionType.RELAYED:
            await self._answer(stream, pb.PERMISSION_DENIED)
        elif request.type == pb.HopMessage.RESERVE:
            await self._reserve(stream, peer)
        elif request.type == pb.HopMessage.CONNECT and request.peer.id:
            await self._connect(stream, peer, ID(request.peer.id))
        else:
            await self._answer(stream, pb.MALFORMED_MESSAGE)

    async def _reserve(self, stream: Any, peer: ID) -> None:
        self._forget_expired()
        if not self.willing():
            await self._answer(stream, pb.PERMISSION_DENIED)
            return
        if peer not in self._reserved and len(self._reserved) >= self._options.max_reservations:
            self._forget_the_left()
        if peer not in self._reserved and len(self._reserved) >= self._options.max_reservations:
            await self._answer(stream, pb.RESERVATION_REFUSED)
            return
        expire = time.time() + self._options.reservation_lifetime
        self._reserved[peer] = expire
        self.counters["reserved"] += 1
        me = self._host.get_id().to_base58()
        addresses = [Multiaddr(with_peer(address, me)).to_bytes() for address in direct_addresses(self._host)]
        reservation = pb.Reservation(expire=int(expire), addrs=addresses)
        answer = pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK, reservation=reservation, limit=self._limit())
        await stream.write(encode_varint_prefixed(answer.SerializeToString() + _load_field(self.load)))
        await stream.close()

    async def _connect(self, stream: Any, source: ID, target: ID) -> None:
        refusal = self._refusal(source, target)
        if refusal is not None:
            await self._answer(stream, refusal)
            return
        self._circuits[source] += 1
        self._circuits[target] += 1
        self._joined[source, target] += 1
        onward = None
        try:
            with trio.move_on_after(self._options.message_timeout):
                onward = await self._reach(source, target)
            if onward is None:
                await self._answer(stream, pb.CONNECTION_FAILED)
                return
            self.counters["circuits"] += 1
            await send(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=pb.OK, limit=self._limit()))
            with trio.move_on_after(self._options.max_circuit_duration):
                await self._join(stream, onward, source)
        finally:
            self._joined[source, target] -= 1
            if not self._joined[source, target]:
                del self._joined[source, target]
            for peer in (source, target):
                self._circuits[peer] -= 1
                if not self._circuits[peer]:
                    del self._circuits[peer]
            with trio.CancelScope(deadline=trio.current_time() + 1, shield=True):
                await quietly_reset(stream)
                if onward is not None:
                    await quietly_reset(onward)

    def _refusal(self, source: ID, target: ID) -> int | None:
        self._forget_expired()
        if target not in self._reserved:
            return int(pb.NO_RESERVATION)
        full = self.circuits >= self._options.max_circuits
        if full or max(self._circuits[source], self._circuits[target]) >= self._options.max_circuits_per_peer:
            self.counters["refused"] += 1
            return int(pb.RESOURCE_LIMIT_EXCEEDED)
        return None

    async def _reach(self, source: ID, target: ID) -> Any:
        """A STOP stream to `target` that it accepted, or None. Over its live connection alone: a relay dials nobody."""
        if not self._is_here(target):
            del self._reserved[target]
            return None
        onward = None
        try:
            onward = await self._host.new_stream(target, [STOP])
            request = pb.StopMessage(type=pb.StopMessage.CONNECT, peer=pb.PeerId(id=source.to_bytes()), limit=self._limit())
            await send(onward, request)
            answer = await receive(onward, pb.StopMessage)
        except Exception as error:  # noqa: BLE001 - gone, refused or garbage: the circuit cannot be
            log.debug("%s does not take a circuit: %r", target, error)
            answer = None
        if answer is not None and answer.type == pb.StopMessage.STATUS and answer.status == pb.OK:
            return onward
        if onward is not None:
            await quietly_reset(onward)
        return None

    async def _join(self, one: Any, other: Any, owner: ID) -> None:
        """Copy both ways until both have ended, or 5 s after one has, or until the data is used up or one fails."""
        budget = _Budget(self._options.max_circuit_bytes or None, owner, since=trio.current_time())
        self._budgets.append(budget)
        try:
            await self._copy_both(one, other, budget)
        finally:
            self._budgets.remove(budget)

    async def _copy_both(self, one: Any, other: Any, budget: _Budget) -> None:
        async with trio.open_nursery() as nursery:

            async def copy(source: Any, sink: Any) -> None:
                try:
                    await self._copy(source, sink, budget)
                    await sink.close()
                except Exception as error:  # noqa: BLE001 - either end may vanish in many ways
                    log.debug("a circuit ended: %r", error)
                    nursery.cancel_scope.cancel()
                nursery.cancel_scope.deadline = min(nursery.cancel_scope.deadline, trio.current_time() + 5)

            nursery.start_soon(copy, one, other)
            nursery.start_soon(copy, other, one)

    async def _copy(self, source: Any, sink: Any, budget: _Budget) -> None:
        while True:
            try:
                chunk = await source.read(_CHUNK_BYTES)
            except StreamEOF:
                return
            if not chunk:
                return
            if budget.left is not None:
                budget.left -= len(chunk)
                if budget.left < 0:
                    self.counters["data_limit"] += 1
                    raise ConnectionError("the circuit's data is used up")
            self.counters["bytes"] += len(chunk)
            await self._pace(budget, len(chunk))
            await sink.write(chunk)

    async def _pace(self, budget: _Budget, size: int) -> None:
        """Wait until the circuit's share of the rate covers `size` more bytes: many of one peer share its share."""
        if not self._options.rate:
            return
        while True:
            now = trio.current_time()
            in_use = Counter(one.owner for one in self._budgets if one is budget or now - one.used < _RATE_SECONDS)
            share = self._options.rate / len(in_use) / in_use[budget.owner]
            budget.used = now
            budget.level = min(float(_BURST_BYTES), budget.level + (now - budget.since) * share)
            budget.since = now
            if budget.level >= 0:
                budget.level -= size
                return
            await trio.sleep(min(_RATE_SECONDS / 2, -budget.level / share + 0.001))

    async def _answer(self, stream: Any, status: int) -> None:
        await send(stream, pb.HopMessage(type=pb.HopMessage.STATUS, status=status))  # type: ignore[arg-type]
        await stream.close()

    def _limit(self) -> pb.Limit:
        return pb.Limit(duration=int(self._options.max_circuit_duration), data=self._options.max_circuit_bytes)

    def _forget_expired(self) -> None:
        now = time.time()
        for peer in [peer for peer, expire in self._reserved.items() if expire <= now]:
            del self._reserved[peer]

    def _forget_the_left(self) -> None:
        """A connection that is lost for a moment costs nobody its place, but one peer must not take all by coming again anew."""
        for peer in [peer for peer in self._reserved if not self._is_here(peer)]:
            del self._reserved[peer]

    def _is_here(self, peer: ID) -> bool:
        return bool(self._host.get_network().live(peer))


def direct_addresses(host: Any) -> list[str]:
    """The host's own addresses without relayed and undialable ones, and without /p2p."""
    texts = [str(address) for address in host.get_addrs()]
    return [without_peer(text) for text in texts if reach_of(text) not in (Reach.NOWHERE, Reach.RELAYED)]


def status_name(status: int) -> str:
    """What a relay answered, for people; one of another version may say what we have no name for."""
    return str(pb.Status.Name(status)) if status in pb.Status.values() else f"status {status}"  # type: ignore[arg-type]


def load_of(message: Any) -> float:
    """The load that a relay of ours said it has, 0.0 to 1.0; 0.0 where it is of another make, or says nonsense."""
    fields: Any = UnknownFieldSet(message)
    said = [field.data for field in fields if field.field_number == _LOAD_FIELD and field.wire_type == 0]
    return min(said[-1], 1000) / 1000 if said else 0.0


def _load_field(load: float) -> bytes:
    """A field that the specification does not have, and that every protobuf decoder passes over: thousandths, as a varint."""
    return bytes(encode_uvarint(_LOAD_FIELD << 3) + encode_uvarint(round(1000 * min(load, 1.0))))


async def send(stream: Any, message: Any) -> None:
    """Write one length-prefixed protobuf message."""
    await stream.write(encode_varint_prefixed(message.SerializeToString()))


async def receive(stream: Any, kind: Any) -> Any:
    """Read one length-prefixed protobuf message of at most 4 KiB."""
    return await receive_protobuf(stream, kind, MAX_MESSAGE_BYTES)


async def quietly_reset(stream: Any) -> None:
    """Reset `stream`, whatever state it is in."""
    try:
        await stream.reset()
    except Exception as error:  # noqa: BLE001 - it is gone either way
        log.debug("reset: %r", error)
