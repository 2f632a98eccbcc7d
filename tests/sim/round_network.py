"""One round under a virtual clock over a bad network: links that lose, delay, reorder, repeat or are cut; members killed.

Everything is drawn from one seed, so a failure is repeated by running that seed again.
"""

import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.job import Job, Role, Turn
from protocol.round import events as ev
from protocol.round.judging import Style
from protocol.round.member import MemberMachine
from protocol.round.messages import Candidate, Durations, FoldParameters, Header, open_message, sign, slot_of
from protocol.round.requester import RequesterMachine
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import PeerId, peer_id_of

UNIX_MS = 1_800_000_000_000

Machine = RequesterMachine | MemberMachine
Tamper = Callable[["RoundNetwork", PeerId, ev.Send], "list[ev.Send]"]


def key_of(number: int) -> Ed25519PrivateKey:
    """A key that is the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"round test {number}".encode()).digest())


def seeded(seed: int) -> Random:
    """Chance that a seed repeats."""
    return Random(seed)


@dataclass(frozen=True)
class Weather:
    """What the network does. Latency in seconds; a message lost is gone; a cut link carries nothing, neither way."""

    latency: tuple[float, float] = (0.005, 0.08)
    loss: float = 0.0
    repeats: float = 0.0
    cut_links: float = 0.0
    notice_s: float | None = 0.2
    """After how long the others notice that a peer was killed; None: never (a stopped process keeps its connections)."""


@dataclass
class Behaviour:
    """How members act. Engine times in seconds."""

    answer: Callable[[int], str] = lambda number: "42"
    judge: Callable[[int, ev.PairQuestion], int] = lambda number, question: 0
    explain: Callable[[int, ev.Explain], str] = lambda number, effect: "the other one is wrong"
    style: Style = "compact"
    answer_s: tuple[float, float] = (0.2, 1.0)
    judge_s: tuple[float, float] = (0.1, 0.5)
    late: dict[int, float] = field(default_factory=dict)
    """Seconds by which members answer later than `answer_s` says."""
    tamper: dict[int, Tamper] = field(default_factory=dict)
    kill: dict[str, list[int]] = field(default_factory=dict)
    """Members killed when the requester enters a phase."""


@dataclass
class _Peer:
    number: int
    key: Ed25519PrivateKey
    machines: dict[str, Machine] = field(default_factory=dict)
    wakes: dict[str, float] = field(default_factory=dict)
    alive: bool = True


class RoundNetwork:
    """Peer 0 asks; members are 1..n, and 0 too if `requester_sits`."""

    def __init__(self, seed: int, size: int, weather: Weather, behaviour: Behaviour, requester_sits: bool = False) -> None:
        self.random = seeded(seed)
        self.weather = weather
        self.behaviour = behaviour
        self.now = 0.0
        self.sent = 0
        self.bytes = 0
        self.pulls = 0
        self.faults: Counter[str] = Counter()
        self.equivocations: set[PeerId] = set()
        self.closed: dict[tuple[PeerId, str], ev.Closed] = {}
        self.closed_at: dict[tuple[PeerId, str], float] = {}
        self.folded_at: float | None = None
        self.progress: list[ev.Progress] = []
        self.trace: dict[str, list[int]] | None = None
        """Set to {} to record the conversation: a line for each message, with those it was sent to."""
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.peers = {peer_id_of(public_bytes(key_of(number))): _Peer(number, key_of(number)) for number in range(size + 1)}
        self.ids = list(self.peers)
        self.requester = self.ids[0]
        self.members = self.ids[0 if requester_sits else 1 :]
        links = [frozenset(pair) for pair in itertools.combinations(self.ids[1:], 2)]
        self.cut = set(self.random.sample(links, int(len(links) * weather.cut_links)))

    def run(self, header: Header, limit_s: float = 600.0) -> None:
        """Play until nothing is left to happen."""
        asker = self.peers[self.requester]
        asker.machines["requester"] = RequesterMachine(asker.key, header)
        self._feed(self.requester, "requester", ev.Started())
        while self._queue and self.now < limit_s:
            self.now, _, action = heapq.heappop(self._queue)
            action()

    def header(self, **changes: object) -> Header:
        """A header that invites every member, with the given fields changed."""
        candidates = tuple(Candidate(peer, "sim/model", hashlib.sha256(peer.encode()).digest()) for peer in self.members)
        fields: dict[str, object] = {
            "job": Job((Turn(Role.USER, "What is six times seven?"),)),
            "candidates": candidates,
            "nonce": self.random.randbytes(32),
            "created_ms": UNIX_MS,
            "committee": min(50, len(self.members)),
            "durations": Durations(join_ms=3000, answer_ms=8000, reveal_ms=5000, judge_ms=8000, attest_ms=5000),
            "fold": FoldParameters(),
        }
        return Header(**(fields | changes))  # type: ignore[arg-type]

    def kill(self, number: int) -> None:
        """The peer stops at once; the others notice after `notice_s`."""
        peer = self.ids[number]
        self.peers[peer].alive = False
        if self.weather.notice_s is not None:
            for other in self.ids:
                self._later(self.weather.notice_s, partial(self._feed_all, other, ev.PeerGone(peer)))

    def honest(self) -> list[tuple[PeerId, str]]:
        """Machines of peers that were neither killed nor tampered with."""
        return [
            (peer, role)
            for peer, state in self.peers.items()
            if state.alive and state.number not in self.behaviour.tamper
            for role in state.machines
        ]

    def sign(self, number: int, message: object) -> bytes:
        """`message` signed by that peer."""
        return sign(message, self.peers[self.ids[number]].key)  # type: ignore[arg-type]

    # --- the network

    def _later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), action))

    def _reaches(self, a: PeerId, b: PeerId) -> bool:
        return self.peers[a].alive and self.peers[b].alive and frozenset((a, b)) not in self.cut

    def push(self, source: PeerId, target: PeerId, raw: bytes) -> None:
        """Carry one message, or not."""
        self.sent += 1
        self.bytes += len(raw)
        if self.trace is not None:
            kind = slot_of(open_message(raw).message)
            line = f"{self.now:.3f}  {self.ids.index(source)} -> {{}}  {kind}, {len(raw)} B"
            self.trace.setdefault(line, []).append(self.ids.index(target))
        copies = 1 + (self.random.random() < self.weather.repeats)
        for _ in range(copies):
            if source != target and self.random.random() < self.weather.loss:
                continue
            delay = 0.0 if source == target else self.random.uniform(*self.weather.latency)
            self._later(delay, lambda: self._arrive(source, target, raw))

    def _arrive(self, source: PeerId, target: PeerId, raw: bytes) -> None:
        peer = self.peers[target]
        if not peer.alive or frozenset((source, target)) in self.cut:
            return
        if "member" not in peer.machines and target in self.members and source == self.requester:
            self._invite(peer, raw)
            return
        for role in list(peer.machines):
            self._feed(target, role, ev.Received(source, raw))

    def _invite(self, peer: _Peer, raw: bytes) -> None:
        entropy = seeded(self.random.getrandbits(64)).randbytes
        try:
            machine = MemberMachine(peer.key, raw, entropy, UNIX_MS + self.random.randint(-30_000, 30_000), self.behaviour.style)
        except Exception:  # noqa: BLE001 - a later message overtook the header: the requester repeats it
            return
        peer.machines["member"] = machine
        self._feed(self.ids[peer.number], "member", ev.Started())

    def _feed_all(self, target: PeerId, event: ev.Event) -> None:
        for role in list(self.peers[target].machines):
            self._feed(target, role, event)

    def _feed(self, target: PeerId, role: str, event: ev.Event) -> None:
        peer = self.peers[target]
        if not peer.alive:
            return
        for effect in peer.machines[role].handle(event, self.now):
            if peer.alive:
                self._perform(peer, target, role, effect)

    def _perform(self, peer: _Peer, me: PeerId, role: str, effect: ev.Effect) -> None:
        match effect:
            case ev.Send():
                tamper = self.behaviour.tamper.get(peer.number)
                for send in tamper(self, me, effect) if tamper else [effect]:
                    for target in send.peers:
                        self.push(me, target, send.raw)
            case ev.Pull():
                self._pull(me, role, effect)
            case ev.WakeAt():
                peer.wakes[role] = effect.time
                self._later(effect.time - self.now, lambda: self._wake(peer, me, role, effect.time))
            case ev.Generate():
                answered = ev.Answered(self.behaviour.answer(peer.number), 8)
                seconds = self.random.uniform(*self.behaviour.answer_s) + self.behaviour.late.get(peer.number, 0.0)
                self._later(seconds, lambda: self._feed(me, role, answered))
            case ev.Judge():
                judged = ev.Judged(tuple(self.behaviour.judge(peer.number, question) for question in effect.questions))
                self._later(self.random.uniform(*self.behaviour.judge_s), lambda: self._feed(me, role, judged))
            case ev.Explain():
                explained = ev.Explained(self.behaviour.explain(peer.number, effect))
                self._later(self.random.uniform(*self.behaviour.judge_s), lambda: self._feed(me, role, explained))
            case _:
                self._note(me, role, effect)

    def _note(self, me: PeerId, role: str, effect: ev.Effect) -> None:
        match effect:
            case ev.Progress():
                if not self.progress or self.progress[-1].phase != effect.phase:
                    for number in self.behaviour.kill.get(effect.phase, []):
                        self._later(0.0, partial(self.kill, number))
                self.progress.append(effect)
            case ev.Fault():
                self.faults[f"{effect.code}: {effect.message}"] += 1
            case ev.Equivocation():
                self.equivocations.add(effect.peer)
            case ev.Folded():
                self.folded_at = self.now
            case ev.Closed():
                self.closed[(me, role)] = effect
                self.closed_at[(me, role)] = self.now

    def _wake(self, peer: _Peer, me: PeerId, role: str, time: float) -> None:
        if peer.wakes.get(role) == time and not peer.machines[role].closed:
            self._feed(me, role, ev.Woken())

    def _pull(self, me: PeerId, role: str, pull: ev.Pull) -> None:
        self.pulls += 1
        wanted = set(pull.hashes)
        delay = 0.0
        for source in pull.peers:
            delay += 2 * self.random.uniform(*self.weather.latency)
            if not self._reaches(me, source) or self.random.random() < self.weather.loss:
                continue
            found = [raw for machine in self.peers[source].machines.values() for raw in machine.serve(tuple(wanted))]
            if found:
                self.sent += 2
                self.bytes += sum(map(len, found))
                pulled = ev.Pulled(source, tuple(found))
                self._later(delay, partial(self._feed, me, role, pulled))
                wanted -= {h for h in wanted for machine in self.peers[source].machines.values() if machine.serve((h,))}
            if not wanted:
                return
