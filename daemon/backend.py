"""The node as the local API sees it: status, lists, and asks. Shapes what other parts know; decides no policy of its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import trio

from daemon.api.backend import AskRequest, EmbedRequest, EmbedResult, Emit, PeerWish, ProbeRequest
from daemon.asking import Asking
from daemon.committee import Committee, estimate_of
from daemon.embedding import Embedding
from daemon.membership import Membership
from daemon.metrics import Metrics
from daemon.probing import Probing, Work
from daemon.reputation import Reputation
from daemon.round_archive import RoundArchive
from daemon.round_view import round_view
from daemon.serving import Serving
from daemon.transport.interface import Path, Transport, TransportError
from daemon.version import version
from dht import records
from dht.standing import IDLE, PeerView
from protocol.round.transcript import replay
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, is_peer_id


@dataclass(slots=True)
class Life:
    """What the whole process shares about itself. Times on trio's clock."""

    epoch: int
    started: float
    socket: str
    api_url: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    draining: bool = False
    running: int = 0
    begin_drain: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts that the API shows."""

    transport: Transport
    membership: Membership
    serving: Serving
    asking: Asking
    committee: Committee
    archive: RoundArchive
    reputation: Reputation
    metrics: Metrics
    embedding: Embedding
    probing: Probing | None = None


class NodeBackend:
    """Implements `daemon.api.backend.Backend`."""

    def __init__(self, life: Life, parts: Parts) -> None:
        self._life = life
        self._parts = parts
        self.private_mesh: Callable[[], dict[str, Any] | None] = lambda: None
        """The private mesh that this daemon is in; None for the public one."""
        self.needs_model = True
        """Whether it is any use where no model answers; a bootstrap is."""

    def readiness(self) -> tuple[bool, tuple[str, ...]]:
        """Whether a question could be answered now, and whether the mesh that the user named was joined."""
        reasons = []
        if self._life.draining:
            reasons.append("the daemon is stopping")
        engine = self._parts.serving.engine
        if engine is not None and engine.reason:
            reasons.append(f"the engine is not ready: {engine.reason}")
        reasons += self._parts.membership.problems()
        private = self.private_mesh()
        if private is not None and private["reason"]:
            reasons.append(private["reason"])
        if self.needs_model and not self._parts.membership.candidates(""):
            reasons.append("no model answers: neither this peer nor any it knows serves one")
        return not reasons, tuple(reasons)

    async def status(self) -> dict[str, Any]:
        parts = self._parts
        ready, reasons = self.readiness()
        state = "draining" if self._life.draining else "ready" if ready else "degraded"
        return {
            "version": version(),
            "peer_id": parts.transport.peer_id,
            "epoch": self._life.epoch,
            "state": state,
            "reasons": list(reasons),
            "addresses": list(parts.transport.addresses()),
            "uptime_s": round(trio.current_time() - self._life.started, 1),
            "engine": self._engine(),
            "mesh": {
                "peers": len(parts.membership.peers()),
                "connected": len(parts.transport.paths()),
                "bootstrap": parts.membership.bootstrap(),
                "paths": _kinds(parts.transport.paths().values()),
                "private": self.private_mesh(),
                "hint": parts.membership.hint(),
            },
            "relay": {"reservations": [address for address in parts.transport.addresses() if "/p2p-circuit" in address]},
            "api": {"socket": self._life.socket, "url": self._life.api_url},
            "counters": parts.membership.counters(),
        }

    async def peers(self) -> dict[str, Any]:
        paths = self._parts.transport.paths()
        known = {view.peer: view for view in self._parts.membership.peers()}
        rows = [_peer_row(view, paths.get(view.peer)) for view in known.values()]
        rows += [_connected_row(peer, path) for peer, path in paths.items() if peer not in known]
        return {"peers": sorted(rows, key=lambda row: str(row["peer_id"]))}

    async def models(self) -> dict[str, Any]:
        return {"models": self._parts.membership.models()}

    async def rounds(self) -> dict[str, Any]:
        rows = [
            {
                "round_id": note.round_id,
                "created": note.created,
                "strategy": note.strategy,
                "state": note.state,
                "reason": note.reason,
                "question": note.question,
                "winner": note.winner,
                "members": note.members,
                "verdict_hash": note.verdict_hash,
                "requested": note.requested,
                "is_probe": note.is_probe,
            }
            for note in self._parts.archive.notes()
        ]
        return {"rounds": rows}

    async def round(self, round_id: str) -> dict[str, Any]:
        note = self._parts.archive.find(round_id)
        raw = await self._parts.archive.transcript(note)
        return round_view(note, await trio.to_thread.run_sync(replay, raw), len(raw))

    async def verify(self, round_id: str) -> dict[str, Any]:
        """Replay the stored transcript and compare with the verdict that was recorded when the round closed."""
        note = self._parts.archive.find(round_id)
        raw = await self._parts.archive.transcript(note)
        reply = {"round_id": note.round_id, "verdict_hash": note.verdict_hash, "replayed_hash": None, "ok": False, "reason": ""}
        try:
            replayed = await trio.to_thread.run_sync(replay, raw)
        except RemoteError as error:
            return reply | {"reason": f"the transcript does not hold: {error.message}"}
        replayed_hash = replayed.verdict_hash.hex() if replayed.verdict_hash is not None else None
        if replayed.round.hex() != note.round_id:
            return reply | {"replayed_hash": replayed_hash, "reason": "the transcript is of another round"}
        same = replayed_hash == note.verdict_hash
        reason = "" if same else "the replay gives another verdict than the one recorded"
        return reply | {"replayed_hash": replayed_hash, "ok": same, "reason": reason, "attested_by": list(replayed.attested_by)}

    async def asks(self) -> dict[str, Any]:
        notes = self._parts.asking.notes.newest_first()
        shown = ("ask_id", "created", "kind", "model", "outcome", "peer_id", "elapsed_s")
        return {"asks": [{name: row[name] for name in shown} for row in (note.shown() for note in notes)]}

    async def ask_note(self, ask_id: str) -> dict[str, Any]:
        return self._parts.asking.notes.find(ask_id).shown()

    async def why(self, named: str) -> dict[str, Any]:
        """The ask or the round of that id, or the newest of both for "last", with what it is."""
        asks = self._parts.asking.notes
        newest, newest_round = asks.newest(), self._parts.archive.newest()
        is_newest = newest is not None and (newest_round is None or newest.created >= newest_round.created)
        if is_newest if named == "last" else asks.has(named):
            return {"what": "ask", **asks.find(named).shown()}
        return {"what": "round", **await self.round(named)}

    async def probe(self, request: ProbeRequest) -> dict[str, Any]:
        if self._parts.probing is None:
            raise RemoteError(Code.UNSUPPORTED, "this peer does not probe")
        return await self._parts.probing.now(request)

    async def config(self) -> dict[str, Any]:
        return dict(self._life.settings)

    async def netcheck(self) -> dict[str, Any]:
        return self._parts.transport.netcheck()

    async def lookup(self, what: str) -> dict[str, Any]:
        """Ask the DHT now, and show every question; raises RemoteError(malformed) for what has no key."""
        return await self._parts.transport.look_up(records.key_of(what))

    async def ping(self, peer_id: str) -> dict[str, Any]:
        """One round trip, connecting first where needed; raises RemoteError(gone) where it cannot be reached."""
        if not is_peer_id(peer_id):
            raise RemoteError(Code.MALFORMED, f"{peer_id[:64]!r} is not a peer id (12D3KooW...); swarmd peers lists them")
        peer = PeerId(peer_id)
        if self._parts.transport.path(peer) is None:
            await self._parts.membership.reach(peer)
        try:
            took = await self._parts.transport.ping(peer)
        except TransportError as error:
            raise RemoteError(Code.GONE, str(error)) from None
        path = self._parts.transport.path(peer)
        return {"peer_id": peer_id, "rtt_ms": round(took * 1000, 2), "path": _path_row(path)}

    async def reputation(self, peer_id: str | None) -> dict[str, Any]:
        if peer_id is not None and not is_peer_id(peer_id):
            raise RemoteError(Code.MALFORMED, f"{peer_id[:64]!r} is not a peer id (12D3KooW...); swarmd peers lists them")
        return self._parts.reputation.view(peer_id)

    async def stop(self) -> None:
        self._life.begin_drain()

    async def ask(self, request: AskRequest, emit: Emit) -> None:
        """Answer a question by its strategy, within its time; counted while it runs, so that a drain waits for it."""
        ways: dict[str, Work] = {"route": self._parts.asking.route, "auto": self._either}
        work = ways.get(request.strategy, self._parts.committee.ask)
        if self._parts.probing is not None:
            work = self._parts.probing.beside(work)
        with self._counted(request.strategy):
            with trio.move_on_after(request.timeout_s):
                await work(request, emit)
                return
            raise RemoteError(Code.DEADLINE, f"no answer within {request.timeout_s:g} s")

    async def _either(self, request: AskRequest, emit: Emit) -> None:
        """Strategy "auto": a round where a right answer is expected to cost less by it, else one of the best peers; one that
        serves the model that is named."""
        if request.peer is not None:
            raise RemoteError(Code.UNSUPPORTED, "one peer needs no choice of strategy; ask it with strategy route")
        if request.job.model:  # a round would ask peers of all models
            await self._parts.asking.route(replace(request, strategy="route"), emit)
            return
        try:
            planned = self._parts.committee.plan(request)
        except RemoteError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            await self._parts.asking.route(replace(request, strategy="route"), emit)
            return
        if planned.worth_it:
            await self._parts.committee.ask(replace(request, strategy="rank"), emit)
            return
        await emit(estimate_of(planned, "route"))
        wish = PeerWish(only=planned.best) if planned.best else None
        await self._parts.asking.route(replace(request, strategy="route", wish=wish), emit)

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        with self._counted("embeddings"):
            return await self._parts.embedding.embed(request)

    @contextmanager
    def _counted(self, strategy: str) -> Iterator[None]:
        """One question while it runs: a drain waits for it."""
        if self._life.draining:
            raise RemoteError(Code.OVERLOADED, "the daemon is stopping", retry_after=5.0)
        outcome = "cancelled"
        started = trio.current_time()
        self._life.running += 1
        try:
            yield
            outcome = "ok"
        except RemoteError as error:
            outcome = str(error.code)
            raise
        finally:
            self._life.running -= 1
            self._parts.metrics.asks.labels(strategy, outcome).inc()
            self._parts.metrics.ask_seconds.labels(strategy).observe(trio.current_time() - started)

    def _engine(self) -> dict[str, Any] | None:
        engine = self._parts.serving.engine
        if engine is None:
            return None
        model = engine.model
        return {
            "state": str(engine.state),
            "reason": engine.reason,
            "model": model.name if model else None,
            "config_digest": model.config_digest if model else None,
            "engine": model.engine if model else None,
            "version": model.engine_version if model else None,
            "slots": model.slots if model else 0,
            "busy": self._parts.serving.busy,
        }


def _kinds(paths: Iterable[Path]) -> dict[str, tuple[int, float]]:
    """Of each kind of path how many there are, and the age of the oldest in seconds."""
    now, found = trio.current_time(), dict[str, tuple[int, float]]()
    for path in paths:
        count, oldest = found.get(str(path.kind), (0, 0.0))
        found[str(path.kind)] = count + 1, round(max(oldest, now - path.since), 1)
    return found


def _path_row(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    return {
        "kind": str(path.kind),
        "transport": path.transport,
        "address": path.address,
        "rtt_ms": None if path.rtt is None else round(path.rtt * 1000, 2),
        "age_s": round(trio.current_time() - path.since, 1),
        "relayed_ms": None if path.relayed_for is None else round(path.relayed_for * 1000, 1),
    }


def _peer_row(view: PeerView, path: Path | None) -> dict[str, Any]:
    offer = view.signed.offer if view.signed is not None else None
    return {
        "peer_id": view.peer,
        "model": offer.model or None if offer else None,
        "state": str(view.standing),
        "path": _path_row(path),
        "last_heard_s": round(view.silent, 1),
        "epoch": view.epoch,
        "slots": offer.slots if offer else 0,
        "features": list(offer.features) if offer else [],
        **asdict(view.load),
    }


def _connected_row(peer: PeerId, path: Path) -> dict[str, Any]:
    return {
        "peer_id": peer,
        "model": None,
        "state": "connected",
        "path": _path_row(path),
        "last_heard_s": None,
        "epoch": None,
        "slots": 0,
        "features": [],
        **asdict(IDLE),
    }
