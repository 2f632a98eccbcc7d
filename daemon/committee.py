"""Answers the local user's questions by a round: whom to invite, for how long, and what becomes of the outcome."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import structlog
import trio

from crdt_store.claims import Kind
from crdt_store.own_log import Statement
from daemon.api.backend import AskRequest, Attempt, Emit, EstimateEvent, MemberProgress, ProgressEvent, ResultEvent
from daemon.config import RoundConfig
from daemon.metrics import Metrics
from daemon.round_archive import Note, RoundArchive
from daemon.round_role import Finished
from daemon.round_view import round_view
from daemon.rounds import Rounds
from daemon.weighing import Planned, Weighing
from protocol.job import Job, Usage
from protocol.round import events as ev
from protocol.round.messages import Candidate, Durations, Header
from protocol.round.transcript import Replayed, replay
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import Hash, PeerId

log = structlog.get_logger("swarmd.committee")

MIN_COMMITTEE = 2
"""One answer alone can be neither compared nor judged."""

MAX_INVITED = 64
"""Candidates of one round: the header names each, and no committee is larger than 50. Of more, a random 64 are asked."""

MAX_UNKEPT = 256
"""Closed rounds that wait to be replayed and stored; a replay takes 20 ms with 7 members, 140 ms with 50."""

_QUESTION_CHARS = 200


class Committee:
    """Strategies "rank" and "majority". `candidates()` lists peers that serve a model, ourselves included."""

    def __init__(  # noqa: PLR0913 - the parts a round needs, wired once
        self,
        rounds: Rounds,
        archive: RoundArchive,
        candidates: Callable[[], Sequence[Candidate]],
        record: Callable[[Sequence[Statement]], None],
        config: RoundConfig,
        unix_ms: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        """`record` takes what our own rounds let us say of their members; until `weighing` is set, all weigh alike."""
        self.weighing = Weighing()
        self._rounds = rounds
        self._archive = archive
        self._candidates = candidates
        self._record = record
        self._config = config
        self._unix_ms = unix_ms
        self._metrics = metrics
        self._awaited: dict[Hash, _Kept] = {}
        self._unkept, self._to_keep = trio.open_memory_channel[Finished](MAX_UNKEPT)
        self._keeping = False
        self.replayed: Callable[[Replayed], None] = lambda _: None
        """Told of each round of ours that came to a result."""
        rounds.on_finished(self.finished)

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Store the rounds that we sat in, one after the other, until cancelled."""
        task_status.started()
        async for finished in self._to_keep:
            self._keeping = True
            with trio.CancelScope(shield=True):  # a round that closed is kept although the daemon stops
                await self._keep(finished)
            self._keeping = False

    async def settle(self) -> None:
        """Wait until every closed round is stored."""
        while self._keeping or self._to_keep.statistics().current_buffer_used:  # noqa: ASYNC110 - waited for once, at the end
            await trio.sleep(0.02)

    async def ask(self, request: AskRequest, emit: Emit) -> None:
        """Run a round for `request`; raises RemoteError where no committee could be had or it came to no result."""
        if request.peer is not None:
            raise RemoteError(Code.UNSUPPORTED, "a round chooses its members itself; leave the peer out")
        if request.job.model:
            raise RemoteError(Code.UNSUPPORTED, "a round asks peers of all models; leave the model out, or ask one peer by route")
        if request.verify:
            raise RemoteError(Code.UNSUPPORTED, "a round's answers are sealed, not verified: 'verify' goes with strategy route")
        planned = self.plan(request)
        await emit(estimate_of(planned, "majority" if request.strategy == "majority" else "rank"))
        header = self._header(request, planned)
        watch = _Watch()
        kept = _Kept(is_probe=request.is_probe)
        send, receive = trio.open_memory_channel[ProgressEvent](256)

        def report(effect: ev.Progress | ev.Folded | Finished) -> None:
            if isinstance(effect, ev.Progress):
                watch.note(effect.phase)
                try:
                    send.send_nowait(_progress(effect))
                except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
                    watch.skipped += 1  # a slow reader misses rows of the live table, never the result; one that left, all of it
            elif isinstance(effect, Finished):
                kept.timings = watch.timings()
                self._awaited[effect.round] = kept

        ended: list[Finished | RemoteError] = []

        async def run() -> None:
            async with send:
                try:
                    ended.append(await self._rounds.ask(header, report, request.plant))
                except RemoteError as error:
                    ended.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            async for event in receive:
                await emit(event)
        if isinstance(ended[0], RemoteError):
            raise ended[0]
        await kept.done.wait()
        await self._conclude(ended[0], kept, watch, emit)

    async def _conclude(self, finished: Finished, kept: "_Kept", watch: "_Watch", emit: Emit) -> None:
        outcome, replayed = finished.outcome, kept.replayed
        if isinstance(outcome, ev.NoResult):
            raise RemoteError(Code.REFUSED, f"the round came to no result: {outcome.reason}")
        if replayed is None:
            raise RemoteError(Code.INTERNAL, "the round's transcript does not replay, so its result is not given")
        winner = replayed.members[outcome.result.winner_seat]
        await emit(
            ResultEvent(
                outcome.answer,
                winner.peer_id,
                winner.model,
                finished.header.strategy,
                "stop",
                Usage(0, sum(row.tokens for row in replayed.members)),
                tuple(Attempt(row.peer_id, "ok" if row.revealed else "no answer") for row in replayed.members),
                "round",
                watch.elapsed(),
                round_view(_note(finished, replayed, kept.timings), replayed, len(finished.transcript)),
            )
        )

    def finished(self, finished: Finished) -> None:
        """A round closed for us: have it stored and, if we asked, say in claims what its members did."""
        role = "requester" if finished.requested else "member"
        self._metrics.rounds.labels(role, "verdict" if isinstance(finished.outcome, ev.Decided) else "no_result").inc()
        try:
            self._unkept.send_nowait(finished)
        except trio.WouldBlock:
            log.error("too many rounds closed at once: one is not stored", round=finished.round.hex()[:12])
            if finished.requested and (awaited := self._awaited.pop(finished.round, None)) is not None:
                awaited.done.set()

    async def _keep(self, finished: Finished) -> None:
        awaited = self._awaited.pop(finished.round, None) if finished.requested else None
        kept = _Kept() if awaited is None else awaited
        try:
            replayed = await trio.to_thread.run_sync(replay, finished.transcript)
        except RemoteError as error:
            log.error("a transcript of our own does not replay", round=finished.round.hex()[:12], reason=error.message)
        else:
            # What we declined or were not drawn for is no round of ours, and strangers could fill the archive with it.
            if finished.requested or any(row.peer_id == self._rounds.me for row in replayed.members):
                note = msgspec.structs.replace(_note(finished, replayed, kept.timings), is_probe=kept.is_probe)
                await self._archive.keep(note, finished.transcript)
            if finished.requested:
                self._record(_statements(replayed))
                if replayed.result is not None:
                    self.replayed(replayed)
            kept.replayed = replayed
        kept.done.set()

    def plan(self, request: AskRequest) -> Planned:
        """Whom a round would invite, with which weights, and what to expect of it; raises RemoteError where none can be had."""
        candidates = list(self._candidates())
        if len(candidates) > MAX_INVITED:
            candidates = secrets.SystemRandom().sample(candidates, MAX_INVITED)
        if len(candidates) < MIN_COMMITTEE:
            raise RemoteError(
                Code.NOT_FOUND, f"a committee needs {MIN_COMMITTEE} peers with a model and {len(candidates)} can be reached"
            )
        return self.weighing.plan(candidates, request.job, request.strategy, request.committee or self._config.committee)

    def _header(self, request: AskRequest, planned: Planned) -> Header:
        config, candidates = self._config, planned.candidates
        return Header(
            job=Job(request.job.turns, request.job.sampling),
            candidates=candidates,
            nonce=secrets.token_bytes(32),
            created_ms=self._unix_ms(),
            strategy="majority" if request.strategy == "majority" else "rank",
            committee=min(request.committee or config.committee, len(candidates)),
            durations=Durations(
                join_ms=config.draw_timeout_ms,
                answer_ms=config.seal_timeout_ms,
                reveal_ms=config.reveal_timeout_ms,
                judge_ms=config.judge_timeout_ms,
            ),
            fold=planned.fold,
            rationale=request.rationale,
        )


