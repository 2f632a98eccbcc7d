"""What finding costs in a mesh of 100, 1,000 and 10,000 peers: the daemon's own DHT machines under a virtual clock.

`python -m bench.mesh_scale [--peers N ...] [--quick] [--json] [--check]`; one seed is one history (`--seed`). Tables are not
filled in by hand: peers join one after another, told of three random earlier ones as a bootstrap list or a peer cache would, and
all else they find by the lookups of their own upkeep. Then: lookups in peace; then half of all peers are replaced per hour while
lookups go on. Each size's row is printed once it is measured, and what is under way on stderr. `--live` measures real hosts on
loopback instead, beside stock py-libp2p (bench/mesh_live.py).
"""

import argparse
import gc
import json
import math
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import mean, median
from typing import Any

from bench import mesh_live
from dht.keyspace import provider_name
from dht.lookup_events import Done, Verdict
from dht.queries import Providers
from dht.records import model_key
from tests.sim.dht_network import Host, Network, value_of

SIZES = (100, 1_000, 10_000)
JOIN_SECONDS = 120.0
TOLD = 3
MODELS = 50
NOTE = "x" * 560
"""A signed offer has about 570 bytes."""

SETTLED_SECONDS = 900.0
"""Without lookups: within them each peer refreshes its table and says its own again, as in any mesh that is not all new."""

CHURN_SECONDS = {10_000: 600.0}
"""Of churn before the lookups under it, 1,800 where nothing is said: a table asks its silent entries after 600 s, and then it has
as many dead ones as it ever will."""

PROGRESS_SECONDS = 15.0
"""Between two lines on stderr, by the real clock."""

LOOKUPS = 2_000
LOOKUP_RATE = 40.0
REPLACED_PER_HOUR = 0.5
TARGETS = {"peace": 99.9, "churn": 99.0}


@dataclass
class Tally:
    """Lookups of one kind and what they came to."""

    asked: int = 0
    right: int = 0
    hops: list[int] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def note(self, done: Done, right: bool, seconds: float) -> None:
        self.asked += 1
        self.right += right
        self.hops.append(done.hops)
        self.questions.append(done.asked)
        self.seconds.append(seconds)
        if not right:
            self.reasons[done.reason or str(done.verdict)] += 1

    def figures(self) -> dict[str, Any]:
        """Success in percent, hops, questions, milliseconds."""
        if not self.asked:
            return {}
        return {
            "lookups": self.asked,
            "success": round(100 * self.right / self.asked, 2),
            "hops": round(mean(self.hops), 2),
            "hops_p99": centile(self.hops, 99),
            "questions": round(mean(self.questions), 1),
            "ms": round(1000 * median(self.seconds)),
            "ms_p99": round(1000 * centile(self.seconds, 99)),
            "failures": dict(self.reasons.most_common(5)),
        }


@dataclass
class Row:
    """One size of mesh."""

    peers: int
    join: dict[str, Any] = field(default_factory=dict)
    get: dict[str, Any] = field(default_factory=dict)
    find: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, Any] = field(default_factory=dict)
    churn: dict[str, Any] = field(default_factory=dict)
    traffic: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


