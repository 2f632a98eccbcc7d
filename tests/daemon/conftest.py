"""Whole peers over the in-memory mesh: every driver that `daemon/node.py` wires, with a fake engine and a clock of the test's."""

import hashlib
import math
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from crdt_store.memory import MemoryStorage
from crdt_store.store import ClaimStore
from daemon.api.backend import AskEvent, AskRequest, BegunEvent, EstimateEvent, ProgressEvent, ResultEvent, TokenEvent
from daemon.asking import Asking
from daemon.attempt import Served
from daemon.bootstrap import Bootstrap
from daemon.calls import Calls
from daemon.committee import Committee
from daemon.config import LimitsConfig, RoundConfig
from daemon.engine.continuing import CannotContinue
from daemon.engine.interface import Chunk, EngineError, EngineState, ModelDescription, Vectors
from daemon.membership import Membership
from daemon.metrics import Metrics
from daemon.own_offer import OwnOffer
from daemon.patience import Patience
from daemon.reputation import Reputation
from daemon.resting import resting
from daemon.round_archive import RoundArchive
from daemon.rounds import Rounds
from daemon.serving import Serving
from protocol import embedding, inference
from protocol.inference import Begun
from protocol.job import Job, Role, Turn, Usage
from protocol.wire import envelope
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId
from tests.sim.memory_transport import MemoryMesh, MemoryTransport

UNIX_MS = 1_800_000_000_000


def unix_ms() -> int:
    """The wall clock of every peer: it runs with the test's clock."""
    return UNIX_MS + int(trio.current_time() * 1000)


@dataclass
class FakeEngine:
    """An engine that says what the test tells it to: a fake, because the drivers around it are what is tested here.

    The real engines are tested in tests/engine and tests/live. `pause` is seconds before each word; `running` and `stopped`
    count generations under way and those that were left before their end.
    """

    says: Callable[[Job], str] = lambda job: "four two"
    prefers: str = "42"
    pause: float = 0.01
    fails: EngineError | None = None
    fails_after_words: int = 0
    state: EngineState = EngineState.READY
    reason: str = ""
    model: ModelDescription | None = None
    jobs: list[Job] = field(default_factory=list)
    begun: list[Begun | None] = field(default_factory=list)
    running: int = 0
    stopped: int = 0
    judged: int = 0
    together: int = 1
    """Words in one chunk, each of them a token."""

    @asynccontextmanager
    async def generate(self, job: Job, begun: Begun | None = None) -> AsyncIterator[AsyncIterator[Chunk]]:
        self.jobs.append(job)
        self.begun.append(begun)
        self.running += 1
        done: list[bool] = []
        try:
            async with aclosing(self._words(job, begun.text if begun is not None else "", done)) as words:
                yield words
        finally:
            self.running -= 1
            self.stopped += not done

    async def _words(self, job: Job, begun: str, done: list[bool]) -> AsyncGenerator[Chunk, None]:
        words = self.says(job).split()[: job.sampling.max_tokens]
        if not " ".join(words).startswith(begun):
            raise CannotContinue("these are not my words")
        for place in range(len(begun.split()), len(words), self.together):
            await trio.sleep(self.pause)
            if self.fails is not None and place >= self.fails_after_words:
                raise self.fails
            at_once = words[place : place + self.together]
            yield Chunk(" ".join(at_once) if place == 0 else f" {' '.join(at_once)}", tokens=len(at_once))
        done.append(True)
        yield Chunk("", "stop", Usage(1, len(words)))

    async def choose(self, turns: Sequence[Turn], choices: Sequence[str]) -> tuple[float, ...]:
        await trio.sleep(self.pause)
        if self.fails is not None:
            raise self.fails
        self.judged += 1
        first = f"A:{self.prefers}" in turns[-1].content
        return (math.log(0.9), math.log(0.1)) if first else (math.log(0.1), math.log(0.9))

    async def embed(self, texts: Sequence[str]) -> Vectors:
        await trio.sleep(self.pause)
        if self.fails is not None:
            raise self.fails
        return Vectors(tuple(array("f", hashlib.sha256(text.encode()).digest()[:4]) for text in texts), len(texts))

    async def run(self) -> None:
        await trio.sleep_forever()

    async def wait_ready(self) -> None:
        await trio.lowlevel.checkpoint()