@dataclass(slots=True, eq=False)
class _Kept:
    """A round of our own user on its way into the archive; `replayed` is None where it does not replay."""

    done: trio.Event = field(default_factory=trio.Event)
    timings: Mapping[str, int] = field(default_factory=dict)
    replayed: Replayed | None = None
    is_probe: bool = False


class _Watch:
    """When each phase began, in seconds on trio's clock."""

    def __init__(self) -> None:
        self._started = trio.current_time()
        self._phases: dict[str, float] = {}
        self.skipped = 0

    def note(self, phase: str) -> None:
        self._phases.setdefault(phase, trio.current_time())

    def elapsed(self) -> float:
        return trio.current_time() - self._started

    def timings(self) -> dict[str, int]:
        """Milliseconds that each phase took."""
        names = list(self._phases)
        ends = [*list(self._phases.values())[1:], trio.current_time()]
        return {name: round((end - self._phases[name]) * 1000) for name, end in zip(names, ends, strict=True)}


def estimate_of(planned: Planned, strategy: Literal["route", "majority", "rank"]) -> EstimateEvent:
    """What the user is told before a round, or instead of one, is asked."""
    ways = {"round": planned.round, "route": planned.route}
    why = planned.why_route if strategy == "route" else planned.why
    figures = {
        name: {"answers": round(way.cost, 1), "right_milli": round(1000 * way.right), "per_right": round(way.per_right, 1)}
        for name, way in ways.items()
    }
    return EstimateEvent(strategy, planned.topic, planned.arm, planned.known, figures["round"], figures["route"], why)


