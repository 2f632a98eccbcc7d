"""A mesh whose peers probe each other under a virtual clock, some of them liars. Every claim reaches every reader at once.

What a peer does (its share of right answers) and what it says (its claims) are strategies; scores are the real ones.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from crdt_store.claims import NO_HASH, Claim, Kind, SignedClaim
from crdt_store.replica import Inserted
from crdt_store.scores import Parameters, Scores
from protocol.wire.ids import PeerId

ROUND_MS = 3_600_000
"""Virtual time of one round: with the default half-life of 14 days, 336 rounds."""

EPOCH_MS = 1_790_000_000_000

SKILL = "arithmetic"

Does = Callable[["World", "Member", str], float]
"""The share of right answers of a member now, in a skill."""

Says = Callable[["World", "Member", "Member", bool], bool]
"""What a member claims of a subject whose answer was really right or wrong."""


def truth(world: "World", issuer: "Member", subject: "Member", right: bool) -> bool:
    return right


@dataclass(eq=False)
class Member:
    """One identity."""

    name: PeerId
    does: Does
    says: Says = truth
    group: str = "honest"
    alive: bool = True
    born: int = 0
    probes: Callable[["World", "Member"], Iterable[tuple["Member", str]]] | None = None
    """Whom it probes in a round; None: as honest members do."""
    note: dict[str, float] = field(default_factory=dict)


class World:
    """Members, their claims, and readers among the honest ones. `round` counts from 0."""

    def __init__(self, rng: Random, probes: float = 2.0, skills: tuple[str, ...] = (SKILL,)) -> None:
        self.rng = rng
        self.members: list[Member] = []
        self.readers: dict[PeerId, Scores] = {}
        self.round = 0
        self.skills = skills
        self._probes = probes
        self._made = 0
        self._seqs: dict[PeerId, int] = {}

    @property
    def now(self) -> int:
        return EPOCH_MS + self.round * ROUND_MS

    def add(self, does: Does | float, count: int = 1, reader: bool = False, **options: object) -> list[Member]:
        """New members; a number for `does` is their constant share of right answers."""
        made = []
        for _ in range(count):
            self._made += 1
            share = does
            behaviour = share if callable(share) else _constant(share)
            member = Member(PeerId(f"peer-{self._made:04d}"), behaviour, born=self.round, **options)  # type: ignore[arg-type]
            made.append(member)
            self.members.append(member)
            if reader:
                self.readers[member.name] = Scores(member.name, Parameters())
        return made

    def alive(self) -> list[Member]:
        return [member for member in self.members if member.alive]

    def claim(self, issuer: Member, subject: Member, right: bool, skill: str = SKILL, count: int = 1) -> None:
        """`issuer` says it, and every reader hears it."""
        seq = self._seqs[issuer.name] = self._seqs.get(issuer.name, -1) + 1
        kind = Kind.PROBE_PASSED if right else Kind.PROBE_FAILED
        claim = Claim(issuer.name, seq // 1000, seq % 1000, NO_HASH, subject.name, kind, skill, count, NO_HASH, self.now)
        heard = Inserted(SignedClaim(claim, NO_HASH, b""))
        for scores in self.readers.values():
            scores.observe(heard)

    def probe(self, issuer: Member, subject: Member, skill: str = SKILL) -> None:
        """A real question: the subject answers as it does, the issuer says what it says."""
        right = self.rng.random() < subject.does(self, subject, skill)
        self.claim(issuer, subject, issuer.says(self, issuer, subject, right), skill)

    def step(self) -> None:
        """One round: everybody probes, then time passes."""
        members = self.alive()
        for issuer in members:
            if issuer.probes is not None:
                for subject, skill in issuer.probes(self, issuer):
                    self.probe(issuer, subject, skill)
                continue
            count = int(self._probes) + (self.rng.random() < self._probes % 1)
            for subject in self.rng.sample(members, min(len(members), count + 1))[: count + 1]:
                if subject is not issuer and count:
                    self.probe(issuer, subject, self.rng.choice(self.skills))
                    count -= 1
        self.round += 1

    def weight(self, member: Member, skill: str = SKILL) -> float:
        """The member's weight in milli, the mean over the readers, itself excepted."""
        views = [one.score(member.name, skill, self.now).weight_milli for me, one in self.readers.items() if me != member.name]
        return sum(views) / len(views)

    def share(self, group: str, skill: str = SKILL) -> float:
        """The part of all weight that a group has, in percent."""
        weights = [(member.group, self.weight(member, skill)) for member in self.alive()]
        return 100 * sum(weight for name, weight in weights if name == group) / sum(weight for _, weight in weights)


def _constant(share: float) -> Does:
    return lambda world, member, skill: share
