"""One lookup in the DHT: on disjoint paths, then over the whole region of the key. Decides whom to ask and what it comes to.

A liar can waste the questions of the path that it is on, and no other's. Peers crowded next to a key hide nothing, because
everyone in the key's region is asked, and the region is also looked through from its other parts (S/Kademlia; arXiv 2505.01139).
"""

from bisect import insort
from collections.abc import Container, Iterable, Iterator
from heapq import nsmallest
from random import Random

from dht.contacts import Contact
from dht.keyspace import parts_of, point_in, shared_bits
from dht.lookup_events import (
    Answered,
    Ask,
    Begin,
    Done,
    Effect,
    Event,
    Failed,
    LookupConfig,
    Step,
    Stop,
    Verdict,
    WakeAt,
)
from protocol.wire.ids import PeerId

MAX_KNOWN = 80
"""Peers that one path keeps in mind, the nearest: four times as many as it asks."""

NARROW, WIDE = 2, 5
"""Of the nearest that a path asks, those in one network at most: identities next to a key are cheap, networks are not."""

PART_BITS = 3
HELPERS = 2
SCANS = 2

_FRESH, _ASKED, _ANSWERED, _FAILED = range(4)
_OUTCOME = ("known", "waiting", "answered", "failed")


class _Candidate:
    __slots__ = (
        "asked_at", "by", "contact", "distance", "gave_dead", "gave_live", "helping", "hop", "path", "seconds", "silent", "state",
        "useful",
    )  # fmt: skip

    def __init__(self, contact: Contact, distance: int, hop: int, by: "_Candidate | None") -> None:
        self.contact = contact
        self.distance = distance
        self.hop = hop
        self.by = [by] if by is not None else []
        self.state = _FRESH
        self.path = -1
        self.asked_at = 0.0
        self.seconds: float | None = None
        self.useful = False
        self.helping = 0
        self.silent = False
        self.gave_dead = self.gave_live = 0

    def doubtful(self) -> bool:
        """Whether it was silent lately, or all that named it named mostly peers that do not answer."""
        return self.silent or (bool(self.by) and all(giver.gave_dead > giver.gave_live + 3 for giver in self.by))


class _Path:
    __slots__ = ("busy", "known", "peers")

    def __init__(self) -> None:
        self.known: list[tuple[int, int, _Candidate]] = []
        self.peers: set[PeerId] = set()
        self.busy: list[_Candidate] = []


