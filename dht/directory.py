"""Who is there and can be asked. Decides from heartbeats, offers and calls which peers are routable; sends and dials nothing.

A stranger's word alone (a provider record, an offer in the DHT) makes nobody routable: a peer is once we heard from itself, by a
heartbeat, a connection or a served call. So a squatted provider list delays nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from dht.offers import SignedOffer, open_offer, renewal_delay
from dht.presence import Presence, open_presence
from dht.standing import IDLE, Candidate, Config, KnownPeer, Load, PeerView, Standing
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import Hash, PeerId

# Events (`wall` is unix milliseconds)


@dataclass(frozen=True, slots=True)
class PresenceHeard:
    """`author` gossiped `raw` on the presence topic."""

    author: PeerId
    raw: bytes
    wall: int


@dataclass(frozen=True, slots=True)
class OfferHeard:
    """A signed offer arrived by RPC or from the DHT."""

    raw: bytes
    wall: int


@dataclass(frozen=True, slots=True)
class OwnOffer:
    """Our own offer changed. A withdrawn one is our leave: it is gossiped once, and we fall silent."""

    signed: SignedOffer
    wall: int


@dataclass(frozen=True, slots=True)
class OwnLoad:
    """Our own load, told with the next heartbeat."""

    load: Load


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call to `peer` failed for a reason that may be the peer's: no path, no answer, reset, engine failure."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class CallSucceeded:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Connected:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Disconnected:
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Moved:
    """Our own network changed: connections and calls were lost by us, and others' silence is ours until one of them is heard."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The time asked for by WakeAt has come; the first one starts the heart."""

    wall: int


Event = PresenceHeard | OfferHeard | OwnOffer | OwnLoad | CallFailed | CallSucceeded | Connected | Disconnected | Moved | Tick


# Effects


@dataclass(frozen=True, slots=True)
class SendPresence:
    """Gossip `payload` on the presence topic."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class FetchOffer:
    """Ask `peer` for its offer by RPC and bring it back as OfferHeard."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class RenewOffer:
    """Sign our offer anew, put it in the DHT, and bring it back as OwnOffer."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a Tick at this time of the monotonic clock; replaces the earlier WakeAt."""

    time: float


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """`peer` is there, or is there again."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerSuspect:
    """`peer` is not routed for now."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class PeerGone:
    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """What `peer` (None: unknown) sent is not valid; code refused says that only its clock differs from ours."""

    peer: PeerId | None
    error: RemoteError


Effect = SendPresence | FetchOffer | RenewOffer | WakeAt | PeerJoined | PeerSuspect | PeerGone | Refused


# State


