"""One peer as a directory knows it: what its offers, heartbeats and calls add up to. Knows no other peer and sends nothing."""

from dataclasses import dataclass
from enum import StrEnum

from dht.offers import SignedOffer, rank
from protocol.wire.ids import Hash, PeerId


@dataclass(frozen=True, slots=True)
class Config:
    """Seconds, unless said otherwise.

    With heartbeats every `beat` +-20%, two of one peer are at most 12 s apart. `suspect_after` forgives one lost heartbeat and a
    second of gossip; `gone_after` forgives two and leaves 15 s below the minute in which the mesh must forget a dead peer.
    Shorter beats find the dead sooner and cost all peers' bandwidth: 1,000 peers are 100 heartbeats/s, a fiftieth of a core.
    `full_every`: each so many heartbeats carry the whole offer. `owed_max`: the heartbeats that a peer must send after repeated
    failed calls; the first failure asks for one, each further one for twice as many.
    `fetch_after` and `fetch_most` bound how often one peer is asked for its offer, `fetches` how many are asked per sweep.
    `remember`: a gone peer's counters are kept this long, twice the clock slack, so that no replay brings it back.
    `settling`: so long after our own change of network a failed call to a peer that was not met since is not held against it,
    and whoever connects is trusted at once.
    `peers` is how many identities are known at most; a full directory forgets gone ones and refuses newcomers.
    """

    beat: float = 10.0
    jitter: float = 0.2
    suspect_after: float = 25.0
    gone_after: float = 45.0
    sweep: float = 1.0
    full_every: int = 6
    owed_max: int = 8
    fetch_after: float = 5.0
    fetch_most: float = 60.0
    fetches: int = 16
    remember: float = 600.0
    settling: float = 30.0
    peers: int = 4_096


class Standing(StrEnum):
    """What is thought of a peer now. Only ALIVE is routed."""

    UNKNOWN = "unknown"
    """Others spoke of it; itself was not heard."""
    ALIVE = "alive"
    SUSPECT = "suspect"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Load:
    """What a peer says of its own load: requests that run or wait, those that wait, and times in ms (0: not measured).

    `first_token_ms` and `first_token_p95_ms` are of requests that did not wait; `slot_ms` is how long one holds its slot.
    """

    busy: int = 0
    waiting: int = 0
    first_token_ms: int = 0
    first_token_p95_ms: int = 0
    slot_ms: int = 0


IDLE = Load()


@dataclass(slots=True)
class KnownPeer:
    """Everything held of one peer; `handle` of the directory is the only writer."""

    epoch: int = -1
    beat: int = -1
    offer: SignedOffer | None = None
    offer_until: float = 0.0
    offer_hash: Hash | None = None
    """What its latest heartbeat named; None before the first one."""
    load: Load = IDLE
    heard_at: float = float("-inf")
    unmet: bool = False
    """Whether it was not heard since our own network changed."""
    left: bool = False
    connected: bool = False
    failures: int = 0
    owed: int = 0
    """Heartbeats that it has to send before it is routed again."""
    fetch_at: float = float("-inf")
    fetches: int = 0
    told: Standing = Standing.UNKNOWN

    def met(self, now: float) -> None:
        """It is heard at `now`."""
        self.heard_at = now
        self.unmet = False

    def standing(self, config: Config, now: float) -> Standing:
        """What is thought of it at `now`."""
        if self.left:
            return Standing.GONE
        if self.heard_at == float("-inf"):
            return Standing.UNKNOWN
        silent = now - self.heard_at
        if silent > config.gone_after:
            return Standing.GONE
        return Standing.SUSPECT if self.owed or silent > config.suspect_after else Standing.ALIVE

    def adopt(self, signed: SignedOffer, now: float, wall: int) -> None:
        """Take an offer unless it is an older one: what is held never goes back. `wall` is unix milliseconds."""
        if signed.offer.epoch < self.epoch or (self.offer is not None and rank(signed) <= rank(self.offer)):
            return
        if signed.offer.epoch > self.epoch:
            self.restarted(signed.offer.epoch)
        self.offer = signed
        self.offer_until = now + (signed.offer.expires - wall) / 1000
        self.left = signed.offer.withdrawn
        self.fetches, self.fetch_at = 0, float("-inf")

    def restarted(self, epoch: int) -> None:
        """A higher epoch is a new process: nothing that the old one said stands."""
        self.epoch, self.beat, self.offer, self.offer_hash, self.load = epoch, -1, None, None, IDLE
        self.left = False
        self.fetches, self.fetch_at = 0, float("-inf")

    def lacks_offer(self) -> bool:
        """Whether it has an offer that we do not hold."""
        return self.offer is None if self.offer_hash is None else self.offer is None or self.offer.hash != self.offer_hash


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that a job can go to now."""

    peer: PeerId
    signed: SignedOffer
    load: Load
    connected: bool

    @property
    def busy(self) -> int:
        """Requests that run or wait there, by its latest heartbeat."""
        return self.load.busy

    @property
    def free(self) -> int:
        """Slots that its latest heartbeat left free."""
        return max(0, self.signed.offer.slots - self.busy)


@dataclass(frozen=True, slots=True)
class PeerView:
    """What people see of a peer; `silent` is seconds since we heard of itself."""

    peer: PeerId
    standing: Standing
    signed: SignedOffer | None
    epoch: int
    load: Load
    silent: float
    connected: bool
