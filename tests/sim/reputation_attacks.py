"""Attacks on reputation and the figures of each: whitewashing, praise, slander, laundering (C6 to C9 of docs/security.md)."""

from collections.abc import Callable
from random import Random
from statistics import median

from tests.sim.reputation_world import SKILL, Does, Member, Says, World, truth

HONEST = 28
RING = 12
"""30% of 40."""

READERS = 2

Figures = dict[str, float]


def mesh(seed: int, skills: tuple[str, ...] = (SKILL,)) -> World:
    """Honest members whose share of right answers is 0.7 to 0.95; the first two are readers."""
    world = World(Random(seed), skills=skills)
    shares = Random(seed + 1)
    for place in range(HONEST):
        world.add(shares.uniform(0.7, 0.95), reader=place < READERS)
    return world


def whitewash(seed: int, rounds: int = 1_000, every: int = 10) -> Figures:
    """C6. For each way to misbehave one attacker that stays and one that comes back with a new key; all in one mesh.

    "bad" is wrong four times in five; its rival takes a new key every 60 rounds. "crowd": the same with five keys at once, all
    replaced every 30 rounds. "milker" works well until it weighs nearly as much as an honest member, then answers wrong until it
    weighs little; one then works well again under its old key, the other takes a new one. Figures: weight earned over all rounds
    (and for the milkers, weight while cheating) of who came back, as a part of who stayed; and a newcomer's weight as a part of
    the honest median.
    """
    world = mesh(seed)
    pairs: dict[str, dict[str, list[Member]]] = {}
    ways: dict[str, tuple[Does | float, int, int]] = {"bad": (0.2, 1, 60), "crowd": (0.2, 5, 30), "milker": (_milks, 1, 0)}
    for name, (does, count, _) in ways.items():
        pairs[name] = {side: world.add(does, count=count, group=name) for side in ("stay", "wash")}
    earned = {f"{name} {side}": 0.0 for name in [*ways, "harm"] for side in ("stay", "wash")}
    newcomer = 0.0
    for number in range(0, rounds, every):
        for _ in range(every):
            world.step()
        honest = median(world.weight(member) for member in world.members[READERS:HONEST:4])
        (fresh,) = world.add(0.9, group="fresh")
        newcomer = max(newcomer, world.weight(fresh) / honest) if number > rounds // 10 else 0.0
        world.members.remove(fresh)
        for name, sides in pairs.items():
            for side, members in sides.items():
                for place, member in enumerate(members):
                    weight = world.weight(member)
                    earned[f"{name} {side}"] += weight
                    earned[f"harm {side}"] += weight if member.note.get("cheats") else 0.0
                    caught = name == "milker" and _caught(member, weight, honest)
                    expired = ways[name][2] and number % ways[name][2] < every and number
                    if side == "wash" and (caught or expired):
                        members[place] = _new_key(world, member)
    figures = {f"{name} earned again": earned[f"{name} wash"] / earned[f"{name} stay"] for name in ways}
    figures["milker harm again"] = earned["harm wash"] / max(1.0, earned["harm stay"])
    return figures | {"newcomer / median": newcomer}


def _new_key(world: World, member: Member) -> Member:
    member.alive = False
    world.members.remove(member)
    (fresh,) = world.add(member.does, says=member.says, group=member.group)
    return fresh


def _milks(world: World, member: Member, skill: str) -> float:
    return 0.0 if member.note.get("cheats") else 0.9


def _caught(member: Member, weight: float, honest: float) -> bool:
    """Whether the milker has just been found out; changes its mood by what it weighs."""
    if member.note.get("cheats") and weight < 0.4 * honest:
        member.note["cheats"] = 0
        return True
    if weight > 0.8 * honest:
        member.note["cheats"] = 1
    return False


PRAISES = ("blatant", "sleeper", "lean", "praise and slander", "weak and blatant")


def praise(seed: int, way: str, rounds: int = 400) -> Figures:
    """C7. The ring's share of all weight, in percent, minus the share that its honest work alone would have.

    Each member of the ring (30%) also invents claims about the others: 20 passed probes about three of them in each round.
    "sleeper" begins half-way, in good standing; "lean" lies only one time in five, so as to stay within chance; in "weak" the
    ring's members are right two times in five, in all others they work as well as honest members do.
    """
    shares = {lies: _ring(seed, way, rounds, lies) for lies in (False, True)}
    return {"share, points": shares[True] - shares[False], "honest share": shares[False]}


def _ring(seed: int, way: str, rounds: int, lies: bool) -> float:
    world = mesh(seed)
    start = rounds // 2 if way == "sleeper" else 0
    says = _praises(Random(seed), way, start) if lies else truth
    shares = Random(seed + 2)
    for _ in range(RING):
        world.add(0.4 if way.startswith("weak") else shares.uniform(0.7, 0.95), group="ring", says=says)
    ring = [member for member in world.members if member.group == "ring"]
    inventor = Random(seed + 3)
    seen = []
    for number in range(rounds):
        world.step()
        if lies and number >= start and way != "lean":
            for member in ring:
                for friend in inventor.sample([one for one in ring if one is not member], 3):
                    world.claim(member, friend, True, count=20)
        if number >= rounds * 3 // 4 and number % 10 == 9:
            seen.append(world.share("ring"))
    return sum(seen) / len(seen)