class Lookup:
    """A lookup of a name's place. `region_bits`: how many bits the peers of its region share with it (Density.region_bits)."""

    def __init__(self, me: PeerId, place: int, region_bits: int, rng: Random, config: LookupConfig | None = None) -> None:
        self.config = config or LookupConfig()
        self.place = place
        self.done: Done | None = None
        self._me = me
        self._rng = rng
        self._region_bits = region_bits
        self._radius = 1 << (256 - region_bits)
        self._candidates: dict[PeerId, _Candidate] = {}
        self._paths: list[_Path] = []
        self._asked = 0
        self._failed = 0
        self._useful: list[_Candidate] = []
        self._pending: list[tuple[_Candidate, bytes]] = []
        self._outside: dict[PeerId, _Candidate] = {}
        self._elders: list[Contact] = []
        self._silent: Container[PeerId] = ()
        self._scans = 0
        self._scanned_members = 0
        self._wake = float("inf")

    def handle(self, event: Event, now: float) -> list[Effect]:
        """`now` is the monotonic clock in seconds."""
        if self.done is not None:
            return []
        match event:
            case Begin(starts, elders, silent):
                self._silent = silent
                self._elders = list(elders)
                self._begin(starts)
                return self._advance(self._paths, now)
            case Answered(peer, closer, useful):
                return self._answered(peer, closer, useful, now)
            case Failed(peer):
                return self._not_answered(peer, now)
            case Stop():
                return [self._finish("the time for it was over")]
        return self._advance(self._paths, now)

    def steps(self) -> list[Step]:
        """Every question so far, by path and hop."""
        asked = [c for c in self._candidates.values() if c.state != _FRESH]
        asked.sort(key=lambda c: (c.path, c.hop, c.asked_at))
        return [
            Step(c.path, c.hop, c.contact.peer, shared_bits(c.contact.place, self.place), _OUTCOME[c.state], c.seconds, c.useful)
            for c in asked
        ]

    # ---- events

    def _begin(self, starts: tuple[Contact, ...]) -> None:
        self._paths = [_Path() for _ in range(min(self.config.paths, max(1, len(starts))))]
        for index, contact in enumerate(starts):
            self._learn(self._paths[index % len(self._paths)], contact, 1, None)

    def _answered(self, peer: PeerId, closer: tuple[Contact, ...], useful: bool, now: float) -> list[Effect]:
        candidate = self._candidates.get(peer)
        if candidate is None or (candidate.state != _ASKED and not candidate.helping):
            return []
        path = self._paths[candidate.path]
        if candidate.state == _ASKED:
            self._release(path, candidate)
            candidate.state, candidate.seconds = _ANSWERED, now - candidate.asked_at
            for giver in candidate.by:
                giver.gave_live += 1
            if useful:
                candidate.useful = True
                self._useful.append(candidate)
        else:
            candidate.helping -= 1
            self._outside.pop(peer, None)
        if candidate.hop < self.config.hops:
            for contact in closer[: self.config.reply]:
                self._learn(path, contact, candidate.hop + 1, candidate)
        return self._advance([path], now)

    def _not_answered(self, peer: PeerId, now: float) -> list[Effect]:
        candidate = self._candidates.get(peer)
        if candidate is None or candidate.state == _FRESH:
            return []
        if candidate.helping:
            candidate.helping -= 1
            self._outside.pop(peer, None)
            return self._advance([], now)
        if candidate.state == _ASKED:
            self._release(self._paths[candidate.path], candidate)
            candidate.state, candidate.seconds = _FAILED, now - candidate.asked_at
            self._failed += 1
            for giver in candidate.by:
                giver.gave_dead += 1
        return self._advance(self._paths, now)  # every path that knew it looks one peer further

    def _release(self, path: _Path, candidate: _Candidate) -> None:
        self._outside.pop(candidate.contact.peer, None)
        if candidate in path.busy:
            path.busy.remove(candidate)

    def _learn(self, path: _Path, contact: Contact, hop: int, by: _Candidate | None) -> None:
        candidate = self._candidates.get(contact.peer)
        if candidate is None:
            if contact.peer == self._me:
                return
            candidate = _Candidate(contact, contact.place ^ self.place, hop, by)
            candidate.silent = contact.peer in self._silent
            self._candidates[contact.peer] = candidate
        else:
            if by is not None and len(candidate.by) < 8 and by not in candidate.by:
                candidate.by.append(by)
            if hop < candidate.hop and candidate.state == _FRESH:
                candidate.hop = hop
        if contact.peer in path.peers or (len(path.known) >= MAX_KNOWN and candidate.distance >= path.known[-1][0]):
            return
        path.peers.add(contact.peer)
        insort(path.known, (candidate.distance, id(candidate), candidate))
        for _, _, farthest in path.known[MAX_KNOWN:]:
            path.peers.discard(farthest.contact.peer)
        del path.known[MAX_KNOWN:]

    # ---- whom to ask

    def _advance(self, paths: Iterable[_Path], now: float) -> list[Effect]:
        if self._enough():
            return [self._finish("")]
        asks: list[Effect] = []
        for path in paths:
            asks += self._ask_on(path, now)
        if not asks and not self._busy(now):
            for path in self._paths:
                asks += self._ask_on(path, now)
        if not asks and not self._busy(now):
            asks += self._ask_region(now)
        if not asks and not self._busy(now):
            asks += self._ask_elders(now)
        if not asks and not self._busy(now):
            asks += self._ask_parts(now)
        if not asks and not self._busy(now):
            return [self._finish("")]
        return [*asks, *self._alarm(now)]

    def _ask_on(self, path: _Path, now: float) -> list[Effect]:
        asks: list[Effect] = []
        held = sum(now - candidate.asked_at < self.config.slow for candidate in path.busy)
        while held < self.config.parallel and self._asked < self.config.queries:
            candidate = next((c for c in self._near(path) if c.state == _FRESH), None)
            if candidate is None:
                break
            path.busy.append(candidate)
            held += 1
            asks.append(self._ask(candidate, self._paths.index(path), now))
        return asks

    def _near(self, path: _Path) -> Iterator[_Candidate]:
        """The `width` nearest that the path should ask: living, not too many of one network; whom only liars named comes last."""
        narrow, wide = dict[str, int](), dict[str, int]()  # a Counter costs a tenth of a whole lookup here
        doubtful: list[_Candidate] = []
        left = self.config.width
        for _, _, candidate in path.known:
            if left == 0:
                return
            if candidate.state == _FAILED:
                continue
            if candidate.state == _FRESH and candidate.doubtful():
                doubtful.append(candidate)
                continue
            network = candidate.contact.network
            if network is not None:
                beside, around = narrow.get(network.narrow, 0), wide.get(network.wide, 0)
                if beside >= NARROW or around >= WIDE:
                    continue
                narrow[network.narrow], wide[network.wide] = beside + 1, around + 1
            left -= 1
            yield candidate
        yield from doubtful[:left]

    def _ask_region(self, now: float) -> list[Effect]:
        """Everybody known in the region, whoever crowds it: one far and one near in turn, so that hidden ones come early."""
        fresh = [c for c in self._members() if c.state == _FRESH and not c.doubtful()]
        fresh.sort(key=lambda c: c.distance)
        room = min(len(self._paths) * self.config.parallel, self.config.queries - self._asked)
        asks: list[Effect] = []
        for index in range(min(room, len(fresh))):
            candidate = fresh.pop(0 if index % 2 else -1)
            asks.append(self._ask(candidate, self._shortest(), now))
        return asks

    def _ask_elders(self, now: float) -> list[Effect]:
        """Some that stand far off: whoever crowds our own neighbourhood may be all that is near a key that is near us."""
        if self.config.answers and self._useful:
            return []
        asks: list[Effect] = []
        for number, contact in enumerate(self._elders):
            self._learn(self._paths[number % len(self._paths)], contact, 1, None)
            candidate = self._candidates.get(contact.peer)
            if candidate is not None and candidate.state == _FRESH and self._asked < self.config.queries:
                asks.append(self._ask(candidate, number % len(self._paths), now))
        self._elders = []
        return asks

    def _ask_parts(self, now: float) -> list[Effect]:
        """Look through the region from each of its parts; nobody can crowd them all as cheaply as one key."""
        if self._region_bits == 0 or self._scans >= SCANS or not self._suspicious():
            return []
        members = len(self._members())
        answered = [c for c in self._candidates.values() if c.state == _ANSWERED]
        if not answered or (self._scans and members == self._scanned_members):
            return []  # nobody can be asked, or the parts that were asked named nobody new
        self._scanned_members = members
        self._scans += 1
        far = [c for c in answered if c.distance >= self._radius]
        asks: list[Effect] = []
        for part in parts_of(self.place, self._region_bits, PART_BITS):
            helpers = [min(answered, key=lambda c: c.contact.place ^ part), *self._rng.sample(far, min(HELPERS - 1, len(far)))]
            name = point_in(part, self._region_bits + PART_BITS)
            for helper in helpers:
                if self._asked >= self.config.queries:
                    return asks
                self._asked += 1
                helper.helping += 1
                helper.asked_at = now
                self._outside[helper.contact.peer] = helper
                asks.append(Ask(helper.contact, name))
        return asks

    def _ask(self, candidate: _Candidate, path: int, now: float) -> Ask:
        candidate.state, candidate.path, candidate.asked_at = _ASKED, path, now
        self._asked += 1
        self._outside[candidate.contact.peer] = candidate
        return Ask(candidate.contact)

    def _shortest(self) -> int:
        return min(range(len(self._paths)), key=lambda index: len(self._paths[index].busy))

    def _busy(self, now: float) -> bool:
        return any(now - candidate.asked_at < self.config.slow for candidate in self._outside.values())

    def _alarm(self, now: float) -> list[Effect]:
        if now < self._wake <= now + self.config.slow:
            return []
        self._wake = now + self.config.slow
        return [WakeAt(self._wake)]

    # ---- what it comes to

    def _members(self) -> list[_Candidate]:
        return [c for c in self._candidates.values() if c.distance < self._radius]

    def _enough(self) -> bool:
        config = self.config
        if not config.answers or len(self._useful) < config.answers:
            return False
        useful = self._useful
        if config.nearest:
            living = nsmallest(config.nearest, (c.distance for c in self._candidates.values() if c.state != _FAILED))
            useful = [c for c in useful if c.distance <= living[-1]]
        networks = {c.contact.network.wide if c.contact.network else c.contact.peer for c in useful}
        enough_paths = len({c.path for c in useful}) >= min(config.answer_paths, len(self._paths))
        return len(useful) >= config.answers and len(networks) >= 2 and enough_paths

    def _suspicious(self) -> bool:
        """Whether the region may hold peers that nobody named: nothing was found, it is crowded, or the paths disagree."""
        if self.config.answers:
            return not self._useful
        living = [c for c in self._members() if c.state != _FAILED]
        inner = sum(c.distance < self._radius // 4 for c in living)
        crowded = inner >= self.config.region or len(living) >= 3 * self.config.region
        return crowded or self._agreeing() < min(2, len(self._paths))

    def _agreeing(self) -> int:
        """How many paths know at least half of the eight nearest peers that answered on any."""
        nearest = {c.contact.peer for c in self._nearest()[:8]}
        if not nearest:
            return 0
        return sum(2 * len(path.peers & nearest) >= len(nearest) for path in self._paths)

    def _nearest(self) -> list[_Candidate]:
        return sorted((c for c in self._candidates.values() if c.state == _ANSWERED), key=lambda c: c.distance)

    def _finish(self, cut: str) -> Done:
        nearest = self._nearest()
        agreeing = self._agreeing()
        members = self._members()
        verdict, reason = self._verdict(nearest, agreeing, cut)
        first = min(self._useful, key=lambda c: c.hop, default=None) or (nearest[0] if nearest else None)
        self.done = Done(
            verdict=verdict,
            reason=reason,
            closest=tuple(c.contact for c in nearest[: self.config.width]),
            region=tuple(c.contact for c in nearest if c.distance < self._radius) if members else (),
            hops=first.hop if first is not None else 0,
            asked=self._asked,
            failed=self._failed,
            paths=len(self._paths),
            agreeing=agreeing,
            scanned=self._scans > 0,
        )
        return self.done

    def _verdict(self, nearest: list[_Candidate], agreeing: int, cut: str) -> tuple[Verdict, str]:
        if self._useful:
            return Verdict.FOUND, cut
        if not nearest:
            return Verdict.FAILED, cut or ("nobody answered" if self._asked else "there is nobody to ask")
        if cut:
            return Verdict.FAILED, cut
        if self._asked >= self.config.queries:
            return Verdict.FAILED, f"{self._asked} questions led to no end"
        if agreeing < min(2, len(self._paths)):
            return Verdict.FAILED, "the paths end at different peers"
        members = [c for c in self._members() if not c.doubtful()]
        answered = sum(c.state == _ANSWERED for c in members)
        if 2 * answered < len(members):
            return Verdict.FAILED, f"only {answered} of {len(members)} peers near the key answered"
        if self._region_bits and 4 * answered < self.config.region:
            return Verdict.FAILED, f"{answered} peers near the key are fewer than there must be"
        return (Verdict.ABSENT if self.config.answers else Verdict.FOUND), ""
