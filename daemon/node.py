"""The one composition root: builds every part from the configuration, starts them in order, and waits. Holds no logic."""

import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from random import SystemRandom
from typing import Any

import structlog
import trio

from crdt_store.storage import ClaimStorage
from crdt_store.store import ClaimStore
from daemon import collector
from daemon.api.app import build_app, template_of
from daemon.api.claims import ClaimControl
from daemon.api.content import ContentControl
from daemon.api.listeners import UnixListener, may_connect, open_tcp
from daemon.api.mesh import MeshControl
from daemon.api.server import HttpLimits, HttpServer, Listener
from daemon.asking import Asking
from daemon.attempt import Served
from daemon.backend import Life, NodeBackend, Parts
from daemon.bootstrap import PUBLIC, Bootstrap
from daemon.call_notes import CallNotebook
from daemon.calls import Calls
from daemon.claim_archive import ClaimArchive
from daemon.committee import Committee
from daemon.config import Loaded, masked
from daemon.content.exchange import ContentExchange
from daemon.embedding import Embedding
from daemon.engine.factory import build_engine
from daemon.engine.interface import Engine
from daemon.gauges import register_gauges
from daemon.gold_book import GoldBook
from daemon.identity import Identity, open_identity
from daemon.invite_desk import InviteDesk
from daemon.lan_discovery import LanDiscovery
from daemon.logs import set_up_logs
from daemon.membership import Membership
from daemon.mesh_folder import PEERS_FILE
from daemon.metrics import Metrics
from daemon.own_offer import OwnOffer
from daemon.paths import prepare_runtime_dir
from daemon.private_mesh import open_private_mesh
from daemon.probing import Probing
from daemon.reputation import Reputation
from daemon.resting import resting
from daemon.round_archive import RoundArchive
from daemon.rounds import Rounds
from daemon.serving import Serving
from daemon.settings import api_key, content_policy, engine_spec, patience, transport_options
from daemon.transport.host import Libp2pTransport
from daemon.verification import Verification
from daemon.weighing import Weighing
from dht import records
from protocol import embedding, inference, likelihood
from protocol.wire.errors import LocalError

log = structlog.get_logger("swarmd.node")

DRAIN_SECONDS = 20.0
"""How long running answers may go on after the first Ctrl-C; systemd's default patience is 90 s."""

RELAY_SECONDS = 3.0
"""How long a peer that listens nowhere waits for its first relay before it says that it is ready."""

Ready = Callable[[Sequence[str], str, str, bool], None]
"""(addresses to give to others, URL of the OpenAI endpoint or "", name of the private mesh or "", whether we may invite into it),
called once when the daemon can answer."""


def run(loaded: Loaded, ready: Ready) -> int:
    """Run a daemon until it is told to stop; returns the exit code. Raises what keeps it from starting, in one sentence."""
    set_up_logs(loaded.config.log)
    prepare_runtime_dir(loaded.config.runtime_dir)
    with open_identity(loaded.config.data_dir, time.time) as identity:
        return trio.run(Node(loaded, identity, ready).run)


def _unix_ms() -> int:
    return int(time.time() * 1000)


