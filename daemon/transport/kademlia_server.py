"""The serving half of the DHT: stock KadDHT with bounded stores, bounded inbound work and strict validation.

Decides what a stranger may store here and how much of our time a stranger gets; never starts a query.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from random import Random
from typing import Any, cast

import libp2p.kad_dht.kad_dht as library
import trio
from libp2p.abc import INetStream
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator

from daemon.transport.gossip_guard import Budgets
from daemon.transport.interface import RecordChooser, RecordValidator

NAMESPACE = "swarmd"
MAX_KEY_BYTES = 128

log = logging.getLogger(__name__)
_sender: ContextVar[ID | None] = ContextVar("kademlia_sender", default=None)


@dataclass(frozen=True)
class KademliaOptions:
    """Limits of the DHT; seconds, bytes and counts (research: limits and defaults, DHT rows)."""

    operation_timeout: float = 10.0
    query_timeout: float = 4.0
    parallel: int = 10
    closest: int = 20
    answers: int = 4
    max_record: int = 8 << 10
    max_message: int = 256 << 10
    max_records: int = 4096
    max_records_per_peer: int = 32
    max_provided_keys: int = 4096
    record_lifetime: float = 24 * 3600.0
    provider_lifetime: float = 3600.0
    republish: float = 900.0
    refresh: float = 600.0
    refresh_width: int = 8
    stream_lifetime: float = 20.0
    streams_per_peer: int = 8
    streams: int = 64
    request_rate: float = 50.0
    request_burst: float = 100.0


class RecordRules(Validator):
    """What may stand in the DHT, in the library's shape: raises where the caller's `validator` says no."""

    def __init__(self, validator: RecordValidator, chooser: RecordChooser, options: KademliaOptions) -> None:
        self._validator = validator
        self._chooser = chooser
        self._options = options

    def validate(self, key: str, value: bytes) -> None:
        """Raise ValueError with the reason where `value` may not stand under `key`."""
        if not key.startswith(f"/{NAMESPACE}/") or len(key.encode()) > MAX_KEY_BYTES:
            raise ValueError(f"a DHT key starts with /{NAMESPACE}/ and has at most {MAX_KEY_BYTES} bytes")
        if len(value) > self._options.max_record:
            raise ValueError(f"a record of {len(value)} bytes is over the limit of {self._options.max_record}")
        try:
            valid = bool(value) and self._validator(key, value)
        except Exception as error:
            log.exception("the validator of DHT records failed")
            raise ValueError("a record could not be validated") from error
        if not valid:
            raise ValueError("a record is not valid for its key")

    def select(self, key: str, values: Sequence[bytes]) -> int:
        """The winner's index. Of two equal values the second wins: the library asks (stored, new), and a refresh is welcome."""
        if len(values) == 2 and values[0] == values[1]:
            return 1
        return self._chooser(key, list(values))