@dataclass(slots=True)
class Directory:
    """The directory of one peer, `me` in its `epoch`. `sign` turns a Presence into a gossip payload."""

    me: PeerId
    epoch: int
    sign: Callable[[Presence], bytes]
    rng: Random
    config: Config = field(default_factory=Config)
    refused_full: int = 0
    """Newcomers that a full directory did not take."""
    _peers: dict[PeerId, KnownPeer] = field(default_factory=dict)
    _own: SignedOffer | None = None
    _load: Load = IDLE
    _beats: int = 0
    _full_beats: int = 0
    _beat_at: float = float("inf")
    _renew_at: float = float("inf")
    _moved_at: float = float("-inf")
    _deaf_since: float | None = None

    def handle(self, event: Event, now: float) -> list[Effect]:
        """`now` is the monotonic clock in seconds."""
        match event:
            case PresenceHeard(author) if author == self.me:
                return []  # gossip brings our own back
            case PresenceHeard(author, raw, wall):
                return self._refusing(author, lambda: self._presence(open_presence(author, raw, wall), now, wall))
            case OfferHeard(raw, wall):
                return self._refusing(None, lambda: self._offer(open_offer(raw, wall), now, wall))
            case Tick(wall):
                return self._tick(now, wall)
            case OwnOffer(signed, wall):
                return self._own_offer(signed, now, wall)
            case OwnLoad(load):
                self._load = load
                return []
            case Connected(peer):
                return [*self._connected(peer, now), *self._hears(now)]
            case Moved():
                return self._moved(now)
            case Disconnected(peer) | CallFailed(peer) | CallSucceeded(peer):
                return self._met(event, peer, now)

    def candidates(self, model: str, now: float) -> tuple[Candidate, ...]:
        """Routable peers that offer `model` ("": any model), in no meaningful order."""
        found = []
        for peer, known in self._peers.items():
            signed = known.offer
            if signed is None or known.offer_until <= now or known.standing(self.config, now) is not Standing.ALIVE:
                continue
            if signed.offer.model and model in ("", signed.offer.model):
                found.append(Candidate(peer, signed, known.load, known.connected))
        return tuple(found)

    def peers(self, now: float) -> tuple[PeerView, ...]:
        """Every peer that is not gone, and every connected one, by id."""
        return tuple(
            PeerView(peer, standing, known.offer, known.epoch, known.load, now - known.heard_at, known.connected)
            for peer, known in sorted(self._peers.items())
            if (standing := known.standing(self.config, now)) in (Standing.ALIVE, Standing.SUSPECT) or known.connected
        )

    def offer_of(self, peer: PeerId) -> SignedOffer | None:
        """The best offer known of `peer`, be it routable or not; our own for ourselves."""
        if peer == self.me:
            return self._own
        return self._peers[peer].offer if peer in self._peers else None

    def _refusing(self, peer: PeerId | None, act: Callable[[], list[Effect]]) -> list[Effect]:
        try:
            return act()
        except RemoteError as error:
            return [] if error.code is Code.GONE else [Refused(peer, error)]

    def _entry(self, peer: PeerId, now: float) -> KnownPeer | None:
        """The peer's state, made where there is room; None where there is none, and for ourselves."""
        if peer == self.me:
            return None
        if peer not in self._peers and len(self._peers) >= self.config.peers:
            absent = (Standing.UNKNOWN, Standing.GONE)
            idle = [p for p, k in self._peers.items() if not k.connected and k.standing(self.config, now) in absent]
            if not idle:
                self.refused_full += 1
                return None
            del self._peers[min(idle, key=lambda p: self._peers[p].heard_at)]
        return self._peers.setdefault(peer, KnownPeer())

    def _presence(self, presence: Presence, now: float, wall: int) -> list[Effect]:
        signed = open_offer(presence.offer, wall) if presence.offer else None
        carried = None if signed is None else (signed.offer.peer, signed.offer.epoch, signed.hash)
        if carried not in (None, (presence.peer, presence.epoch, presence.offer_hash)):
            raise malformed("a heartbeat carries another offer than it names")
        peer = PeerId(presence.peer)
        known = self._entry(peer, now)
        if known is None or (presence.epoch, presence.beat) <= (known.epoch, known.beat):
            return []
        if presence.epoch > known.epoch:
            known.restarted(presence.epoch)
            known.failures = known.owed = 0
        known.beat, known.load, known.offer_hash = presence.beat, _load_of(presence), Hash(presence.offer_hash)
        if signed is not None:
            known.adopt(signed, now, wall)
        known.met(now)
        known.owed = max(0, known.owed - 1)
        return [*self._tell(peer, known, now), *self._fetch(peer, known, now), *self._hears(now)]

    def _moved(self, now: float) -> list[Effect]:
        """What was held against others may have been our own doing."""
        self._moved_at = now
        self._deaf_since = now if self._deaf_since is None else self._deaf_since
        effects: list[Effect] = []
        for peer, known in self._peers.items():
            known.failures = known.owed = 0
            known.unmet = True
            effects += self._tell(peer, known, now)
        return effects

    def _hears(self, now: float) -> list[Effect]:
        """Somebody is heard: the time for which we were deaf counts against nobody."""
        if self._deaf_since is None:
            return []
        since, self._deaf_since = self._deaf_since, None
        effects: list[Effect] = []
        for peer, known in self._peers.items():
            if known.heard_at <= since:
                known.heard_at += now - since
                effects += self._tell(peer, known, now)
        return effects

    def _is_ours(self, known: KnownPeer, now: float) -> bool:
        """Whether a call that fails now fails for our change of network, as the peer was not met in the new one."""
        return known.unmet and now < self._moved_at + self.config.settling

    def _offer(self, signed: SignedOffer, now: float, wall: int) -> list[Effect]:
        peer = PeerId(signed.offer.peer)
        known = self._entry(peer, now)
        if known is None:
            return []
        known.adopt(signed, now, wall)
        return self._tell(peer, known, now)

    def _connected(self, peer: PeerId, now: float) -> list[Effect]:
        known = self._entry(peer, now)
        if known is None:
            return []
        known.connected = True
        known.met(now)
        if now < self._moved_at + self.config.settling:
            known.owed = 0  # its other end of what we lost may have broken a call since
        return [*self._tell(peer, known, now), *self._fetch(peer, known, now)]

    def _met(self, event: Disconnected | CallFailed | CallSucceeded, peer: PeerId, now: float) -> list[Effect]:
        known = self._peers.get(peer)
        if known is None:
            return []
        if isinstance(event, Disconnected):
            known.connected = False
        elif isinstance(event, CallFailed):
            if self._is_ours(known, now):
                return []
            known.failures += 1
            known.owed = min(1 << min(known.failures - 1, 16), self.config.owed_max)
        else:
            known.failures = known.owed = 0
            known.met(now)
        return self._tell(peer, known, now)

    def _tell(self, peer: PeerId, known: KnownPeer, now: float) -> list[Effect]:
        """The effect of a changed standing; a newcomer also makes our next heartbeat carry our offer."""
        standing = known.standing(self.config, now)
        before, known.told = known.told, standing
        if standing is before:
            return []
        if standing is Standing.ALIVE:
            if before is not Standing.SUSPECT:
                self._full_beats = max(self._full_beats, 1)
            return [PeerJoined(peer)]
        if standing is Standing.SUSPECT:
            return [PeerSuspect(peer, "a call failed" if known.owed else "silent")]
        if before is Standing.UNKNOWN:
            return []
        return [PeerGone(peer, "left" if known.left else "silent")]

    def _fetch(self, peer: PeerId, known: KnownPeer, now: float) -> list[Effect]:
        """Ask for an offer that we lack, at growing intervals."""
        if not known.lacks_offer() or now < known.fetch_at or known.standing(self.config, now) is not Standing.ALIVE:
            return []
        known.fetch_at = now + min(self.config.fetch_after * 2**known.fetches, self.config.fetch_most)
        known.fetches = min(known.fetches + 1, 16)
        return [FetchOffer(peer)]

    def _own_offer(self, signed: SignedOffer, now: float, wall: int) -> list[Effect]:
        self._own = signed
        self._full_beats = 3  # gossip may lose one, and a newcomer may just be subscribing
        self._renew_at = float("inf") if signed.offer.withdrawn else now + renewal_delay(self.rng)
        beat = self._heartbeat(signed, now, wall)
        if signed.offer.withdrawn:
            self._beat_at = float("inf")
        return [beat, WakeAt(self._wake(now))]

    def _tick(self, now: float, wall: int) -> list[Effect]:
        effects: list[Effect] = []
        if now >= self._beat_at and self._own is not None:
            effects.append(self._heartbeat(self._own, now, wall))
        if now >= self._renew_at:
            self._renew_at = now + self.config.fetch_most  # asked again should this renewal fail
            effects.append(RenewOffer())
        fetches: list[Effect] = []
        for peer, known in list(self._peers.items()):
            effects += self._tell(peer, known, now)
            if len(fetches) < self.config.fetches:
                fetches += self._fetch(peer, known, now)
            if self._forgettable(known, now):
                del self._peers[peer]
        return [*effects, *fetches, WakeAt(self._wake(now))]

    def _forgettable(self, known: KnownPeer, now: float) -> bool:
        if known.connected or known.standing(self.config, now) in (Standing.ALIVE, Standing.SUSPECT):
            return False
        return now > max(known.heard_at + self.config.remember, known.offer_until)

    def _heartbeat(self, own: SignedOffer, now: float, wall: int) -> SendPresence:
        full = self._full_beats > 0 or self._beats % self.config.full_every == 0
        load = self._load
        measured = (load.waiting, load.first_token_ms, load.first_token_p95_ms, load.slot_ms)
        raw = own.raw if full else b""
        presence = Presence(self.me, self.epoch, self._beats, own.hash, load.busy, wall, raw, *measured)
        self._beats += 1
        self._full_beats = max(0, self._full_beats - 1)
        self._beat_at = now + self.config.beat * self.rng.uniform(1 - self.config.jitter, 1 + self.config.jitter)
        return SendPresence(self.sign(presence))

    def _wake(self, now: float) -> float:
        return min(now + self.config.sweep, self._beat_at, self._renew_at)


def _load_of(said: Presence) -> Load:
    return Load(said.busy, said.waiting, said.first_token_ms, said.first_token_p95_ms, said.slot_ms)
