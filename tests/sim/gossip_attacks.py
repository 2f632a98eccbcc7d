"""Attacks on gossip, G1 to G10, in simulation: each prints its figures beside its target. `--seeds n`, or `--seed n` for one."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.transport.gossip_guard import SeenMessages
from dht.presence import Presence, open_presence, sign_presence
from protocol.gossip.score import Scores, Weights
from protocol.wire.envelope import public_bytes
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId, peer_id_of
from tests.sim.gossip_world import TOPIC, World, mute, quantile

HONEST, DEGREE = 30, 10
Row = dict[str, Any]


def honest_world(seed: int, count: int = HONEST, degree: int = DEGREE) -> World:
    world = World(seed)
    world.random_links([world.add() for _ in range(count)], degree)
    return world


def speak(world: World, until: float, every: float = 8.0) -> None:
    for peer in world.peers:
        if peer.honest:
            world.publish_now_and_then(peer, every, until)


def figures(world: World, start: float, end: float, authors: set[int] | None = None) -> Row:
    lags, lost = world.lags(start, end, authors)
    total = len(lags) + lost
    return {
        "delivered": len(lags) / total if total else 0.0,
        "p99": quantile(lags, 0.99),
        "max": lags[-1] if lags else 0.0,
        "messages": len(world.published),
    }


def surround(world: World, count: int, links: int | None = None, **how: Any) -> list[Any]:
    """`count` attackers, each linked to all honest peers (or to `links` of them)."""
    honest = [peer for peer in world.peers if peer.honest]
    attackers = []
    for _ in range(count):
        attacker = world.add(honest=False, **how)
        for victim in honest if links is None else world.rng.sample(honest, links):
            world.link(attacker, victim)
        attackers.append(attacker)
    return attackers


def g1_network_sybils(seed: int, ratio: int = 20) -> Row:
    world = honest_world(seed)
    surround(world, ratio * DEGREE, relays=mute)
    speak(world, 90)
    world.run(100)
    return figures(world, 30, 90)


def g2_cold_boot(seed: int) -> Row:
    world = World(seed)
    honest = [world.add() for _ in range(HONEST)]
    surround(world, 200, relays=mute)
    world.run(120)
    world.random_links(honest, DEGREE)
    speak(world, 240)
    world.run(250)
    members = [[world.peers[int(str(other))].honest for other in peer.mesh.members] for peer in honest]
    share = sum(map(sum, members)) / max(1, sum(map(len, members)))
    return figures(world, 120, 240) | {"honest share of meshes": share}


def g3_covert_flash(seed: int) -> Row:
    world = honest_world(seed)
    surround(world, 200, relays=lambda _message, now: now < 120)
    speak(world, 200)
    world.run(210)
    return figures(world, 115, 200) | {"p99 after 60 s": figures(world, 180, 200)["p99"]}


def g4_censor_one(seed: int) -> Row:
    world = honest_world(seed)
    surround(world, 200, relays=lambda message, _now: message.author != 0)
    speak(world, 120)
    world.publish_now_and_then(world.peers[0], 2.0, 120)
    world.run(130)
    return figures(world, 30, 120, {0})


def g5_eclipse_one(seed: int) -> Row:
    world = honest_world(seed)
    victim = world.peers[0]
    for _ in range(200):
        world.link(world.add(honest=False, relays=mute), victim)
    speak(world, 120)
    least = 99
    for second in range(5, 121):
        world.run(second)
        outbound = [n for n in victim.mesh.members if n in victim.dialled and world.peers[int(str(n))].honest]
        least = min(least, len(outbound))
    world.run(130)
    lost = sum(
        message.author != 0 and 0 not in world.delivered[message.id] for message in world.published if 30 <= message.born < 120
    )
    return figures(world, 30, 120) | {"least honest outbound": least, "missed by the victim": lost}


def g6_degrade(seed: int) -> Row:
    world = honest_world(seed)
    dice = Random(seed)
    surround(world, 60, relays=lambda _message, _now: dice.random() < 0.5)
    speak(world, 120)
    world.run(130)
    return figures(world, 30, 120)


def g7_colocation(seed: int) -> Row:
    """Whole networks of attackers: one of each /24 for every victim would dodge a limit per IP."""
    world = honest_world(seed)
    for number in range(100):
        surround(world, 1, network=f"s{number // 20}", relays=lambda _message, _now: True)
    speak(world, 60)
    worst = 0.0
    for second in range(1, 61):
        world.run(second)
        for peer in world.peers[:HONEST]:
            shares = Counter(world.peers[int(str(other))].network for other in peer.mesh.members)
            worst = max(worst, max(shares.values(), default=0) / max(8, len(peer.mesh.members)))
    world.run(66)
    return figures(world, 20, 60) | {"worst share of one /24": worst}


def g8_freeloader(seed: int) -> Row:
    """Beside the property in tests/protocol: neighbours that never forward, in a living mesh; and what it costs the honest."""
    world = honest_world(seed)
    attackers = surround(world, 20, links=10, relays=mute)
    speak(world, 590)
    world.run(600)
    verdicts, wrong, shares = [], 0, []
    for peer in world.peers[:HONEST]:
        for attacker in attackers:
            delivery = peer.scores._records.get(attacker.number)
            # A peer that was cut again before a single message came has ridden on nothing.
            if delivery is not None and TOPIC in delivery.topics and delivery.topics[TOPIC].owed.value > 0:
                verdicts.append(peer.scores.score(attacker.number, world.now) < 0)
        for number in range(HONEST):
            wrong += peer.scores.score(number, world.now) < 0
            share = peer.scores.share(number, TOPIC, world.now) if number in peer.mesh.members else None
            shares += [] if share is None else [share]
    shares.sort()
    return figures(world, 30, 590) | {
        "negative": sum(verdicts) / max(1, len(verdicts)),
        "honest below 0": wrong,
        "honest share, lowest twentieth": quantile(shares, 0.05),
    }


def g9_replay_and_forgery(seed: int) -> Row:
    """Old, doubled, foreign and bent heartbeats through the guards that the transport asks."""
    rng, key = Random(seed), Ed25519PrivateKey.from_private_bytes(bytes([seed % 250 + 1]) * 32)
    me = peer_id_of(public_bytes(key))
    wall, tries, accepted, replayed = 1_800_000_000_000, 4_000, 0, 0
    seen = SeenMessages(120.0, 65_536)
    for number in range(tries // 4):
        said = Presence(me, 1, number, bytes(32), 0, wall)
        raw = bytearray(sign_presence(said, key))
        attempts = [
            (me, bytes(raw), wall + 301_000),
            (me, bytes(raw), wall - 301_000),
            (PeerId(me[:-1] + ("a" if me[-1] != "a" else "b")), bytes(raw), wall),
        ]
        raw[rng.randrange(len(raw))] ^= rng.randrange(1, 256)
        attempts.append((me, bytes(raw), wall))
        for author, payload, at in attempts:
            try:
                open_presence(author, payload, at)
                accepted += 1
            except RemoteError:
                pass
    for number in range(1_000_000 // 10):
        message = (number // 4).to_bytes(8, "big")
        at = number / 1000
        replayed += seen.has(message, at) is False and number % 4 > 0
        seen.add(message, at)
    return {"accepted": accepted, "replays taken as new": replayed, "tries": tries + 100_000}


def g10_score_reset(seed: int) -> Row:
    """Two faults, then a hundred reconnections and an hour of strangers."""
    rng, scores = Random(seed), Scores(Weights(peers=256))
    scores.fault("attacker", 0.0, 8.0)
    for turn in range(100):
        scores.pruned("attacker", TOPIC, turn * 3.0)
        scores.grafted("attacker", TOPIC, turn * 3.0 + 1)
        scores.fault(f"s{rng.random()}", turn * 3.0)
    for second in range(0, 3600, 4):
        scores.arrived(second.to_bytes(4, "big"), TOPIC, "x", f"stranger{second}", (), float(second))
    return {"score after an hour": scores.score("attacker", 3600.0)}


TARGETS: dict[str, tuple[str, Callable[[int], Row], Callable[[Row], bool]]] = {
    "G1": ("20:1, all drop: 100 %, p99 < 1 s, max < 3 s", g1_network_sybils,
           lambda r: r["delivered"] == 1 and r["p99"] < 1 and r["max"] < 3),
    "G2": ("Sybils first: 0 lost, meshes half honest", g2_cold_boot,
           lambda r: r["delivered"] == 1 and r["honest share of meshes"] >= 0.5),
    "G3": ("good, then mute: p99 < 2 s", g3_covert_flash, lambda r: r["p99"] < 2 and r["delivered"] == 1),
    "G4": ("one author dropped: >= 99.9 %, p99 < 2 s", g4_censor_one, lambda r: r["delivered"] >= 0.999 and r["p99"] < 2),
    "G5": ("200 around one: >= 2 honest outbound, none missed", g5_eclipse_one,
           lambda r: r["least honest outbound"] >= 2 and r["missed by the victim"] == 0),
    "G6": ("half is dropped: >= 99.99 %", g6_degrade, lambda r: r["delivered"] >= 0.9999),
    "G7": ("one /24 at most a quarter of a mesh", g7_colocation, lambda r: r["worst share of one /24"] <= 0.25),
    "G8": ("never forwards: negative in 10 min, nobody honest", g8_freeloader,
           lambda r: r["negative"] == 1 and r["honest below 0"] == 0),
    "G9": ("replays and forgeries: 0 accepted", g9_replay_and_forgery,
           lambda r: r["accepted"] == 0 and r["replays taken as new"] == 0),
    "G10": ("100 reconnections: kept for an hour", g10_score_reset, lambda r: r["score after an hour"] < 0),
}  # fmt: skip


def main() -> int:
    """Play every attack over the seeds, print the worst figures, exit with 1 where one misses its target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    seeds = [given.seed] if given.seed is not None else range(1, given.seeds + 1)
    results: dict[str, list[Row]] = {}
    missed = []
    for name, (target, play, holds) in TARGETS.items():
        if given.only and name not in given.only:
            continue
        began = time.monotonic()
        rows = results[name] = [play(seed) for seed in seeds]
        bad = [seed for seed, row in zip(seeds, rows, strict=True) if not holds(row)]
        missed += [f"{name} (SEED={seed})" for seed in bad]
        if not given.json:
            low = {"delivered", "honest share of meshes", "least honest outbound", "negative", "honest share, lowest twentieth"}
            worst = {key: (min if key in low else max)(row[key] for row in rows) for key in rows[0] if key != "messages"}
            shown = ", ".join(f"{key} {value:.4g}" for key, value in worst.items())
            took = time.monotonic() - began
            print(f"{name:4} {'ok  ' if not bad else 'MISS'} {target}: worst of {len(rows)}: {shown}  ({took:.0f} s)", flush=True)
    if given.json:
        print(json.dumps(results))
    if missed:
        print("missed: " + ", ".join(missed), file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