def model(name: str = "tiny", slots: int = 2) -> ModelDescription:
    """A model whose config digest follows from its name."""
    return ModelDescription(name, hashlib.sha256(name.encode()).hexdigest(), 512, "fake", "1", "compact", slots)


def job(text: str = "six times seven", **changes: Any) -> Job:
    return Job((Turn(Role.USER, text),), **changes)


async def inline(work: Callable[[], Any]) -> Any:
    """Instead of a thread, which a virtual clock would not wait for."""
    await trio.lowlevel.checkpoint()
    return work()


async def _at_once(work: Callable[[], Any]) -> Any:
    """What goes to a thread in a daemon: a virtual clock would run on while a thread works."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass
class Peer:
    """One peer with every driver. `kill` ends it as kill -9 does; `served` is what asking observed."""

    transport: MemoryTransport
    engine: FakeEngine | None
    calls: Calls
    serving: Serving
    membership: Membership
    rounds: Rounds
    committee: Committee
    archive: RoundArchive
    reputation: Reputation
    store: ClaimStore
    asking: Asking
    metrics: Metrics
    scope: trio.CancelScope
    served: list[Served]

    @property
    def id(self) -> PeerId:
        return self.transport.peer_id

    def kill(self) -> None:
        self.transport.mesh.kill(self.id)
        self.scope.cancel()


class Swarm:
    """Makes peers and starts them. Each has its own model unless the test says otherwise."""

    def __init__(self, mesh: MemoryMesh, nursery: trio.Nursery, folder: Path) -> None:
        self.mesh = mesh
        self._nursery = nursery
        self._folder = folder
        self._started = 0

    async def __call__(self, count: int, *, connected: bool = True, **options: Any) -> list[Peer]:
        """`count` new peers, started; `connected` joins everybody with everybody."""
        transports = self.mesh(count)
        made = [await self.start(transport, **options) for transport in transports]
        if connected:
            everyone = list(self.mesh.peers.values())
            for place, one in enumerate(everyone):
                for other in everyone[:place]:
                    self.mesh.join(one, other)
        return made

    async def start(
        self,
        transport: MemoryTransport,
        engine: FakeEngine | None = None,
        no_engine: bool = False,
        limits: LimitsConfig = LimitsConfig(),  # noqa: B008 - frozen
        epoch: int = 1,
        round_config: RoundConfig = RoundConfig(),  # noqa: B008 - frozen
        patience: Patience = Patience(),  # noqa: B008 - frozen
    ) -> Peer:
        engine = None if no_engine else engine or FakeEngine()
        if engine is not None and engine.model is None:
            engine.model = model(f"tiny-{transport.index}")
        self._started += 1
        rng = Random(self._started)
        folder = self._folder / str(self._started)
        metrics = Metrics()
        calls = Calls(transport)
        serving = Serving(engine, limits, metrics, patience)
        calls.serve(inference.METHOD, serving.handle_infer)
        calls.serve(inference.CONTINUE_METHOD, serving.handle_continue)
        calls.serve(embedding.METHOD, serving.handle_embed)
        store = ClaimStore(MemoryStorage(), transport.key, unix_ms())
        reputation = Reputation(store, calls, transport, unix_ms, rng, inline)
        bootstrap = Bootstrap(transport, (), folder / "peers.json", rng, unix_ms)
        own = OwnOffer(transport.key, epoch, transport, serving, unix_ms, rng)
        membership = Membership(own, transport, calls, bootstrap, unix_ms, rng)
        rounds = Rounds(transport.key, calls, serving, rng.randbytes, unix_ms, membership.reach)
        archive = RoundArchive(folder / "rounds")
        committee = Committee(rounds, archive, membership.committee, reputation.record, round_config, unix_ms, metrics)
        served: list[Served] = []
        membership.met = reputation.begin
        membership.lost = rounds.peer_lost

        def observed(one: Served) -> None:
            served.append(one)
            (membership.call_succeeded if one.ok else membership.call_failed)(one.peer)

        asking = Asking(serving, calls, membership.candidates, observed, rng, patience)
        asking.resting = lambda model, peer: resting(engine, membership.peers(), model, peer)
        peer = Peer(
            transport, engine, calls, serving, membership, rounds, committee, archive, reputation, store, asking, metrics,
            trio.CancelScope(), served,
        )  # fmt: skip
        await self._nursery.start(self._run, peer)
        return peer

    async def _run(self, peer: Peer, *, task_status: "trio.TaskStatus[None]") -> None:  # type: ignore[name-defined]
        with peer.scope:
            async with trio.open_nursery() as nursery:
                for part in (peer.calls, peer.committee, peer.rounds, peer.reputation, peer.membership):
                    await nursery.start(part.run)
                task_status.started()
                await trio.sleep_forever()


@pytest.fixture
def swarm(memory_mesh: MemoryMesh, nursery: trio.Nursery, tmp_path: Path) -> Swarm:
    memory_mesh.latency = 0.005
    return Swarm(memory_mesh, nursery, tmp_path)


@pytest.fixture
def one_verification_per_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` and `public_key_of` are pure functions: members in one process that check one signature need it computed once."""
    monkeypatch.setattr(envelope, "verify", cache(envelope.verify))
    monkeypatch.setattr(envelope, "public_key_of", cache(envelope.public_key_of))


