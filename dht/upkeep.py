"""When a DHT node refreshes its table and says its own again, and what it looks up for that. Decides; looks up nothing itself."""

from dataclasses import dataclass, field
from random import Random

from dht.contacts import Contact
from dht.keyspace import point_in, shared_bits
from dht.table import Table

DEEPEST = 16


@dataclass(frozen=True, slots=True)
class UpkeepConfig:
    """Seconds, each give or take `jitter`, so that a mesh started at once does not work at once.

    `republish` is a quarter of what a record lives and providers are listed for: three lost rounds change nothing. `check`: each
    so often up to `checks` silent entries are asked whether they are there. After arrivals the table is refreshed within `soon`,
    ever more rarely up to `rarely` while they go on, and so it is while all of it would fit into one bucket: those that were to
    be met may have been out of reach. A bucket with `filled` entries is full enough. What was said when the table had fewer than
    `few` entries is said again once it has twice as many: others stand nearer to our keys than those who heard it.
    """

    refresh: float = 600.0
    republish: float = 900.0
    check: float = 60.0
    checks: int = 4
    soon: float = 1.0
    rarely: float = 60.0
    jitter: float = 0.2
    filled: int = 10
    few: int = 40


# Events


@dataclass(frozen=True, slots=True)
class Arrived:
    """Somebody answered us for the first time and knew others."""


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The lookup of `name` that was asked for has ended."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """The time asked for by WakeAt has come; the first one starts the clock."""


Event = Arrived | LookedUp | Tick


# Effects


@dataclass(frozen=True, slots=True)
class LookUp:
    """Look for the peers nearest to `name`; then send LookedUp."""

    name: bytes


@dataclass(frozen=True, slots=True)
class Republish:
    """Store our records and name ourselves a provider again."""


@dataclass(frozen=True, slots=True)
class Check:
    """Ask whether `contact` is there."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class Expire:
    """Forget records and providers that are past their time."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send a Tick at this time; replaces the earlier WakeAt."""

    time: float


Effect = LookUp | Republish | Check | Expire | WakeAt


@dataclass(slots=True)
class Upkeep:
    """The clock of the node called `name` (its binary peer id)."""

    name: bytes
    table: Table
    rng: Random
    config: UpkeepConfig = field(default_factory=UpkeepConfig)
    _started: bool = False
    _working: bool = False
    _queue: list[bytes] = field(default_factory=list)
    _refresh_at: float = 0.0
    _republish_at: float = 0.0
    _check_at: float = 0.0
    _pause: float = 0.0
    _earliest: float = float("-inf")
    _knew: int = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        """`now` is the monotonic clock in seconds."""
        effects: list[Effect] = []
        if not self._started:
            self._started = True
            self._refresh_at = now + self._soon(self.config.refresh)
            self._republish_at = now + self._soon(self.config.republish)
            self._check_at = now + self._soon(self.config.check)
        match event:
            case Arrived():
                self._refresh_at = min(self._refresh_at, max(now + self.config.soon / 4, self._earliest))
            case LookedUp(name):
                self._working = False
                effects += self._looked_up(name, now)
            case Tick():
                effects += self._tick(now)
        if now >= self._refresh_at and not self._working and not self._queue and len(self.table):
            self._queue = [self.name]
            self._refresh_at = now + self._soon(self.config.refresh)
            self._pause = min(max(self.config.soon, 2 * self._pause), self.config.rarely)
            self._earliest = now + self._pause
        if self._queue and not self._working:
            self._working = True
            effects.append(LookUp(self._queue.pop(0)))
        return [*effects, WakeAt(self._wake(now))]

    def _looked_up(self, name: bytes, now: float) -> list[Effect]:
        if name == self.name:
            self._queue += self._thin()
            if len(self.table) < self.table.config.bucket:
                self._refresh_at = min(self._refresh_at, now + self._soon(self._pause))
        if self._queue or self._knew >= self.config.few or len(self.table) < max(1, 2 * self._knew):
            return []
        return [self._republish(now)]

    def _thin(self) -> list[bytes]:
        """A name in every bucket above our own neighbourhood that is not filled."""
        nearest = self.table.closest(self.table.me, self.table.config.bucket)
        if len(nearest) < self.table.config.bucket:
            return []  # we know everybody that there is to know, or nearly
        sizes = self.table.sizes()
        depth = min(DEEPEST, shared_bits(self.table.me, nearest[-1].place))
        thin = [bits for bits in range(depth) if sizes.get(bits, 0) < self.config.filled]
        return [point_in(self.table.me ^ (1 << (255 - bits)), bits + 1) for bits in thin]

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if now >= self._check_at:
            self._check_at = now + self._soon(self.config.check)
            self._pause /= 2
            effects.append(Expire())
            effects += [Check(contact) for contact in self.table.doubtful(now, self.config.checks)]
        if now >= self._republish_at:
            effects.append(self._republish(now))
        return effects

    def _republish(self, now: float) -> Republish:
        self._knew = len(self.table)
        self._republish_at = now + self._soon(self.config.republish)
        return Republish()

    def _wake(self, now: float) -> float:
        waits = [self._republish_at, self._check_at]
        if not self._working and len(self.table):
            waits.append(self._refresh_at)
        return max(now, min(waits))

    def _soon(self, seconds: float) -> float:
        return seconds * self.rng.uniform(1 - self.config.jitter, 1 + self.config.jitter)