class Mesh:
    """A growing, then changing mesh, of which some peers publish an offer and provide a model."""

    def __init__(self, seed: int, peers: int) -> None:
        self.net = Network(seed)
        self.rng = self.net.rng
        self.hosts: list[Host] = []
        self.publishers: dict[str, Host] = {}
        self.publish_share = min(1.0, 1_000 / peers)
        self.doing = ""
        self._peers = peers
        self._begun = self._told = time.monotonic()
        self._tell()

    def _tell(self) -> None:
        """Say on stderr how far this is; an event of the virtual clock, which draws nothing from the history's chances."""
        if time.monotonic() - self._told >= PROGRESS_SECONDS:
            self._told = time.monotonic()
            where = f"{self.doing}, {len(self.hosts):,} here, {self.net.now:,.0f} virtual s"
            print(f"{self._peers:,} peers: {where}, {self._told - self._begun:,.0f} s so far", file=sys.stderr, flush=True)
        self.net.at(1.0, self._tell)

    def newcomer(self) -> None:
        """One more peer; a share of them publishes as soon as it knows its neighbours."""
        net, host = self.net, self.net.add()
        known = [self.rng.choice(self.hosts).contact for _ in range(min(TOLD, len(self.hosts)))]
        self.hosts.append(host)
        net.join(host, known)
        if self.rng.random() < self.publish_share:
            key = f"/swarmd/offer/{host.contact.peer}"
            self.publishers[key] = host
            host.own[key] = value_of(1, NOTE)
            host.node.records.put_own(key, host.own[key], net.wall)
            host.provided.add(provider_name(model_key(f"model-{self.rng.randrange(MODELS)}")))

    def grow(self) -> None:
        """All peers join within JOIN_SECONDS, and what they began ends."""
        for number in range(self._peers):
            self.net.at(number * JOIN_SECONDS / self._peers, self.newcomer)
        self.net.run(JOIN_SECONDS + 60)

    def replace(self) -> None:
        """One peer dies without a word and another one comes."""
        host = self.hosts.pop(self.rng.randrange(len(self.hosts)))
        self.net.kill(host)
        self.publishers = (
            {key: other for key, other in self.publishers.items() if other is not host} if host.own else self.publishers
        )
        self.newcomer()

    def churn(self, seconds: float) -> None:
        """Replace peers at the rate of the benchmark for so long."""
        end = self.net.now + seconds
        rate = self._peers * REPLACED_PER_HOUR / 3600

        def once() -> None:
            self.replace()
            if self.net.now < end:
                self.net.at(self.rng.expovariate(rate), once)

        self.net.at(self.rng.expovariate(rate), once)

    def sample(self, count: int, one: Callable[[Tally], None]) -> Tally:
        """`count` lookups, spread evenly over time."""
        tally = Tally()
        for number in range(count):
            self.net.at(number / LOOKUP_RATE, lambda: one(tally))
        self.net.run(self.net.now + count / LOOKUP_RATE + 30)
        return tally

    def get(self, tally: Tally) -> None:
        """A random peer looks for the offer of a random living publisher that had a minute to publish."""
        now = self.net.now
        settled = [key for key, host in self.publishers.items() if now - host.born > 60]
        key, begun = self.rng.choice(settled), now

        def ended(done: Done, value: bytes | None) -> None:
            tally.note(done, done.verdict is Verdict.FOUND and value == value_of(1, NOTE), self.net.now - begun)

        self.net.get(self.rng.choice(self.hosts), key, ended)

    def find(self, tally: Tally) -> None:
        """A random peer looks for who serves a random model; right is that a living one is among those found."""
        begun = self.net.now
        provided = [name for host in self.publishers.values() if begun - host.born > 60 for name in host.provided]
        name = self.rng.choice(provided)
        asker = self.rng.choice([host for host in self.hosts if name not in host.provided])

        def ended(done: Done, providers: Providers) -> None:
            tally.note(done, any(peer in self.net.hosts for peer in providers.found), self.net.now - begun)

        self.net.find(asker, name, ended)

    def miss(self, tally: Tally) -> None:
        """A random peer looks for what nobody stored; right is the proof that it is not there."""
        begun = self.net.now

        def ended(done: Done, value: bytes | None) -> None:
            tally.note(done, done.verdict is Verdict.ABSENT and value is None, self.net.now - begun)

        self.net.get(self.rng.choice(self.hosts), f"/swarmd/offer/nobody-{self.rng.getrandbits(64)}", ended)