class Node:
    """All parts of one daemon, wired."""

    def __init__(self, loaded: Loaded, identity: Identity, ready: Ready) -> None:
        config = loaded.config
        rng = SystemRandom()
        self._config = config
        self._ready = ready
        self._stop = trio.Event()
        self._metrics = Metrics()
        self._engine: Engine | None = build_engine(engine_spec(config), config.runtime_dir, rng)
        storage = ClaimStorage(config.data_dir / "claims.sqlite")
        self._store = ClaimStore(storage, identity.key, _unix_ms())
        self._mesh = open_private_mesh(config.data_dir, identity.key, _unix_ms, rng)
        self._join = tuple(dict.fromkeys([*config.join, *(self._mesh.kept.addresses if self._mesh is not None else PUBLIC)]))
        self._transport = self._build_transport(identity)
        self._calls = Calls(self._transport)
        self._serving = Serving(self._engine, config.limits, self._metrics, patience(config))
        self._calls.serve(inference.METHOD, self._serving.handle_infer)
        self._calls.serve(inference.CONTINUE_METHOD, self._serving.handle_continue)
        self._calls.serve(embedding.METHOD, self._serving.handle_embed)
        self._calls.serve(likelihood.METHOD, self._serving.handle_likelihood)
        self._reputation = Reputation(self._store, self._calls, self._transport, _unix_ms, rng)
        self._claims = ClaimArchive(self._store, storage, self._reputation.sync)
        self._call_notes = CallNotebook(self._reputation.record)
        record = self._reputation.record if config.role == "peer" else _keep_nothing
        self._desk = InviteDesk(self._mesh, self._transport, self._calls, record)
        self._bootstrap = Bootstrap(self._transport, self._join, config.data_dir / PEERS_FILE, rng, _unix_ms)
        own = OwnOffer(identity.key, identity.epoch, self._transport, self._serving, _unix_ms, rng)
        self._membership = Membership(own, self._transport, self._calls, self._bootstrap, _unix_ms, rng)
        if self._mesh is not None:
            self._membership.admits = self._mesh.admits
            self._mesh.attach(self._transport, self._calls)
            self._mesh.removed = self._store.scores.witnesses.exclude
        network = self._mesh.mesh.id.hex()[:32] if self._mesh is not None else ""
        self._lan = LanDiscovery(self._transport.peer_id, self._transport.addresses, self._membership.learn, network)
        self._rounds = Rounds(identity.key, self._calls, self._serving, os.urandom, _unix_ms, self._membership.reach)
        archive = RoundArchive(config.data_dir / "rounds")
        self._committee = Committee(
            self._rounds, archive, self._membership.committee, self._reputation.record, config.round, _unix_ms, self._metrics
        )
        gold = GoldBook(config.data_dir / "gold.json")
        self._committee.weighing = Weighing(
            self._reputation.tally, lambda peer, skill: self._reputation.score(peer, skill).weight_milli, gold, rng
        )
        asking = Asking(
            self._serving, self._calls, self._membership.candidates, self._observed, rng, patience(config), config.patience.hedge
        )
        asking.resting = lambda model, peer: resting(self._engine, self._membership.peers(), model, peer)
        asking.score = lambda peer, skill: self._reputation.score(peer, skill).mean_milli
        self._verification = Verification(
            self._serving, self._calls, self._membership.candidates, self._reputation.record, config.verify, rng
        )
        asking.verification = self._verification
        self._probing = Probing(asking, self._committee, self._reputation.record, config.probe, rng, gold)
        if config.role == "peer":
            self._membership.met = self._reputation.begin
        self._membership.lost = self._rounds.peer_lost
        self._content = ContentExchange(config.data_dir / "content", self._calls, self._transport, content_policy(config), rng)
        self._life = Life(identity.epoch, 0.0, str(config.socket_path), settings=masked(loaded), begin_drain=self._stop.set)
        parts = Parts(
            self._transport, self._membership, self._serving, asking, self._committee, archive, self._reputation, self._metrics,
            Embedding(asking), self._probing,
        )
        self._backend = NodeBackend(self._life, parts)
        self._backend.private_mesh = self._desk.view
        self._backend.needs_model = config.role == "peer"
        register_gauges(self._metrics, parts, self._calls, self._rounds)
        self._socket = UnixListener(config.socket_path)

    def _build_transport(self, identity: Identity) -> Libp2pTransport:
        mesh = self._mesh
        return Libp2pTransport(
            identity.key,
            transport_options(self._config, self._join),
            records.open_for_store if mesh is None else partial(records.open_for_store, admits=mesh.admits),
            gate=None if mesh is None else mesh.gate(),
        )

    async def run(self) -> int:
        """Start in order: the local API first, so that it is up whatever the mesh does."""
        self._life.started = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals, nursery.cancel_scope)
                http = await self._open_api(nursery)
                for part in self._parts_in_order():
                    await nursery.start(part.run)
                nursery.start_soon(_forever, self._bootstrap.run)
                if self._config.lan.mdns:
                    nursery.start_soon(_forever, self._lan.run)
                if self._config.role == "peer":
                    nursery.start_soon(_forever, self._call_notes.run)
                if self._engine is not None:
                    nursery.start_soon(_forever, self._engine.run)
                    nursery.start_soon(self._announce, self._engine.wait_ready)
                else:
                    nursery.start_soon(self._announce, trio.lowlevel.checkpoint)
                await self._stop.wait()
                await self._drain(http)
                nursery.cancel_scope.cancel()
        finally:
            self._socket.remove()
            self._store.close()
        return 0

    def _parts_in_order(self) -> list[Any]:
        """What runs from the start to the end. A bootstrap lets peers meet and relays for them, and does nothing else."""
        mesh = [] if self._mesh is None else [self._mesh]
        if self._config.role == "bootstrap":
            return [self._transport, self._calls, *mesh, self._membership]
        first = [self._transport, self._calls, self._committee, self._rounds, self._reputation, self._verification]
        return [*first, *mesh, self._membership, self._probing, self._content]

    async def _announce(self, answers: Callable[[], Awaitable[None]]) -> None:
        await answers()
        if self._join and not self._config.listen:
            # Without a listener the only address is a relay's, which takes a moment to be had.
            with trio.move_on_after(RELAY_SECONDS):
                while not self._transport.addresses():  # noqa: ASYNC110 - once, at start
                    await trio.sleep(0.05)
        collector.settle()
        kept = self._mesh.kept if self._mesh is not None else None
        mesh, may_invite = (kept.name, kept.may_invite) if kept is not None else ("", False)
        self._ready(self._transport.addresses(), self._life.api_url, mesh, may_invite)

    async def _open_api(self, nursery: trio.Nursery) -> HttpServer:
        config = self._config
        key = api_key(config)
        more = [*ContentControl(self._content).routes(), *ClaimControl(self._claims).routes(), *MeshControl(self._desk).routes()]
        app = build_app(self._backend, self._metrics.registry, key, time.time, lambda: uuid.uuid4().hex, more)
        http = HttpServer(app, HttpLimits(clients=config.limits.local_clients), self._count)
        nursery.start_soon(_forever, http.run)
        unix = await self._socket.open()

        async def on_unix(stream: trio.SocketStream) -> None:
            if may_connect(stream):
                await http.serve(stream, Listener("unix"))
            else:
                await stream.aclose()

        nursery.start_soon(trio.serve_listeners, on_unix, [unix])
        if config.api.listen:
            host, _, port = config.api.listen.rpartition(":")
            tcp, bound = await open_tcp(host.strip("[]"), int(port), key is not None)

            async def on_tcp(stream: trio.SocketStream) -> None:
                await http.serve(stream, Listener("tcp", bound))

            nursery.start_soon(trio.serve_listeners, on_tcp, [tcp])
            self._life.api_url = f"http://{host}:{bound}/v1"
        return http

    def _count(self, scope: Any, status: int) -> None:
        self._metrics.http_requests.labels(template_of(scope), str(status)).inc()

    def _observed(self, served: Served) -> None:
        if served.ok:
            self._membership.call_succeeded(served.peer)
        else:
            self._membership.call_failed(served.peer)
        if served.accepted:
            self._call_notes.note(served)

    async def _watch_signals(
        self,
        everything: trio.CancelScope,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """The first signal drains, the second stops at once."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if self._stop.is_set():
                    log.warning("stopping at once", signal=signal.Signals(number).name)
                    everything.cancel()
                    return
                log.info("stopping after running answers; a second signal stops at once", signal=signal.Signals(number).name)
                self._stop.set()

    async def _drain(self, http: HttpServer) -> None:
        """Say goodbye, take nothing new, and wait for what runs."""
        self._life.draining = True
        with trio.move_on_after(2):
            await self._membership.leave()
        await self._rounds.stop("the peer is stopping")
        with trio.move_on_after(DRAIN_SECONDS):
            while self._life.running or self._serving.busy:  # noqa: ASYNC110 - two counters of two owners, seldom waited for
                await trio.sleep(0.05)
        self._probing.flush()
        with trio.move_on_after(2):
            await self._committee.settle()
        http.drain()


def _keep_nothing(_statements: Sequence[Any]) -> None:
    """A bootstrap makes no claims."""


async def _forever(run: Callable[[], Awaitable[None]]) -> None:
    """A background task that returns is an error: nothing would do its work any more."""
    await run()
    raise LocalError(f"{getattr(run, '__qualname__', run)} ended by itself")