def _progress(effect: ev.Progress) -> ProgressEvent:
    members = tuple(MemberProgress(member.peer_id, member.model, member.state) for member in effect.members)
    return ProgressEvent(effect.phase, members, effect.sealed, effect.revealed, effect.judged, effect.of)


def _note(finished: Finished, replayed: Replayed, timings: Mapping[str, int]) -> Note:
    verdict = replayed.verdict_hash
    return Note(
        finished.round.hex(),
        finished.header.created_ms / 1000,
        finished.header.strategy,
        "verdict" if verdict is not None else "no_result",
        replayed.reason,
        finished.header.job.turns[-1].content[:_QUESTION_CHARS],
        replayed.winner,
        len(replayed.members),
        verdict.hex() if verdict is not None else None,
        finished.requested,
        timings,
    )


def _statements(replayed: Replayed) -> list[Statement]:
    """What the requester can say of each other member from the transcript alone; the verdict's hash is the evidence."""
    result = replayed.result
    if result is None or replayed.verdict_hash is None:
        return []
    evidence = replayed.verdict_hash
    statements = []
    for row in replayed.members:
        peer = PeerId(row.peer_id)
        if peer == replayed.requester:
            continue  # nobody is a witness in its own cause
        if row.sealed and not row.revealed:
            statements.append(Statement(peer, Kind.ROUND_ABORTED, evidence=evidence))
        elif row.revealed and row.class_index is not None:
            rank = result.classes[row.class_index].rank
            statements.append(Statement(peer, Kind.ROUND_TOOK_PART, value=rank, evidence=evidence))
    winner = PeerId(replayed.members[result.winner_seat].peer_id)
    if winner != replayed.requester:
        statements.append(Statement(winner, Kind.ROUND_WON, value=result.confidence_milli, evidence=evidence))
    return statements
