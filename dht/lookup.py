"""One lookup in the DHT: on disjoint paths, then over the whole region of the key. Decides whom to ask and what it comes to.

A liar can waste the questions of the path that it is on, and no other's. Peers crowded next to a key hide nothing, because
everyone in the key's region is asked, and the region is also looked through from its other parts (S/Kademlia; arXiv 2505.01139).
"""

from collections.abc import Container, Iterable
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
from dht.lookup_paths import ANSWERED, ASKED, FAILED, FRESH, MAX_KNOWN, OUTCOME, Candidate, Path
from protocol.wire.ids import PeerId

UNKNOWN, SOONEST = 0.15, 0.03
"""Seconds after which a wanted answer is looked for elsewhere too: while none has come, and at least."""

SPARE = 1
"""Of those that should have the answer, so many more are asked at once than are wanted: else the slowest of them decides how
long a lookup takes. Measured at 1,000 peers, with 0, 1, 2 and no bound: 192, 172, 175, 162 ms (p99) for 10.2, 10.8, 11.7, 15.3
questions."""

PART_BITS = 3
HELPERS = 2
SCANS = 2


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
        self._candidates: dict[PeerId, Candidate] = {}
        self._paths: list[Path] = []
        self._asked = 0
        self._failed = 0
        self._useful: list[Candidate] = []
        self._pending: list[tuple[Candidate, bytes]] = []
        self._outside: dict[PeerId, Candidate] = {}
        self._elders: list[Contact] = []
        self._silent: Container[PeerId] = ()
        self._scans = 0
        self._scanned_members = 0
        self._wake = float("inf")
        self._slowest = 0.0
        self._lacking = False

    def handle(self, event: Event, now: float) -> list[Effect]:
        """`now` is the monotonic clock in seconds."""
        if self.done is not None:
            return []
        match event:
            case Begin(starts, elders, silent):
                self._silent = silent
                self._elders = list(elders)
                self._begin(starts)
                first = [ask for path in self._paths for ask in self._ask_on(path, now, 1)]
                return [*first, *self._advance(self._paths, now)]
            case Answered(peer, closer, useful):
                return self._answered(peer, closer, useful, now)
            case Failed(peer):
                return self._not_answered(peer, now)
            case Stop():
                return [self._finish("the time for it was over")]
        return self._advance(self._paths, now)

    def steps(self) -> list[Step]:
        """Every question so far, by path and hop."""
        asked = [c for c in self._candidates.values() if c.state != FRESH]
        asked.sort(key=lambda c: (c.path, c.hop, c.asked_at))
        return [
            Step(c.path, c.hop, c.contact.peer, shared_bits(c.contact.place, self.place), OUTCOME[c.state], c.seconds, c.useful)
            for c in asked
        ]

    # ---- events

    def _begin(self, starts: tuple[Contact, ...]) -> None:
        self._paths = [Path() for _ in range(min(self.config.paths, max(1, len(starts))))]
        for index, contact in enumerate(starts):
            self._learn(self._paths[index % len(self._paths)], (contact,), 1, None)

    def _answered(self, peer: PeerId, closer: tuple[Contact, ...], useful: bool, now: float) -> list[Effect]:
        candidate = self._candidates.get(peer)
        if candidate is None or (candidate.state != ASKED and not candidate.helping):
            return []
        path, lacking = self._paths[candidate.path], self._lacking
        if candidate.state == ASKED:
            self._release(path, candidate)
            candidate.state, candidate.seconds = ANSWERED, now - candidate.asked_at
            self._slowest = max(self._slowest, candidate.seconds)
            for giver in candidate.by:
                giver.gave_live += 1
            if useful:
                candidate.useful = True
                self._useful.append(candidate)
            elif candidate.distance < self._radius:
                self._lacking = True
        else:
            candidate.helping -= 1
            self._outside.pop(peer, None)
        if candidate.hop < self.config.hops:
            self._learn(path, closer[: self.config.reply], candidate.hop + 1, candidate)
        return self._advance([path] if self._lacking is lacking else self._paths, now)

    def _not_answered(self, peer: PeerId, now: float) -> list[Effect]:
        candidate = self._candidates.get(peer)
        if candidate is None or candidate.state == FRESH:
            return []
        if candidate.helping:
            candidate.helping -= 1
            self._outside.pop(peer, None)
            return self._advance([], now)
        if candidate.state == ASKED:
            self._release(self._paths[candidate.path], candidate)
            candidate.state, candidate.seconds = FAILED, now - candidate.asked_at
            self._failed += 1
            for giver in candidate.by:
                giver.gave_dead += 1
        return self._advance(self._paths, now)  # every path that knew it looks one peer further

    def _release(self, path: Path, candidate: Candidate) -> None:
        self._outside.pop(candidate.contact.peer, None)
        if candidate in path.busy:
            path.busy.remove(candidate)

    def _learn(self, path: Path, contacts: Iterable[Contact], hop: int, by: Candidate | None) -> None:
        candidates, known = self._candidates, path.peers  # each answer names twenty, most of them again
        for contact in contacts:
            peer = contact.peer
            candidate = candidates.get(peer)
            if candidate is None:
                if peer == self._me:
                    continue
                candidate = candidates[peer] = Candidate(contact, contact.place ^ self.place, hop, by)
                candidate.silent = peer in self._silent
            else:
                if by is not None and len(candidate.by) < 8 and by not in candidate.by:
                    candidate.by.append(by)
                if hop < candidate.hop and candidate.state == FRESH:
                    candidate.hop = hop
            if peer not in known:
                path.learn(candidate)

    # ---- whom to ask

    def _advance(self, paths: Iterable[Path], now: float) -> list[Effect]:
        if self._enough(now):
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

    def _ask_on(self, path: Path, now: float, most: int = MAX_KNOWN) -> list[Effect]:
        asks: list[Effect] = []
        held = len([1 for candidate in path.busy if now - candidate.asked_at < self.config.slow])
        while held < self.config.parallel and self._asked < self.config.queries and len(asks) < most:
            candidate = path.next(self.config.width)
            if candidate is None or (candidate.distance < self._radius and not self._wanting(now)):
                break
            path.busy.append(candidate)
            held += 1
            asks.append(self._ask(candidate, self._paths.index(path), now))
        return asks

    def _wanting(self, now: float) -> bool:
        """Whether more of those that should have it must be asked than are asked already: yes, once one of them has it not."""
        missing = self.config.answers - len(self._counting(now))
        if self._lacking or missing <= 0:  # none is wanted, or those that came are of too few paths or networks
            return True
        late = now - self._soon()
        return len([1 for c in self._outside.values() if c.distance < self._radius and c.asked_at > late]) < missing + SPARE

    def _soon(self) -> float:
        """Within how many seconds an answer is likely, going by those that came."""
        if not self._slowest:
            return min(UNKNOWN, self.config.slow)
        return min(max(SOONEST, 1.5 * self._slowest), self.config.slow)

    def _ask_region(self, now: float) -> list[Effect]:
        """Everybody known in the region, whoever crowds it: one far and one near in turn, so that hidden ones come early."""
        fresh = [c for c in self._members() if c.state == FRESH and not c.doubtful()]
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
            self._learn(self._paths[number % len(self._paths)], (contact,), 1, None)
            candidate = self._candidates.get(contact.peer)
            if candidate is not None and candidate.state == FRESH and self._asked < self.config.queries:
                asks.append(self._ask(candidate, number % len(self._paths), now))
        self._elders = []
        return asks

    def _ask_parts(self, now: float) -> list[Effect]:
        """Look through the region from each of its parts; nobody can crowd them all as cheaply as one key."""
        if self._region_bits == 0 or self._scans >= SCANS or not self._suspicious():
            return []
        members = len(self._members())
        answered = [c for c in self._candidates.values() if c.state == ANSWERED]
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

    def _ask(self, candidate: Candidate, path: int, now: float) -> Ask:
        candidate.state, candidate.path, candidate.asked_at = ASKED, path, now
        self._asked += 1
        self._outside[candidate.contact.peer] = candidate
        return Ask(candidate.contact)

    def _shortest(self) -> int:
        return min(range(len(self._paths)), key=lambda index: len(self._paths[index].busy))

    def _busy(self, now: float) -> bool:
        return any(now - candidate.asked_at < self.config.slow for candidate in self._outside.values())

    def _alarm(self, now: float) -> list[Effect]:
        wait = self._soon() if self.config.answers else self.config.slow
        if now < self._wake <= now + wait:
            return []
        self._wake = now + wait
        return [WakeAt(self._wake)]

    # ---- what it comes to

    def _members(self) -> list[Candidate]:
        return [c for c in self._candidates.values() if c.distance < self._radius]

    def _counting(self, now: float) -> list[Candidate]:
        """The useful answers that count: with `nearest`, of the nearest that are not silent."""
        useful, late = self._useful, now - self.config.slow
        if useful and self.config.nearest:
            silent = {id(c) for c in self._outside.values() if c.state == ASKED and c.asked_at <= late}
            living = (c.distance for c in self._candidates.values() if c.state != FAILED and id(c) not in silent)
            farthest = nsmallest(self.config.nearest, living)[-1]
            useful = [c for c in useful if c.distance <= farthest]
        return useful

    def _enough(self, now: float) -> bool:
        config = self.config
        if not config.answers or len(self._useful) < config.answers:
            return False
        useful = self._counting(now)
        networks = {c.contact.network.wide if c.contact.network else c.contact.peer for c in useful}
        enough_paths = len({c.path for c in useful}) >= min(config.answer_paths, len(self._paths))
        return len(useful) >= config.answers and len(networks) >= 2 and enough_paths

    def _suspicious(self) -> bool:
        """Whether the region may hold peers that nobody named: nothing was found, it is crowded, or the paths disagree."""
        if self.config.answers:
            return not self._useful
        living = [c for c in self._members() if c.state != FAILED]
        inner = sum(c.distance < self._radius // 4 for c in living)
        crowded = inner >= self.config.region or len(living) >= 3 * self.config.region
        return crowded or self._agreeing() < min(2, len(self._paths))

    def _agreeing(self) -> int:
        """How many paths know at least half of the eight nearest peers that answered on any."""
        nearest = {c.contact.peer for c in self._nearest()[:8]}
        if not nearest:
            return 0
        return sum(2 * len(path.peers & nearest) >= len(nearest) for path in self._paths)

    def _nearest(self) -> list[Candidate]:
        return sorted((c for c in self._candidates.values() if c.state == ANSWERED), key=lambda c: c.distance)

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

    def _verdict(self, nearest: list[Candidate], agreeing: int, cut: str) -> tuple[Verdict, str]:
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
        answered = sum(c.state == ANSWERED for c in members)
        if 2 * answered < len(members):
            return Verdict.FAILED, f"only {answered} of {len(members)} peers near the key answered"
        if self._region_bits and 4 * answered < self.config.region:
            return Verdict.FAILED, f"{answered} peers near the key are fewer than there must be"
        return (Verdict.ABSENT if self.config.answers else Verdict.FOUND), ""
