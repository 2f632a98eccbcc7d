"""What a lookup knows on each path: who was named, by whom, and what came of asking. Decides who of them is worth asking."""

from bisect import insort

from dht.contacts import Contact
from protocol.wire.ids import PeerId

MAX_KNOWN = 80
"""Peers that one path keeps in mind, the nearest: four times as many as it asks."""

NARROW, WIDE = 2, 5
"""Of the nearest that a path asks, those in one network at most: identities next to a key are cheap, networks are not."""

FRESH, ASKED, ANSWERED, FAILED = range(4)
OUTCOME = ("known", "waiting", "answered", "failed")


class Candidate:
    """A peer that the lookup has heard of, and what became of the question to it."""

    __slots__ = (
        "asked_at", "by", "contact", "distance", "gave_dead", "gave_live", "helping", "hop", "path", "seconds", "silent", "state",
        "useful",
    )  # fmt: skip

    def __init__(self, contact: Contact, distance: int, hop: int, by: "Candidate | None") -> None:
        self.contact = contact
        self.distance = distance
        self.hop = hop
        self.by = [by] if by is not None else []
        self.state = FRESH
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


class Path:
    """One of the disjoint paths: the nearest that it has heard of, and those that it waits for."""

    __slots__ = ("busy", "known", "peers")

    def __init__(self) -> None:
        self.known: list[tuple[int, int, Candidate]] = []
        self.peers: set[PeerId] = set()
        self.busy: list[Candidate] = []

    def learn(self, candidate: Candidate) -> None:
        """Keep a peer in mind that is not yet, while it is among the nearest."""
        if len(self.known) >= MAX_KNOWN and candidate.distance >= self.known[-1][0]:
            return
        self.peers.add(candidate.contact.peer)
        insort(self.known, (candidate.distance, id(candidate), candidate))
        for _, _, farthest in self.known[MAX_KNOWN:]:
            self.peers.discard(farthest.contact.peer)
        del self.known[MAX_KNOWN:]

    def next(self, width: int) -> Candidate | None:
        """Whom to ask next of the `width` nearest: living, not too many of one network; whom only liars named comes last."""
        narrow, wide = dict[str, int](), dict[str, int]()  # a Counter costs a tenth of a whole lookup here
        doubtful: Candidate | None = None
        left = width
        for _, _, candidate in self.known:
            if left == 0:
                return None
            state = candidate.state
            if state == FAILED:
                continue
            if state == FRESH and candidate.doubtful():
                doubtful = doubtful or candidate
                continue
            network = candidate.contact.network
            if network is not None:
                beside, around = narrow.get(network.narrow, 0), wide.get(network.wide, 0)
                if beside >= NARROW or around >= WIDE:
                    continue
                narrow[network.narrow], wide[network.wide] = beside + 1, around + 1
            if state == FRESH:
                return candidate
            left -= 1
        return doubtful if left else None
