"""Keeps this peer among the others: its heartbeats, the offer of its model while that answers, the directory of everybody."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import structlog
import trio

from daemon.bootstrap import Bootstrap
from daemon.calls import Calls, InboundCall
from daemon.own_offer import OwnOffer, features_of
from daemon.peer_exchange import ENOUGH, PeerExchange
from daemon.selector import Candidate
from daemon.transport.interface import Transport, TransportError
from dht import directory, records
from dht.offers import SignedOffer
from dht.presence import TOPIC
from dht.standing import Candidate as Routable
from dht.standing import PeerView, Standing
from protocol.round import messages as round_messages
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, short

log = structlog.get_logger("swarmd.membership")

OFFER_METHOD = "offer"

MAX_WANTED = 64
"""Peers that we connect to of our own accord; in a larger mesh the rest is dialled when it is needed."""

_DIALS = 4
_CALL_SECONDS = 10.0
_ENGINE_CHECK_SECONDS = 0.25
_DISCOVER_SECONDS = 60.0
_INTRODUCE_SECONDS = 1.5
"""Gossip takes a heartbeat of a second to make room for a new neighbour."""

_RETURN_SECONDS = 2.0
"""A peer whose connection was lost is dialled again after about this long, so that the mesh does not thin out."""

_STEADY_SECONDS = 10.0
"""Unless the connection held for less: whoever is full and hangs up is not dialled every other second."""

MAX_DISCOVERED = 32
"""Strangers from one look-up in the DHT that are dialled: anybody may put names there."""

MAX_JOINING = 256
"""Peers that we were told of and that wait to be dialled: whoever is on our local network may announce any number."""


class Membership:
    """The directory's driver. `wake` is its one timer; gossip, calls and connections are its senses."""

    def __init__(
        self, own: OwnOffer, transport: Transport, calls: Calls, bootstrap: Bootstrap, unix_ms: Callable[[], int], rng: Random
    ) -> None:
        self._me = transport.peer_id
        self._own = own
        self._transport = transport
        self._calls = calls
        self._bootstrap = bootstrap
        self._unix_ms = unix_ms
        self._rng = rng
        self._directory = directory.Directory(self._me, own.epoch, own.sign, rng)
        self._exchange = PeerExchange(calls, self._present, self._heard_of, unix_ms, rng)
        self._nursery: trio.Nursery | None = None
        self._since: dict[PeerId, float] = {}
        self._joining: set[PeerId] = set()
        self._dials = trio.CapacityLimiter(_DIALS)
        self._timer = trio.CancelScope()
        self._wake = 0.0
        self.met: Callable[[PeerId], None] = lambda _: None
        self.lost: Callable[[PeerId], None] = lambda _: None
        self.refused: dict[str, int] = {}
        self.admits: Callable[[PeerId], bool] = lambda _: True
        """Whose offers count; those of peers that a private mesh removed do not."""

    # ---- life

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Take part until cancelled."""
        self._calls.serve(OFFER_METHOD, self._serve_offer)
        self._exchange.serve()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._transport.listen_to_peers(self._on_connection)
                self._transport.listen_to_moves(lambda: self._handle(directory.Moved()))
                await self._transport.subscribe(TOPIC, self._on_gossip)
                for peer in self._transport.paths():
                    self._on_connection(peer, True)
                self._offer()
                nursery.start_soon(self._watch_engine)
                nursery.start_soon(self._discover, nursery)
                nursery.start_soon(self._own.keep_published)
                nursery.start_soon(self._keep_time)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def leave(self) -> None:
        """Say goodbye: the signed leave, so that nobody has to wait for our silence."""
        goodbye = self._own.withdraw()
        if goodbye is None:
            return
        for effect in self._directory.handle(directory.OwnOffer(goodbye, self._unix_ms()), trio.current_time()):
            if isinstance(effect, directory.SendPresence):
                await self._gossip(effect.payload)

    # ---- what others ask of us

    def candidates(self, model: str) -> list[Candidate]:
        """Who could serve `model` ("" for any) now, ourselves included."""
        found = []
        own = self._own.model()
        if own is not None and model in ("", own.name):
            digest, features = own.config_digest, features_of(own)
            found.append(Candidate(self._me, own.name, own.slots, "local", None, digest, self._own.load(), features))
        for candidate in self._routable(model):
            offer = candidate.signed.offer
            path = self._transport.path(PeerId(offer.peer))
            kind = "unknown" if path is None else str(path.kind)
            rtt = None if path is None else path.rtt
            digest, features = offer.config_digest, frozenset(offer.features)
            found.append(Candidate(PeerId(offer.peer), offer.model, offer.slots, kind, rtt, digest, candidate.load, features))
        return found

    def committee(self) -> list[round_messages.Candidate]:
        """Everybody who could sit in a round now, ourselves included."""
        seats = []
        own = self._own.model()
        if own is not None:
            seats.append(round_messages.Candidate(self._me, own.name, bytes.fromhex(own.config_digest)))
        for candidate in self._routable(""):
            offer = candidate.signed.offer
            seats.append(round_messages.Candidate(offer.peer, offer.model, bytes.fromhex(offer.config_digest)))
        return seats

    def peers(self) -> tuple[PeerView, ...]:
        """Everybody we know of, but ourselves."""
        return tuple(view for view in self._directory.peers(trio.current_time()) if self.admits(view.peer))

    def _routable(self, model: str) -> list[Routable]:
        return [one for one in self._directory.candidates(model, trio.current_time()) if self.admits(one.peer)]

    def models(self) -> list[dict[str, Any]]:
        """The JSON of GET /swarmd/v1/models."""
        rows: dict[str, dict[str, Any]] = {}
        digests = {PeerId(seat.peer_id): seat.config_digest.hex() for seat in self.committee()}
        for candidate in self.candidates(""):
            row = rows.setdefault(
                candidate.model, {"name": candidate.model, "peers": [], "config_digests": [], "local": False, "slots_free": 0}
            )
            row["peers"].append(candidate.peer)
            row["local"] = row["local"] or candidate.path == "local"
            row["slots_free"] += max(0, candidate.slots - candidate.busy)
            if (digest := digests.get(candidate.peer)) and digest not in row["config_digests"]:
                row["config_digests"].append(digest)
        return sorted(rows.values(), key=lambda row: str(row["name"]))

    def bootstrap(self) -> list[dict[str, Any]]:
        """The bootstraps as `status` shows them."""
        return self._bootstrap.view()

    def hint(self) -> str | None:
        """What to do where there is nobody to join by."""
        return self._bootstrap.hint()

    def problems(self) -> list[str]:
        """What is wrong with our place in the mesh, a sentence each."""
        problem = self._bootstrap.problem()
        return [] if problem is None else [problem]

    def call_failed(self, peer: PeerId) -> None:
        """A call to `peer` failed: it is not asked again until it is heard of anew."""
        self._handle(directory.CallFailed(peer))

    def call_succeeded(self, peer: PeerId) -> None:
        self._handle(directory.CallSucceeded(peer))

    async def reach(self, peer: PeerId) -> bool:
        """Connect to `peer`, at the addresses of its offer too; whether it is connected."""
        known = self._directory.offer_of(peer)
        try:
            await self._transport.connect(peer, known.offer.addresses if known is not None else ())
        except TransportError as error:
            log.debug("a peer could not be reached", peer=short(peer), reason=str(error))
            return False
        return True

    def learn(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Somebody told of `peer`: dial it, unless we have company enough."""
        connected = self._transport.paths()
        room = len(connected) < MAX_WANTED and len(self._joining) < MAX_JOINING
        if self._nursery is not None and peer not in connected and room:
            self._nursery.start_soon(self._join_with, peer, tuple(addresses))

    def _present(self) -> list[SignedOffer]:
        """The offers of peers that are there, ours among them: what we tell of to others."""
        views = [view for view in self.peers() if view.standing is Standing.ALIVE]
        offers = [self._own.signed, *(view.signed for view in views)]
        return [signed for signed in offers if signed is not None and not signed.offer.withdrawn]

    def _heard_of(self, signed: SignedOffer) -> None:
        self._handle(directory.OfferHeard(signed.raw, self._unix_ms()))
        self.learn(PeerId(signed.offer.peer), signed.offer.addresses)

    # ---- senses

    def _on_connection(self, peer: PeerId, connected: bool) -> None:
        if connected:
            self._since[peer] = trio.current_time()
            returning = self._directory.offer_of(peer) is not None
            self._handle(directory.Connected(peer))
            self.met(peer)
            if self._nursery is not None:
                if returning:  # perhaps restarted: then what we hold of it is another process's offer
                    self._nursery.start_soon(self._fetch, peer)
                if len(self._transport.paths()) == 1:
                    self._nursery.start_soon(self._introduce)
                if len(self._transport.paths()) < ENOUGH:
                    self._nursery.start_soon(self._exchange.ask, peer)
        else:
            self._handle(directory.Disconnected(peer))
            self.lost(peer)
            held = trio.current_time() - self._since.pop(peer, trio.current_time())
            if self._nursery is not None and held >= _STEADY_SECONDS:
                self._nursery.start_soon(self._return_to, peer)

    def _on_gossip(self, author: PeerId, payload: bytes) -> bool:
        effects = self._directory.handle(directory.PresenceHeard(author, payload, self._unix_ms()), trio.current_time())
        self._perform(effects)
        return not any(isinstance(effect, directory.Refused) for effect in effects)

    async def _serve_offer(self, call: InboundCall) -> bytes:
        if self._own.signed is None:
            raise RemoteError(Code.NOT_FOUND, "no offer yet", retry_after=1.0)
        return self._own.signed.raw

    async def _watch_engine(self) -> None:
        """Offer the model while it answers, and stop offering it at once when it does not."""
        while True:
            await trio.sleep(_ENGINE_CHECK_SECONDS)
            if self._own.outdated():
                self._offer()
            self._handle(directory.OwnLoad(self._own.load()))

    async def _discover(self, nursery: trio.Nursery) -> None:
        """Ask the DHT for peers that gossip has not brought to us."""
        while True:
            if self._transport.paths():
                try:
                    providers = await self._transport.find_providers(records.ANY_KEY, self._may_serve)
                except TransportError as error:
                    log.debug("the DHT could not be asked", reason=str(error))
                    providers = {}
                self._keep_company(nursery)
                strangers = [peer for peer in providers if peer != self._me and self._directory.offer_of(peer) is None]
                for peer in strangers[:MAX_DISCOVERED]:
                    nursery.start_soon(self._join_with, peer, providers[peer])
                await trio.sleep(_DISCOVER_SECONDS * self._rng.uniform(0.8, 1.2))
            else:
                await trio.sleep(1.0)

    def _may_serve(self, peer: PeerId) -> bool:
        """Whether a claim to provide may be true: what a peer signed itself overrules what is listed of it."""
        known = self._directory.offer_of(peer)
        return known is None or bool(known.offer.model and not known.offer.withdrawn)

    def _offer(self) -> None:
        """Sign what we serve at this moment and make it known."""
        signed = self._own.renew()
        if signed is not None:
            self._handle(directory.OwnOffer(signed, self._unix_ms()))

    def _keep_company(self, nursery: trio.Nursery) -> None:
        """Remember who is connected, and dial known peers that are not."""
        room = MAX_WANTED - len(self._transport.paths())
        for view in self.peers():
            if view.connected:
                self._remember(view.peer)
            elif room > 0 and view.standing is Standing.ALIVE and view.signed is not None:
                room -= 1
                nursery.start_soon(self._join_with, view.peer, view.signed.offer.addresses)

    async def _keep_time(self) -> None:
        while True:
            with trio.CancelScope() as self._timer:
                await trio.sleep_until(self._wake)
                self._wake = trio.current_time() + 1.0  # unless the directory asks for another time
                self._handle(directory.Tick(self._unix_ms()))

    # ---- voices

    def _handle(self, event: directory.Event) -> None:
        self._perform(self._directory.handle(event, trio.current_time()))

    def _perform(self, effects: "list[directory.Effect]") -> None:
        nursery = self._nursery
        for effect in effects:
            match effect:
                case directory.SendPresence(payload) if nursery is not None:
                    nursery.start_soon(self._gossip, payload)
                case directory.FetchOffer(peer) if nursery is not None:
                    nursery.start_soon(self._fetch, peer)
                case directory.RenewOffer():
                    self._offer()
                case directory.WakeAt(time):
                    self._wake = time
                    self._timer.cancel()
                case directory.PeerJoined(peer):
                    self._joined(peer)
                case directory.PeerSuspect(peer, reason):
                    log.info("peer is suspect", peer=short(peer), reason=reason)
                case directory.PeerGone(peer, reason):
                    log.info("peer is gone", peer=short(peer), reason=reason)
                case directory.Refused(peer, error):
                    self.refused[str(error.code)] = self.refused.get(str(error.code), 0) + 1
                    log.debug("presence refused", peer=short(peer) if peer is not None else None, reason=str(error))

    def _joined(self, peer: PeerId) -> None:
        log.info("peer joined", peer=short(peer))
        known = self._directory.offer_of(peer)
        if known is not None and self._nursery is not None:
            self._nursery.start_soon(self._join_with, peer, known.offer.addresses)

    async def _join_with(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        """Be connected to a peer that we learned of; one that is goes into the cache for the next start."""
        if peer in self._joining or not self.admits(peer):
            return
        self._joining.add(peer)
        try:
            # The peer with the smaller id waits a moment, so that two that learn of each other do not both dial.
            if self._me < peer:
                await trio.sleep(0.5)
            async with self._dials:
                if self._transport.path(peer) is None and len(self._transport.paths()) < MAX_WANTED:
                    await self._transport.connect(peer, addresses)
        except TransportError as error:
            log.debug("a peer could not be reached", peer=short(peer), reason=str(error))
        finally:
            self._joining.discard(peer)
        if self._transport.path(peer) is not None:
            self._bootstrap.met(peer, addresses)

    def _remember(self, peer: PeerId) -> None:
        known = self._directory.offer_of(peer)
        if known is not None and self._transport.path(peer) is not None:
            self._bootstrap.met(peer, known.offer.addresses)

    async def _introduce(self) -> None:
        """Gossip our offer again: nobody heard what was said before the first connection."""
        await trio.sleep(_INTRODUCE_SECONDS)
        if self._own.signed is not None and not self._own.withdrawn:
            self._handle(directory.OwnOffer(self._own.signed, self._unix_ms()))

    async def _return_to(self, peer: PeerId) -> None:
        await trio.sleep(_RETURN_SECONDS * self._rng.uniform(0.5, 1.0))
        known = self._directory.offer_of(peer)
        if known is not None and not known.offer.withdrawn and not self._own.withdrawn:
            await self._join_with(peer, known.offer.addresses)

    async def _gossip(self, payload: bytes) -> None:
        try:
            await self._transport.publish(TOPIC, payload)
        except TransportError as error:
            log.debug("a heartbeat was not sent", reason=str(error))

    async def _fetch(self, peer: PeerId) -> None:
        raw: bytes | None
        try:
            raw = await self._calls.unary(peer, OFFER_METHOD, b"", timeout=_CALL_SECONDS)
        except RemoteError:
            try:
                raw = await self._transport.get_record(records.offer_key(peer))
            except TransportError:
                raw = None
        if raw:
            self._handle(directory.OfferHeard(raw, self._unix_ms()))
            self._remember(peer)

    def counters(self) -> dict[str, int]:
        """Counts for `status`: calls that broke the contract and presence that was refused."""
        return {f"presence_{reason}": count for reason, count in self.refused.items()} | {
            f"rpc_{reason}": count for reason, count in self._calls.breaches.items()
        } | {f"exchange_{what}": count for what in ("bad", "refused") if (count := self._exchange.counters[what])}