def _praises(rng: Random, way: str, start: int) -> Says:
    def says(world: World, issuer: Member, subject: Member, right: bool) -> bool:
        if world.round < start:
            return right
        if subject.group == "ring":
            return right or way != "lean" or rng.random() < 0.2
        return right and not (way == "praise and slander" and rng.random() < 0.5)

    return says


SLANDERS = ("blatant", "sleeper", "lean")


def slander(seed: int, way: str, rounds: int = 400) -> Figures:
    """C8. The part of a member's weight that 30% of the mesh take from it by speaking ill of it, in percent.

    They speak the truth about everybody else. "blind reader": one that never asked the victim anything and has only others' word.
    """
    weights = {lies: _victim(seed, way, rounds, lies) for lies in (False, True)}
    return {name: 100 * (1 - weights[True][name] / weights[False][name]) for name in ("loss, percent", "loss, blind reader")}


def _victim(seed: int, way: str, rounds: int, lies: bool) -> Figures:
    world = mesh(seed)
    (victim,) = world.add(0.85, group="victim")
    start = rounds // 2 if way == "sleeper" else 0
    rng = Random(seed)

    def says(world: World, issuer: Member, subject: Member, right: bool) -> bool:
        if not lies or world.round < start or subject is not victim:
            return right
        return right and way == "lean" and rng.random() > 0.25

    ring = world.add(0.85, count=RING, group="ring", says=says)
    blind, *_ = world.add(0.85, reader=True)
    others = [one for one in world.members if one not in (blind, victim)]
    blind.probes = lambda world, member: [(one, SKILL) for one in world.rng.sample(others, 2)]
    seen: dict[str, list[float]] = {"loss, percent": [], "loss, blind reader": []}
    for number in range(rounds):
        world.step()
        if lies and number >= start and way != "lean":
            for member in ring:
                world.claim(member, victim, False, count=20)
        if number >= rounds * 3 // 4 and number % 10 == 9:
            views = {me: one.score(victim.name, SKILL, world.now).weight_milli for me, one in world.readers.items()}
            seen["loss, blind reader"].append(views.pop(blind.name))
            seen["loss, percent"].append(sum(views.values()) / len(views))
    return {name: sum(values) / len(values) for name, values in seen.items()}


def launder(seed: int, rounds: int = 120) -> Figures:
    """C9. What perfect work on a cheap skill buys in another one, as a part of what honest work on that one gives, in percent."""
    world = mesh(seed, skills=(SKILL, "string"))
    (launderer,) = world.add(lambda world, member, skill: 1.0, group="launderer")

    def probes(world: World, issuer: Member) -> list[tuple[Member, str]]:
        """Everybody finds the launderer only ever offering the cheap skill."""
        some = world.rng.sample([one for one in world.alive() if one is not issuer], 2)
        return [(one, "string" if one is launderer else world.rng.choice(world.skills)) for one in some]

    for member in world.members:
        member.probes = probes
    for _ in range(rounds):
        world.step()
    me, scores = next(iter(world.readers.items()))
    honest = [one.name for one in world.members[:HONEST] if one.name != me]
    known = [scores.score(name, SKILL, world.now) for name in honest]
    borrowed, unknown = (scores.score(name, SKILL, world.now) for name in (launderer.name, "nobody"))
    gain = borrowed.mean_milli - unknown.mean_milli
    return {
        "weight, percent": 100 * borrowed.weight_milli / median(score.weight_milli for score in known),
        "mean, percent": 100 * gain / (median(score.mean_milli for score in known) - unknown.mean_milli),
    }


TARGETS: dict[str, tuple[float, str]] = {
    "bad earned again": (1.0, "worst"),
    "crowd earned again": (1.0, "worst"),
    "milker earned again": (1.0, "worst"),
    "milker harm again": (1.0, "worst"),
    "newcomer / median": (0.1, "worst"),
    "share, points": (2.0, "worst"),
    "loss, percent": (5.0, "mean"),
    "weight, percent": (20.0, "worst"),
    "mean, percent": (20.0, "worst"),
}
"""The most that a figure may be, in every seed ("worst") or on the mean of all. One seed's loss to slander is mostly the luck of
which honest witnesses are left; it is printed too."""


def attacks(part: float = 1.0) -> dict[str, Callable[[int], Figures]]:
    """Every attack by name, taking a seed; `part` of the full length, for a quick look."""
    table: dict[str, Callable[[int], Figures]] = {"C6 whitewash": lambda seed: whitewash(seed, round(1_000 * part))}
    for way in PRAISES:
        table[f"C7 praise, {way}"] = lambda seed, way=way: praise(seed, way, round(400 * part))  # type: ignore[misc]
    for way in SLANDERS:
        table[f"C8 slander, {way}"] = lambda seed, way=way: slander(seed, way, round(400 * part))  # type: ignore[misc]
    return table | {"C9 launder": launder}
