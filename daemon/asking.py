"""Answers the local user's questions from one chosen peer at a time; when that one fails, the next begins or goes on.

Before the first word the next best peer is asked. After it, one with the same config digest is asked for the rest.
"""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import structlog
import trio

from daemon.api.backend import AskRequest, Attempt, Emit, PeerWish, ResultEvent
from daemon.ask_notes import AskNote, AskNotes, AttemptNote
from daemon.attempt import AnswerSoFar, PeerAttempt, Served
from daemon.calls import Calls
from daemon.first_token import FirstTokens
from daemon.patience import Patience
from daemon.peer_wish import eligible, refusal, sifted, wished_order
from daemon.selector import Candidate, Choice, rank_candidates
from daemon.serving import Serving
from daemon.verification import LISTENING, Checked, Verification, claimed_by
from protocol.extras import wanted
from protocol.inference import Completion
from protocol.job import Job, Usage
from protocol.skills import skill_of
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, short

log = structlog.get_logger("swarmd.asking")

MAX_ATTEMPTS = 3
"""Peers tried before the first token; with presence at most 20 s old, three dead ones in a row are a mesh in trouble."""

MAX_SUCCESSORS = 3
"""Peers asked for the rest of one answer: each may fail as the first one did."""


class Asking:
    """Strategy "route". `candidates(model)` lists who serves, ourselves included; `observed` learns how each attempt went.

    `hedge`: a second peer is asked when the first is slower with its first token than 95 of 100 were; the first word wins.
    """

    def __init__(  # noqa: PLR0913 - what one ask touches, wired once
        self,
        serving: Serving,
        calls: Calls,
        candidates: Callable[[str], Sequence[Candidate]],
        observed: Callable[[Served], None],
        rng: Random,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        hedge: bool = False,
    ) -> None:
        self.serving = serving
        self.calls = calls
        self.patience = patience
        self.candidates = candidates
        self.observe = observed
        self._rng = rng
        self._hedge = hedge
        self.notes = AskNotes()
        self.under_way: Counter[PeerId] = Counter()
        """Our own attempts that run: a heartbeat tells of them seconds later."""
        self._first_tokens = FirstTokens()
        self.verification: Verification | None = None
        self.score: Callable[[PeerId, str], int] = _no_score
        """The score of a peer in a skill, in thousandths."""
        self.resting: Callable[[str, str | None], RemoteError | None] = _nobody_rests
        """Whether somebody who serves a model, or a peer that is named, will be there again, and when."""

    async def route(self, request: AskRequest, emit: Emit) -> None:
        """Answer `request`; raises RemoteError where no peer could, or where nobody can go on with what one began."""
        with self.noted(request.id, request.job.model, "probe" if request.is_probe else "text") as note:
            await _Ask(self, request, emit, note).run()

    @contextmanager
    def noted(self, ask_id: str, model: str, kind: str) -> Iterator[AskNote]:
        """A note of one ask while it runs; an `ask_id` of "" is chosen here."""
        note = self.notes.begin(ask_id or f"{self._rng.getrandbits(96):024x}", model, kind)
        started = trio.current_time()
        outcome = "cancelled"
        try:
            yield note
            outcome = "ok"
        except RemoteError as error:
            outcome, note.error = str(error.code), error.message
            raise
        finally:
            note.close(outcome, trio.current_time() - started)

    def choices(self, request: AskRequest, note: AskNote) -> list[Choice]:
        """Whom to ask, the best first; raises RemoteError(not_found) where there is nobody, (overloaded) where just not now."""
        candidates = self.scored(self.candidates(request.job.model), request.wish, lambda: skill_of(request.job))
        if request.peer is not None:
            candidates = [candidate for candidate in candidates if candidate.peer == request.peer]
        if not candidates:
            if (later := self.resting(request.job.model, request.peer)) is not None:
                raise later
            what = request.job.model or "any model"
            if request.peer is not None:
                raise RemoteError(Code.NOT_FOUND, f"{request.peer} cannot be reached or does not serve {what}; see swarmd peers")
            raise RemoteError(Code.NOT_FOUND, f"no reachable peer serves {what}; swarmd models lists what the mesh offers")
        allowed, ruled_out = sifted(candidates, lambda one: refusal(one, request.wish))
        if not allowed:
            note.weigh((), ruled_out)
            raise RemoteError(Code.NOT_FOUND, f"none of the {len(candidates)} peers that could answer is one that 'peer' allows")
        able, unable = able_to(allowed, request.job)
        ruled_out += unable
        choices = wished_order(self.ranked(able), request.wish)
        note.weigh(choices, ruled_out)
        return choices

    def successors(self, failed: Candidate, tried: set[PeerId], request: AskRequest) -> list[Choice]:
        """Who gives the same answer as `failed` and was not tried yet, the best first."""
        if not failed.config_digest:
            return []
        wish, found = request.wish, self.candidates(failed.model)
        same = [one for one in found if one.config_digest == failed.config_digest and one.peer not in tried]
        return wished_order(self.ranked(eligible(self.scored(same, wish, lambda: skill_of(request.job)), wish)), wish)

    def scored(self, candidates: Sequence[Candidate], wish: PeerWish | None, topic: Callable[[], str]) -> list[Candidate]:
        """The candidates, with their scores in the `topic` where the wish is about those."""
        if wish is None or wish.min_score_milli is None:
            return list(candidates)
        skill = topic()
        return [msgspec.structs.replace(one, score_milli=self.score(one.peer, skill)) for one in candidates]

    def hedge_after(self) -> float | None:
        """Seconds without a first token after which a second peer is asked; None for never."""
        return self._first_tokens.p95() if self._hedge else None

    def note(self, attempt: PeerAttempt) -> None:
        """Remember what an attempt that ended showed of its peer; one that was cancelled shows nothing."""
        candidate = attempt.choice.candidate
        if attempt.first_token_s is not None and attempt.at_chars is None:
            self._first_tokens.note(candidate.peer, attempt.first_token_s, trio.current_time())
        if candidate.path != "local" and (served := attempt.served()) is not None:
            self.observe(served)

    async def attempt(self, attempt: PeerAttempt, run: Callable[[], Awaitable[None]]) -> None:
        """Run `attempt` by `run`, counted while it runs."""
        peer = attempt.choice.candidate.peer
        self.under_way[peer] += 1
        try:
            await run()
        finally:
            self.under_way[peer] -= 1
            if not self.under_way[peer]:
                del self.under_way[peer]

    def ranked(self, candidates: Sequence[Candidate]) -> list[Choice]:
        """All of them, the soonest first, by what they say and what we measured."""
        now = trio.current_time()
        return rank_candidates([self._with_ours(candidate, now) for candidate in candidates], self._rng)

    def _with_ours(self, candidate: Candidate, now: float) -> Candidate:
        """The candidate with what we know of it ourselves, where we know anything: of a thousand few."""
        ours, first_token = self.under_way.get(candidate.peer, 0), self._first_tokens.of(candidate.peer, now)
        if candidate.path != "local" and ours > candidate.load.busy:
            candidate = msgspec.structs.replace(candidate, load=replace(candidate.load, busy=ours))
        return candidate if first_token is None else msgspec.structs.replace(candidate, first_token_s=first_token)


