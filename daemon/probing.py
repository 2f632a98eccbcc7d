"""Gives covert gold to the peers that our user's questions go to, beside those and by the same path. Decides when and whom.

What a probe asks is `protocol.probes`' business. What peers got right and wrong becomes claims, for answering (`TOPIC`) and
judging (`judge.TOPIC`): from probes of one peer, from rounds of our own on a question of known answer, and from any question of
our user whose answer can be worked out.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import structlog
import trio

from crdt_store.claims import Kind
from crdt_store.own_log import Statement
from daemon.api.backend import AskEvent, AskRequest, Emit, ProbeRequest, ResultEvent, Strategy
from daemon.asking import Asking
from daemon.committee import MIN_COMMITTEE, Committee
from daemon.config import ProbeConfig
from daemon.engine.catalog import shipped_models
from daemon.gold_book import GoldBook, GoldRound
from daemon.selector import Candidate
from protocol.job import Job
from protocol.probes.answers import is_right, known_from
from protocol.probes.gold import Mark, errors_of_round, marks_of_round, trials_of_round, unanimous
from protocol.probes.interval import wilson_milli
from protocol.probes.task import SKILLS, Task, fresh
from protocol.probes.toy import SKILLS as TOY_SKILLS
from protocol.probes.traffic import Traffic, bind, known_of
from protocol.round.transcript import Replayed
from protocol.skills import skill_of
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, short

log = structlog.get_logger("swarmd.probing")

Work = Callable[[AskRequest, Emit], Coroutine[Any, Any, None]]

MAX_WAITING = 16
"""Probes that wait for their moment; a burst of questions earns no more."""

MAX_USED = 64
"""Peers that answered our user last: half of all probes go to these, and half to anybody who could."""

UNANIMOUS_VOICES = 4
"""Members of different configurations that must agree, and nobody disagree, for a round to be the source of a later probe."""

WAIT_SECONDS = 20.0
"""Mean wait from the question that earned a probe to the probe; the waits are as random as the decay of an atom."""

MAX_WAIT_SECONDS = 120.0
PROBE_SECONDS = 120.0
"""Of a whole probe: what is asked has a short answer."""

FLUSH_SECONDS = 30.0
"""Marks are counted for so long before they become claims, one for many."""

MAX_COUNT = 1_000
MAX_PEERS = 32
_PEERS_AT_ONCE = 4
NATURAL_SKILLS = tuple(skill for skill in SKILLS if skill not in TOY_SKILLS)


class Probing:
    """`record` takes claims; `book` remembers what rounds on known questions showed."""

    def __init__(
        self,
        asking: Asking,
        committee: Committee,
        record: Callable[[Sequence[Statement]], None],
        config: ProbeConfig,
        rng: Random,
        book: GoldBook,
    ) -> None:
        self._asking = asking
        self._committee = committee
        self._candidates = asking.candidates
        self._record = record
        self._config = config
        self._rng = rng
        self._book = book
        self._toy_models = frozenset(model.name for model in shipped_models())
        """Those that speak the toy skills alone."""
        self._traffic = Traffic()
        self._used: deque[PeerId] = deque(maxlen=MAX_USED)
        self._sent: deque[float] = deque()
        self._gold: dict[Job, _Gold] = {}
        self._marks: Counter[tuple[PeerId, Kind, str]] = Counter()
        self._nursery: trio.Nursery | None = None
        self._waiting = 0
        self.outcomes: Counter[str] = Counter()
        committee.replayed = self.round_closed

    async def run(
        self,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,  # type: ignore[name-defined]  # libp2p's trio-typing hides it
    ) -> None:
        """Probe until cancelled; what was marked becomes claims at the end too."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(FLUSH_SECONDS * self._rng.uniform(0.5, 1.5))
                    self.flush()
                    await trio.to_thread.run_sync(self._book.learn)
                    await trio.to_thread.run_sync(self._book.save)
        finally:
            self._nursery = None
            self.flush()
            self._book.save()

    # ---- our user's questions

    def beside(self, work: Work) -> Work:
        """`work`, whose questions and answers are learnt from and now and then earn a probe."""

        async def watched(request: AskRequest, emit: Emit) -> None:
            async def passing(event: AskEvent) -> None:
                if isinstance(event, ResultEvent):
                    self._answered(request, event)
                await emit(event)

            await work(request, passing)

        return watched

    def _answered(self, request: AskRequest, result: ResultEvent) -> None:
        is_route = result.round is None
        self._traffic.note(request.job, self._rng, in_round=not is_route)
        if is_route and result.path != "local":
            peer = PeerId(result.peer_id)
            self._used.append(peer)
            known = known_of(request.job)
            if known is not None and result.finish_reason == "stop" and not result.continued:
                self._mark(_mark(peer, skill_of(request.job), is_right(known, result.answer)))
        share = self._config.share
        if share and self._rng.random() < share / (1 - share):
            self._wait_and(self._one_probe if is_route else partial(self._gold_round, like=request))

    def _wait_and(self, work: Callable[[], Awaitable[object]]) -> None:
        if self._nursery is None or self._waiting >= MAX_WAITING:
            self.outcomes["skipped"] += 1
            return
        self._waiting += 1
        wait = min(MAX_WAIT_SECONDS, self._rng.expovariate(1 / WAIT_SECONDS))

        async def later() -> None:
            try:
                await trio.sleep(wait)
                if self._within_budget():
                    await work()
            except RemoteError as error:
                self.outcomes[str(error.code)] += 1
                log.debug("a probe came to nothing", reason=error.message)
            finally:
                self._waiting -= 1

        self._nursery.start_soon(later)

    def _within_budget(self) -> bool:
        now = trio.current_time()
        while self._sent and self._sent[0] <= now - 3600:
            self._sent.popleft()
        if len(self._sent) >= self._config.per_hour:
            self.outcomes["over budget"] += 1
            return False
        self._sent.append(now)
        return True

    # ---- probes

    async def _one_probe(self) -> None:
        others = {one.peer: one for one in self._candidates("") if one.path != "local"}
        used = [peer for peer in self._used if peer in others]
        if not others:
            return
        among = used if used and self._rng.random() < 0.5 else sorted(others)
        target = others[self._rng.choice(among)]
        self._mark(await self._probe(target, self._traffic.task(target.peer, self._fallback(target), self._rng)))

    async def _probe(self, target: Candidate, task: Task) -> Mark:
        """Ask `target` as our user would; raises RemoteError where it gave no answer, which says nothing of its skill."""
        job = bind(task, self._traffic.shape(self._rng), target.model)
        answers: list[ResultEvent] = []

        async def emit(event: AskEvent) -> None:
            if isinstance(event, ResultEvent):
                answers.append(event)

        with trio.move_on_after(PROBE_SECONDS) as scope:
            await self._asking.route(AskRequest(job, peer=target.peer, is_probe=True), emit)
        if scope.cancelled_caught or not answers:
            raise RemoteError(Code.DEADLINE, f"no answer within {PROBE_SECONDS:g} s")
        right = is_right(task.known, answers[0].answer)
        self.outcomes["passed" if right else "failed"] += 1
        log.debug("probed", peer=short(target.peer), skill=task.skill, right=right)
        return _mark(target.peer, task.skill, right)

    def _fallback(self, target: Candidate) -> tuple[str, ...]:
        return TOY_SKILLS if target.model in self._toy_models else NATURAL_SKILLS

    async def _gold_round(self, skill: str | None = None, like: AskRequest | None = None) -> list[Mark]:
        """Run a round on a question of known answer and mark it; the marks are those of its members.

        `like`: the user's round that earned it, or headers would say which of the two is a user's: by words, judges or seats.
        """
        members = self._candidates("")
        if len(members) < MIN_COMMITTEE:
            raise RemoteError(
                Code.NOT_FOUND, f"a round needs {MIN_COMMITTEE} peers with a model and {len(members)} can be reached"
            )
        likely = self._fallback(self._rng.choice(members))
        task = fresh(skill, self._rng) if skill else self._traffic.task("", likely, self._rng)
        job = bind(task, self._traffic.shape(self._rng, in_round=True), "")
        gold = self._gold[job] = _Gold(task)
        try:
            with trio.move_on_after(PROBE_SECONDS) as scope:
                request = AskRequest(job, "rank", is_probe=True, plant=self._plant(task))
                if like is not None:
                    strategy: Strategy = "majority" if like.strategy == "majority" else "rank"
                    request = replace(request, strategy=strategy, committee=like.committee, rationale=like.rationale)
                await self._committee.ask(request, _unheard)
        finally:
            self._gold.pop(job, None)
        if scope.cancelled_caught:
            raise RemoteError(Code.DEADLINE, f"no verdict within {PROBE_SECONDS:g} s")
        self.outcomes["gold round"] += 1
        return gold.marks

    def _plant(self, task: Task) -> Callable[[str], str]:
        """What our own member says in a gold round: by a coin the right answer or a near miss, so that a pair can be judged."""
        wants_right = self._rng.random() < 0.5

        def said(own: str) -> str:
            if is_right(task.known, own) == wants_right:
                return own
            if wants_right:
                return task.known.truth
            return own.replace(task.known.truth, task.miss) if task.known.truth in own else task.miss

        return said

    def round_closed(self, replayed: Replayed) -> None:
        """A round of ours came to a result: mark its members where the right answer is known, else perhaps learn one."""
        job = replayed.header.job
        gold = self._gold.get(job)
        known = known_of(job) if gold is None else gold.task.known
        if known is not None:
            marks = marks_of_round(replayed, known, skill_of(job) if gold is None else gold.task.skill)
            for mark in marks:
                self._mark(mark)
            self._book.note(GoldRound(trials_of_round(replayed, known), errors_of_round(replayed, known)))
            if gold is not None:
                gold.marks = marks
            return
        digests = {candidate.peer_id: candidate.config_digest for candidate in replayed.header.candidates}
        answer = unanimous(replayed, UNANIMOUS_VOICES, digests)
        solved = None if answer is None else known_from(answer, replayed.header.fold.answers)
        if solved is not None:
            self._traffic.solve(job, solved, frozenset(row.peer_id for row in replayed.members))

    # ---- probes that a person asks for

    async def now(self, wanted: ProbeRequest) -> dict[str, Any]:
        """Probe at once: `count` questions to each peer, and `rounds` gold rounds; what each got right, as JSON.

        Raises RemoteError(not_found | malformed) where nobody can be probed or no such skill has tasks.
        """
        if wanted.skill is not None and wanted.skill not in SKILLS:
            raise RemoteError(Code.MALFORMED, f"there are no tasks of skill {wanted.skill[:40]!r}; there are {', '.join(SKILLS)}")
        others = [one for one in self._candidates("") if one.path != "local" and wanted.peer in (None, one.peer)]
        if not others:
            nobody = f"{wanted.peer} is no other peer with" if wanted.peer else "there is no other peer with"
            raise RemoteError(Code.NOT_FOUND, f"{nobody} a model that can be reached; swarmd peers lists who is there")
        found: Counter[tuple[PeerId, str, bool]] = Counter()
        failed: Counter[PeerId] = Counter()
        limiter = trio.CapacityLimiter(_PEERS_AT_ONCE)

        def count(mark: Mark) -> None:
            self._mark(mark)
            found[mark.peer, mark.skill, True] += mark.right
            found[mark.peer, mark.skill, False] += mark.wrong

        async def probe(target: Candidate) -> None:
            skills = (wanted.skill,) if wanted.skill else self._fallback(target)
            async with limiter:
                for place in range(wanted.count):
                    try:
                        count(await self._probe(target, fresh(skills[place % len(skills)], self._rng)))
                    except RemoteError:
                        failed[target.peer] += 1

        async with trio.open_nursery() as nursery:
            for target in others[:MAX_PEERS]:
                nursery.start_soon(probe, target)
        for _ in range(wanted.rounds):
            for mark in await self._gold_round(wanted.skill):
                found[mark.peer, mark.skill, True] += mark.right
                found[mark.peer, mark.skill, False] += mark.wrong
        self.flush()
        models = {one.peer: one.model for one in self._candidates("")}
        return {"peers": _report(found, failed, models), "rounds": wanted.rounds}

    # ---- claims

    def _mark(self, mark: Mark) -> None:
        self._marks[mark.peer, Kind.PROBE_PASSED, mark.skill] += mark.right
        self._marks[mark.peer, Kind.PROBE_FAILED, mark.skill] += mark.wrong

    def flush(self) -> None:
        """Turn what was marked since the last time into claims, one for all probes of a peer and skill that ended alike."""
        statements = [
            Statement(peer, kind, skill=skill, value=min(MAX_COUNT, total))
            for (peer, kind, skill), total in sorted(self._marks.items())
            if total
        ]
        self._marks.clear()
        if statements:
            self._record(statements)


class _Gold:
    """A gold round under way."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.marks: list[Mark] = []


async def _unheard(event: AskEvent) -> None:
    await trio.lowlevel.checkpoint()


def _mark(peer: PeerId, skill: str, right: bool) -> Mark:
    return Mark(peer, skill, int(right), int(not right))


def _report(found: Counter[tuple[PeerId, str, bool]], failed: Counter[PeerId], models: dict[PeerId, str]) -> list[dict[str, Any]]:
    peers = sorted({peer for peer, _, _ in found} | set(failed))
    rows = []
    for peer in peers:
        skills = []
        for skill in sorted({name for one, name, _ in found if one == peer}):
            right, wrong = found[peer, skill, True], found[peer, skill, False]
            low, high = wilson_milli(right * 1000, wrong * 1000)
            share = right * 1000 // max(1, right + wrong)
            skills.append(
                {"skill": skill, "right": right, "wrong": wrong, "share_milli": share, "low_milli": low, "high_milli": high}
            )
        rows.append({"peer_id": peer, "model": models.get(peer), "unanswered": failed[peer], "skills": skills})
    return rows