@dataclass
class Heard:
    """What an ask emitted."""

    tokens: list[str] = field(default_factory=list)
    phases: list[ProgressEvent] = field(default_factory=list)
    results: list[ResultEvent] = field(default_factory=list)
    begun: list[BegunEvent] = field(default_factory=list)
    estimates: list[EstimateEvent] = field(default_factory=list)

    async def emit(self, event: AskEvent) -> None:
        if isinstance(event, TokenEvent):
            self.tokens.append(event.text)
        elif isinstance(event, ProgressEvent):
            self.phases.append(event)
        elif isinstance(event, BegunEvent):
            self.begun.append(event)
        elif isinstance(event, EstimateEvent):
            self.estimates.append(event)
        else:
            self.results.append(event)

    @property
    def result(self) -> ResultEvent:
        (only,) = self.results
        return only


@contextmanager
def full(peer: Peer, requests: int = 0) -> Iterator[None]:
    """Every slot and every place in the queue of `peer` is taken, each by another caller; or `requests` of them are."""
    slots, engine = peer.serving._slots, peer.engine
    assert engine is not None
    assert engine.model is not None
    slots.resize(engine.model.slots, trio.current_time())
    count = requests or engine.model.slots + slots._room
    tickets = [slots.enter(("somebody", place), trio.current_time()) for place in range(count)]
    yield
    for ticket in reversed(tickets):
        slots.leave(ticket, trio.current_time())


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait on the test's clock until `condition()` holds."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.05)


async def failure(work: Any) -> RemoteError:
    """The RemoteError that `work` ends with."""
    with pytest.raises(RemoteError) as caught:
        await work
    return caught.value


class ShownGold:
    """What rounds on known questions showed: peers that err together, and how sure a confidence may be."""

    def __init__(self, *blocks: Sequence[str], gain: int = 1000) -> None:
        self._blocks, self._gain = tuple(map(frozenset, blocks)), gain

    def gain_milli(self, arm: str) -> int:
        return self._gain

    def blocks(self) -> tuple[frozenset[str], ...]:
        return self._blocks


def ask(text: str = "six times seven", **changes: Any) -> AskRequest:
    return AskRequest(job(text), **changes)