def centile(values: Sequence[float], percent: int) -> float:
    """The value below which so many percent are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def measure(seed: int, peers: int, lookups: int) -> Row:
    """Everything at one size."""
    row, mesh, begun = Row(peers), Mesh(seed, peers), time.process_time()
    mesh.doing = "joining"
    mesh.grow()
    tables = [len(host.node.table) for host in mesh.hosts]
    estimates = [host.node.density.peers() / peers for host in mesh.hosts]
    row.join = {"cpu_s": round(time.process_time() - begun, 1), "table": median(tables), "table_least": min(tables)}
    row.join["estimate"] = round(median(estimates), 2)
    mesh.doing = "idle"
    row.traffic = traffic(mesh, SETTLED_SECONDS)
    mesh.doing = "looking up in peace"
    row.get = mesh.sample(lookups, mesh.get).figures()
    row.find = mesh.sample(lookups // 4, mesh.find).figures()
    row.absent = mesh.sample(lookups // 10, mesh.miss).figures()
    mesh.doing = "peers are replaced"
    seconds = CHURN_SECONDS.get(peers, 1800.0)
    mesh.churn(seconds + lookups / LOOKUP_RATE)
    mesh.net.run(mesh.net.now + seconds)
    row.churn = mesh.sample(lookups, mesh.get).figures()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row.cost = {"cpu_s": round(time.process_time() - begun), "virtual_s": round(mesh.net.now), "mib": round(memory)}
    return row


def traffic(mesh: Mesh, seconds: float) -> dict[str, Any]:
    """What a peer sends in a minute without lookups of its own: upkeep of its table, an offer and a model published again.

    Where not all publish, the publishers' share is scaled to one publisher.
    """
    net, peers = mesh.net, len(mesh.hosts)
    before, sizes = net.purposes.copy(), net.purpose_bytes.copy()
    net.run(net.now + seconds)
    minutes = seconds / 60
    share = {"upkeep": peers * minutes, "publish": len(mesh.publishers) * minutes}
    sent = {purpose: (net.purposes[purpose] - before[purpose]) / each for purpose, each in share.items()}
    size = {purpose: (net.purpose_bytes[purpose] - sizes[purpose]) / each for purpose, each in share.items()}
    figures: dict[str, Any] = {f"{purpose}_messages": round(value, 1) for purpose, value in sent.items()}
    figures |= {"messages": round(sum(sent.values()), 1), "kib": round(sum(size.values()) / 1024, 1)}
    return figures


def shortfalls(rows: Sequence[Row]) -> list[str]:
    """One line for each figure that misses its target."""
    missed = []
    for row in rows:
        for name, figures in (("peace", row.get), ("churn", row.churn)):
            if figures["success"] < TARGETS[name]:
                missed.append(f"short: {row.peers} peers, {name}: {figures['success']}% found, target {TARGETS[name]}%")
        if row.find["success"] < TARGETS["peace"]:
            missed.append(f"short: {row.peers} peers: providers {row.find['success']}%, target {TARGETS['peace']}%")
    for small, large in pairwise(rows):
        doublings = math.log2(large.peers / small.peers)
        grown = (large.get["hops"] - small.get["hops"]) / doublings
        if grown > 1:
            missed.append(f"short: {grown:.2f} more hops for each doubling from {small.peers} to {large.peers} peers, at most 1")
    return missed


HEAD = """\
         in peace:                              absent:  half replaced an hour:     a peer a minute:   cost:
 peers   found    hops p99 questions   ms  p99   proven    found  hops   ms  p99   messages    KiB  CPU s    MiB"""


def line(row: Row) -> str:
    """One size for people, under HEAD."""
    get, churn, sent, cost = row.get, row.churn, row.traffic, row.cost
    peace = f"{row.peers:>6,} {get['success']:>6}% {get['hops']:>7} {get['hops_p99']:>3} {get['questions']:>9}"
    peace += f" {get['ms']:>4} {get['ms_p99']:>4} {row.absent['success']:>7}%"
    changing = f" {churn['success']:>7}% {churn['hops']:>5} {churn['ms']:>4} {churn['ms_p99']:>4}"
    return f"{peace}{changing} {sent['messages']:>10} {sent['kib']:>6} {cost['cpu_s']:>6} {cost['mib']:>6}"


def main() -> int:
    """Run, print, and with --check exit with 1 where a figure misses its target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=list(SIZES), metavar="N")
    parser.add_argument("--lookups", type=int, default=LOOKUPS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="100 and 400 peers, 200 lookups: half a minute")
    parser.add_argument("--live", action="store_true", help="real hosts on loopback instead, beside stock py-libp2p")
    parser.add_argument("--hosts", type=int, default=mesh_live.HOSTS, help="of --live, a side")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.live:
        found = mesh_live.run(options.hosts)
        print(json.dumps(found, indent=1) if options.json else mesh_live.as_table(found))
        print("\n".join(mesh_live.shortfalls(found)), file=sys.stderr)
        return 1 if options.check and mesh_live.shortfalls(found) else 0
    gc.set_threshold(200_000, 20, 100)
    if options.quick:
        options.peers, options.lookups = [100, 400], 200
    rows: list[Row] = []
    people = sys.stderr if options.json else sys.stdout
    print(HEAD, file=people, flush=True)
    for peers in sorted(options.peers):
        rows.append(measure(options.seed, peers, options.lookups))
        print(line(rows[-1]), file=people, flush=True)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    missed = shortfalls(rows)
    print("\n".join(missed), file=sys.stderr)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