class Server(KadDHT):
    """The library's DHT as a passive server: its own maintenance loop is not run, its handler gets a bounded share of us."""

    def __init__(self, host: Any, rules: RecordRules, options: KademliaOptions, rng: Random) -> None:
        # The limit of a request is a constant of the module (4 MiB), read at each frame.
        vars(library)["MAX_DHT_MESSAGE_SIZE"] = options.max_message
        super().__init__(
            host,
            DHTMode.SERVER,
            validator=NamespacedValidator({NAMESPACE: rules}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
            max_peers_per_subnet=2,
            max_peers_per_subnet_table=3,
        )
        self.value_store = BoundedValues(host, options)
        self.provider_store = BoundedProviders(host, self.peer_routing, options, rng)
        self.options = options
        self.counters: Counter[str] = Counter()
        self._busy: Counter[ID] = Counter()
        self._requests = Budgets(options.request_rate, options.request_burst)

    async def handle_stream(self, stream: Any) -> None:
        """Serve one inbound stream for a bounded time; too many streams of one peer, or in all, are reset at once."""
        peer: ID = stream.muxed_conn.peer_id
        if self._busy[peer] >= self.options.streams_per_peer or self._busy.total() >= self.options.streams:
            self.counters["refused"] += 1
            await _reset(stream)
            return
        self._busy[peer] += 1
        token = _sender.set(peer)
        try:
            with trio.move_on_after(self.options.stream_lifetime) as scope:
                await self._do_handle_stream(cast("INetStream", _Paced(stream, lambda: self._pace(peer))))
            if scope.cancelled_caught:
                self.counters["expired"] += 1
                await _reset(stream)
        except Exception as error:  # noqa: BLE001 - what garbage provokes in the library must end its stream alone
            self.counters["failed"] += 1
            log.debug("a DHT stream of %s failed: %r", peer, error)
            await _reset(stream)
        finally:
            _sender.reset(token)
            self._busy[peer] -= 1
            if not self._busy[peer]:
                del self._busy[peer]

    async def _pace(self, peer: ID) -> None:
        while not self._requests.take(peer, trio.current_time()):
            self.counters["paced"] += 1
            await trio.sleep(1 / self.options.request_rate)


class BoundedValues(ValueStore):
    """Records of the DHT: at most `max_records`, of which one peer stores `max_records_per_peer`.

    When full, the record farthest from us goes, never one of our own: the library would scan for the oldest, which is the
    honest one, at each PUT.
    """

    def __init__(self, host: Any, options: KademliaOptions) -> None:
        super().__init__(host, host.get_id())
        self._options = options
        self._origin = int.from_bytes(hashlib.sha256(host.get_id().to_bytes()).digest(), "big")
        self._distances: dict[bytes, int] = {}
        self._owners: dict[bytes, ID] = {}
        self._owned: Counter[ID] = Counter()

    def put(self, key: bytes, value: bytes, validity: float = 0.0) -> None:
        """Store a record of our own, signed by us."""
        super().put(key, value, validity or time.time() + self._options.record_lifetime)
        self._claim(key, None)

    def put_record(self, key: bytes, record: Record) -> None:
        """Store a stranger's record; raises ValueError where that peer stored its share already."""
        sender = _sender.get()
        if self._owners.get(key) != sender and sender is not None and self._owned[sender] >= self._options.max_records_per_peer:
            raise ValueError("this peer has stored its share of records here")
        super().put_record(key, record)
        self.store[key] = (record, time.time() + self._options.record_lifetime)
        self._claim(key, sender)

    def remove(self, key: bytes) -> bool:
        """Forget `key` and whose it was."""
        self._release(key)
        return super().remove(key)

    def cleanup_expired(self) -> int:
        """Forget what is past its time; returns how many."""
        expired = [key for key, (_, validity) in self.store.items() if time.time() > validity]
        for key in expired:
            self.remove(key)
        return len(expired)

    def _evict_if_full(self) -> None:
        while len(self.store) >= self._options.max_records:
            others = [key for key in self.store if key not in self.local_keys]
            if not others:
                return
            self.remove(max(others, key=self._distance))

    def _claim(self, key: bytes, owner: ID | None) -> None:
        self._release(key)
        self._distances[key] = self._distance(key)
        if owner is not None:
            self._owners[key] = owner
            self._owned[owner] += 1

    def _release(self, key: bytes) -> None:
        self._distances.pop(key, None)
        owner = self._owners.pop(key, None)
        if owner is not None:
            self._owned[owner] -= 1
            if not self._owned[owner]:
                del self._owned[owner]

    def _distance(self, key: bytes) -> int:
        known = self._distances.get(key)
        return known if known is not None else int.from_bytes(hashlib.sha256(key).digest(), "big") ^ self._origin


class BoundedProviders(ProviderStore):
    """Who provides what, as strangers say: bounded keys, `closest` providers a key, forgotten after `provider_lifetime`.

    A full list loses a random entry to a newcomer. The library's first-come list can be squatted for 48 hours.
    """

    def __init__(self, host: Any, peer_routing: Any, options: KademliaOptions, rng: Random) -> None:
        super().__init__(host, peer_routing)
        self._options = options
        self._rng = rng

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Note that `provider` provides `key`, from now."""
        if key not in self.providers and len(self.providers) >= self._options.max_provided_keys:
            self.cleanup_expired()
            if len(self.providers) >= self._options.max_provided_keys:
                del self.providers[self._rng.choice(list(self.providers))]
        listed = self.providers.get(key, {})
        if len(listed) >= self._options.closest and str(provider.peer_id) not in listed:
            del listed[self._rng.choice(list(listed))]
        super().add_provider(key, PeerInfo(provider.peer_id, provider.addrs[:16]))

    def get_providers(self, key: bytes) -> list[PeerInfo]:
        """Providers of `key` that said so within the lifetime."""
        oldest = time.time() - self._options.provider_lifetime
        listed = self.providers.get(key, {})
        return [PeerInfo(entry.peer_id, entry.addresses) for entry in listed.values() if entry.timestamp > oldest]

    def cleanup_expired(self) -> None:
        """Forget providers past their time."""
        oldest = time.time() - self._options.provider_lifetime
        for key, listed in list(self.providers.items()):
            for peer in [peer for peer, entry in listed.items() if entry.timestamp <= oldest]:
                del listed[peer]
            if not listed:
                del self.providers[key]


class _Paced:
    """A stream whose answers wait for the peer's budget."""

    def __init__(self, stream: Any, pace: Callable[[], Any]) -> None:
        self._stream = stream
        self._pace = pace

    async def write(self, data: bytes) -> None:
        await self._pace()
        await self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


async def _reset(stream: Any) -> None:
    with trio.move_on_after(1):
        try:
            await stream.reset()
        except Exception as error:  # noqa: BLE001 - it is gone either way
            log.debug("reset: %r", error)