def _no_score(peer: PeerId, skill: str) -> int:
    return 0


def _nobody_rests(model: str, peer: str | None) -> RemoteError | None:
    return None


class _Ask:
    """One question on its way through the peers."""

    def __init__(self, asking: Asking, request: AskRequest, emit: Emit, note: AskNote) -> None:
        self._asking = asking
        self._note = note
        self._request = request
        self._emit = emit
        self._answer = AnswerSoFar(emit)
        self._attempts: list[Attempt] = []
        self._tried: set[PeerId] = set()
        self._successors = 0
        self._started = trio.current_time()

    async def run(self) -> None:
        pending = deque(self._asking.choices(self._request, self._note)[:MAX_ATTEMPTS])
        while True:
            last = await self._race(pending)
            if last.completion is not None:
                await self._emit(self._result(last, last.completion, await self._verified(last)))
                return
            error = last.error or RemoteError(Code.INTERNAL, "the attempt ended without a reason")
            if self._answer.text:
                if self._answer.tokens >= self._request.job.sampling.max_tokens:  # all but the farewell was there
                    await self._emit(self._result(last, Completion("length", Usage(0, self._answer.tokens))))
                    return
                pending = deque(self._next_successor(last.choice.candidate, error))
            if last.heard is not None and error.code is Code.UNSUPPORTED and self._asking.verification is not None:
                self._asking.verification.refused(last.choice.candidate)
                pending.appendleft(last.choice)
            if not pending or error.code is Code.CANCELLED:
                raise self._with_attempts(error)
            code = str(error.code)
            log.info("trying the next peer", peer=short(last.choice.candidate.peer), code=code, reason=error.message)

    async def _race(self, pending: deque[Choice]) -> PeerAttempt:
        """Ask the next peer, and the one after it too where the first is slow; the attempt that was served, or failed last."""
        reason = "continue" if self._answer.text else "next" if self._attempts else "best"
        first = self._attempt(pending.popleft(), reason)
        patience = self._asking.hedge_after() if pending and not self._answer.text else None
        self._note.hedge_after_s = patience
        runners = [first]
        if patience is None:
            await self._asking.attempt(first, first.run)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._asking.attempt, first, first.race)
                with trio.move_on_after(patience):
                    await first.settled.wait()
                if not first.settled.is_set():
                    second = self._attempt(pending.popleft(), "hedge")
                    first.rival, second.rival = second, first
                    runners.append(second)
                    nursery.start_soon(self._asking.attempt, second, second.race)
        for runner, noted in zip(runners, self._note.attempts[-len(runners) :], strict=True):
            noted.outcome, noted.at_chars, noted.first_token_s = runner.outcome, runner.at_chars, runner.first_token_s
            noted.message = "" if runner.error is None else runner.error.message
            self._attempts.append(Attempt(runner.choice.candidate.peer, runner.outcome, runner.at_chars))
            self._asking.note(runner)
        return next((runner for runner in runners if runner.first_token_s is not None or runner.completion), runners[-1])

    def _attempt(self, choice: Choice, reason: str) -> PeerAttempt:
        self._tried.add(choice.candidate.peer)
        self._answer.attempts += 1
        at = trio.current_time() - self._started
        self._note.attempts.append(AttemptNote(choice.candidate.peer, reason, at, choice.wait))
        log.debug("asking", why=choice.why)
        waited = trio.current_time() - self._started if self._answer.text else 0.0
        # Who goes on may have to say all of it again first, which takes as long as it took.
        patience = replace(self._asking.patience, first_token=self._asking.patience.first_token + waited)
        job, checks = self._request.job, self._asking.verification
        is_picked = checks is not None and not self._answer.text and checks.wants(self._request, choice.candidate)
        job = msgspec.structs.replace(job, extras=LISTENING) if is_picked else job
        attempt = PeerAttempt(choice, job, self._answer, self._asking.serving, self._asking.calls, patience)
        attempt.heard = [] if is_picked else None
        return attempt

    async def _verified(self, last: PeerAttempt) -> dict[str, Any] | None:
        """Have a complete answer checked, now where the user wants to know and else later; what is known to tell the user."""
        checks, text = self._asking.verification, "".join(self._answer.text)
        if not self._request.verify or checks is None:
            if last.heard is not None and checks is not None:
                checks.answered(last, text)
            return None
        if last.heard is None:
            own = last.choice.candidate.path == "local"
            reason = "this peer itself answered" if own else "more than one peer answered, or it has log-probabilities of its own"
            return Checked("unverified", reason).shown()
        return (await checks.check(claimed_by(last, text))).shown()

    def _next_successor(self, failed: Candidate, error: RemoteError) -> Sequence[Choice]:
        if self._request.peer is not None or not _has_one_rest(self._request.job) or self._successors >= MAX_SUCCESSORS:
            return ()
        if error.code is Code.OVERSIZED and not self._successors:
            return ()  # what does not fit this engine fits no other of its kind
        self._successors += 1
        return self._asking.successors(failed, self._tried, self._request)[:1]

    def _result(self, last: PeerAttempt, completion: Completion, verification: dict[str, Any] | None = None) -> ResultEvent:
        candidate = last.choice.candidate
        self._note.peer_id = candidate.peer
        return ResultEvent(
            "".join(self._answer.text),
            candidate.peer,
            candidate.model,
            "route",
            completion.finish_reason,
            completion.usage,
            tuple(self._attempts),
            last.path,
            trio.current_time() - self._started,
            continued=tuple(one.at_chars for one in self._attempts if one.outcome == "continued" and one.at_chars is not None),
            why=last.choice.why,
            engine_s=completion.engine_ms / 1000 if completion.engine_ms and len(self._attempts) == 1 else None,
            ask_id=self._note.ask_id,
            verification=verification,
        )

    def _with_attempts(self, error: RemoteError) -> RemoteError:
        """The last error, naming the peers that were tried before."""
        if len(self._attempts) < 2:
            return error
        tried = ", ".join(f"{short(PeerId(attempt.peer_id))} ({attempt.outcome})" for attempt in self._attempts)
        reason = f"{error.message}; {len(self._attempts)} peers were tried: {tried}"
        return RemoteError(error.code, reason, error.retry_after)


def _has_one_rest(job: Job) -> bool:
    """Whether the text so far says all of the answer so far: not where calls or log-probabilities go with it.

    Sampling is no hindrance: the wire always carries a seed, and an engine that draws otherwise with it refuses to go on.
    """
    return job.extras is None or not (job.extras.tools or job.extras.top_logprobs >= 0)


def able_to(candidates: Sequence[Candidate], job: Job) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Those whose offers say that they have what the job's extras ask for, or say nothing, and the others; all where none has it.

    Then a peer gives the refusal, which names the parameter.
    """
    needs = frozenset(wanted(job.extras)) if job.extras is not None else frozenset()
    lacks = "its engine has not what is asked for"
    able, unable = sifted(candidates, lambda one: lacks if one.features and not needs <= one.features else "")
    return (able, unable) if able else (list(candidates), [])
