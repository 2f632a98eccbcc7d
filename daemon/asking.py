"""Answers the local user's questions from one chosen peer: tries the best first, moves on to the next before the first token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import structlog
import trio

from daemon.answer_stream import Emit
from daemon.api.backend import AskRequest, Attempt, ResultEvent, TokenEvent
from daemon.calls import Calls
from daemon.selector import Candidate, Choice, rank_candidates
from daemon.serving import Serving
from protocol.inference import METHOD, Completion, read_completion, read_item
from protocol.job import Job, Usage
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, short

log = structlog.get_logger("swarmd.asking")

MAX_ATTEMPTS = 3
"""Peers tried before the first token; with presence at most 20 s old, three dead ones in a row are a mesh in trouble."""

FIRST_TOKEN_SECONDS = 60.0
TOKEN_GAP_SECONDS = 30.0

MAX_CALL_SECONDS = 3600.0

FAULTS = frozenset({Code.GONE, Code.DEADLINE, Code.ENGINE_FAILED, Code.INTERNAL, Code.MALFORMED})
"""Codes that tell against the peer. One that is full, or whose engine cannot take this very job, did nothing wrong."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one attempt showed: the peer, whether it served, and seconds to its first token (None: none came).

    `accepted`: the call was on a link to the peer, so that a failure is not just our own network's.
    """

    peer: PeerId
    ok: bool
    first_token_s: float | None
    accepted: bool = True


class Asking:
    """Strategy "route". `candidates(model)` lists who serves, ourselves included; `observed` learns how each attempt went."""

    def __init__(
        self,
        serving: Serving,
        calls: Calls,
        candidates: Callable[[str], Sequence[Candidate]],
        observed: Callable[[Served], None],
        rng: Random,
    ) -> None:
        self._serving = serving
        self._calls = calls
        self._candidates = candidates
        self._observed = observed
        self._rng = rng

    async def route(self, request: AskRequest, emit: Emit) -> None:
        """Answer `request` from one peer; raises RemoteError where no peer could."""
        started = trio.current_time()
        choices = self._choices(request)[:MAX_ATTEMPTS]
        attempts: list[Attempt] = []
        for choice in choices:
            attempt = _Attempt(choice, request.job, emit)
            try:
                completion = await self._try(attempt)
            except RemoteError as error:
                attempts.append(Attempt(choice.candidate.peer, str(error.code)))
                if attempt.first_token_s is not None or error.code is Code.CANCELLED or choice is choices[-1]:
                    raise _with_attempts(error, attempts) from None
                log.info("trying the next peer", peer=short(choice.candidate.peer), code=str(error.code), reason=error.message)
                continue
            attempts.append(Attempt(choice.candidate.peer, "ok"))
            await emit(
                ResultEvent(
                    "".join(attempt.text),
                    choice.candidate.peer,
                    choice.candidate.model,
                    "route",
                    completion.finish_reason,
                    completion.usage,
                    tuple(attempts),
                    choice.candidate.path,
                    trio.current_time() - started,
                )
            )
            return

    def _choices(self, request: AskRequest) -> list[Choice]:
        candidates = self._candidates(request.job.model)
        if request.peer is not None:
            candidates = [candidate for candidate in candidates if candidate.peer == request.peer]
        if not candidates:
            wanted = f"peer {request.peer}" if request.peer else request.job.model or "any model"
            raise RemoteError(Code.NOT_FOUND, f"no reachable peer serves {wanted}; swarmd models lists what the mesh offers")
        return rank_candidates(candidates, self._rng)

    async def _try(self, attempt: "_Attempt") -> Completion:
        candidate = attempt.choice.candidate
        if candidate.path == "local":
            return await attempt.run_local(self._serving)
        try:
            completion = await attempt.run_remote(self._calls)
        except RemoteError as error:
            if error.code in FAULTS:
                self._observed(Served(candidate.peer, False, attempt.first_token_s, attempt.accepted))
            raise
        self._observed(Served(candidate.peer, True, attempt.first_token_s))
        return completion


def _with_attempts(error: RemoteError, attempts: Sequence[Attempt]) -> RemoteError:
    """The last error, naming the peers that were tried before."""
    if len(attempts) < 2:
        return error
    tried = ", ".join(f"{short(attempt.peer_id)} ({attempt.outcome})" for attempt in attempts)
    return RemoteError(error.code, f"{error.message}; {len(attempts)} peers were tried: {tried}", error.retry_after)


class _Attempt:
    """One try at one peer; collects the text that was passed on."""

    def __init__(self, choice: Choice, job: Job, emit: Emit) -> None:
        self.choice = choice
        self.text: list[str] = []
        self.first_token_s: float | None = None
        self.accepted = False
        self._job = job
        self._emit = emit
        self._started = trio.current_time()

    async def run_local(self, serving: Serving) -> Completion:
        completion = Completion("stop", Usage())
        async with serving.generate(self._job) as chunks:
            async for chunk in chunks:
                await self._pass_on(chunk.text)
                if chunk.finish_reason is not None:
                    completion = Completion(chunk.finish_reason, chunk.usage or Usage())
        return completion

    async def run_remote(self, calls: Calls) -> Completion:
        body = encode(self._job)
        async with calls.stream(self.choice.candidate.peer, METHOD, body, timeout=MAX_CALL_SECONDS) as stream:
            self.accepted = True
            items = aiter(stream)
            while True:
                limit = FIRST_TOKEN_SECONDS if self.first_token_s is None else TOKEN_GAP_SECONDS
                item: bytes | None = None
                with trio.move_on_after(limit) as wait:
                    item = await anext(items, None)
                if wait.cancelled_caught:
                    raise RemoteError(Code.DEADLINE, f"the peer sent nothing for {limit:.0f} s")
                if item is None:
                    return read_completion(stream.result or b"")
                await self._pass_on(read_item(item))

    async def _pass_on(self, text: str) -> None:
        if not text:
            return
        if self.first_token_s is None:
            self.first_token_s = trio.current_time() - self._started
        self.text.append(text)
        await self._emit(TokenEvent(text))
