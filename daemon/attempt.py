"""One try at one peer: asks it for an answer, or for the rest of one, within our patience, and passes on what comes."""

from dataclasses import dataclass, field
from math import inf

import trio

from daemon.api.backend import BegunEvent, Emit, TokenEvent
from daemon.calls import Calls
from daemon.patience import Patience
from daemon.selector import Choice
from daemon.serving import Serving, completion_of
from protocol.delta import Delta, TokenLogprob, joined, read_delta
from protocol.inference import CONTINUE_METHOD, METHOD, Begun, Completion, Continuation, read_completion
from protocol.job import Job, Usage
from protocol.skills import skill_of
from protocol.wire.codec import encode
from protocol.wire.errors import Code, RemoteError, malformed
from protocol.wire.ids import PeerId
from protocol.wire.limits import MAX_ANSWER_CHARS, MAX_TOKENS

MAX_PARTS = 2 * MAX_TOKENS
"""Tokens with log-probabilities and parts of tool calls in one answer: an engine may send a few more than it counts tokens."""

FAULTS = frozenset({Code.GONE, Code.DEADLINE, Code.ENGINE_FAILED, Code.INTERNAL, Code.MALFORMED})
"""Codes that tell against the peer. One that is full, or whose engine cannot take this very job, did nothing wrong."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one attempt showed: the peer, whether it served, and seconds to its first token (None: none came).

    `accepted`: the call was on a link to the peer, so that a failure is not just our own network's. `skill`: its topic.
    """

    peer: PeerId
    ok: bool
    first_token_s: float | None
    accepted: bool = True
    skill: str = ""


@dataclass(slots=True)
class AnswerSoFar:
    """What the user has got, from however many peers. At least `tokens` tokens were generated for it."""

    emit: Emit
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    attempts: int = 0
    """How many peers were asked for it so far."""
    chars: int = 0
    parts: int = 0
    """Tokens with log-probabilities, and parts of tool calls."""

    def bound(self, delta: Delta) -> None:
        """Count a piece that came; raises RemoteError(malformed) where it is more than any answer has."""
        self.chars += len(delta.text)
        self.parts += len(delta.logprobs) + len(delta.tool_calls)
        if self.chars > MAX_ANSWER_CHARS or self.parts > MAX_PARTS:
            raise malformed("the peer sent more than any answer has")

    def begun(self) -> Begun | None:
        """What another peer would have to go on from; None where nothing was said."""
        return Begun("".join(self.text), self.tokens) if self.text else None


class PeerAttempt:
    """`run` ends with `completion` or `error`, or with neither where a rival was faster. `settled`: first token, or the end."""

    def __init__(self, choice: Choice, job: Job, answer: AnswerSoFar, serving: Serving, calls: Calls, patience: Patience) -> None:
        self.choice = choice
        self.rival: PeerAttempt | None = None
        self.heard: list[TokenLogprob] | None = None
        """Where the answer is to be checked: its log-probabilities, which are ours and not the user's."""
        self.completion: Completion | None = None
        self.error: RemoteError | None = None
        self.first_token_s: float | None = None
        self.settled = trio.Event()
        self._begun = answer.begun()
        self.at_chars = None if self._begun is None else len(self._begun.text)
        self.job = job
        self._answer = answer
        self._serving = serving
        self._calls = calls
        self._patience = patience
        self._accepted = False
        self._slower = False
        self._scope = trio.CancelScope()
        self._started = trio.current_time()

    @property
    def outcome(self) -> str:
        """The word for it: "ok", "continued", "slower" or an error code."""
        if self.completion is not None:
            return "ok" if self._begun is None else "continued"
        return "slower" if self.error is None else str(self.error.code)

    @property
    def path(self) -> str:
        """How the peer is reached now: it may have been connected only for this."""
        candidate = self.choice.candidate
        return "local" if candidate.path == "local" else self._calls.path_kind(candidate.peer) or candidate.path

    def served(self) -> Served | None:
        """What it says of the peer; None where it says nothing."""
        peer = self.choice.candidate.peer
        if self.completion is not None:
            return Served(peer, True, self.first_token_s if self._begun is None else None, skill=skill_of(self.job))
        if self.error is None or self.error.code not in FAULTS:
            return None
        return Served(peer, False, self.first_token_s, self._accepted, skill_of(self.job))

    async def run(self) -> None:
        """Try; raises nothing of the peer's."""
        try:
            completion = await (self._run_local() if self.choice.candidate.path == "local" else self._run_remote())
            if not self._slower:
                self.completion = completion
                if self.rival is not None:  # which still runs where this answer has no word at all
                    self.rival.stop()
        except RemoteError as error:
            self.error = error
        finally:
            self.settled.set()

    async def race(self) -> None:
        """`run`, until a rival stops it."""
        with self._scope:
            await self.run()

    async def _run_local(self) -> Completion:
        completion, limit = Completion("stop", Usage()), self._patience.first_token
        async with self._serving.generate(self.job, self._begun) as chunks:
            with trio.CancelScope() as silence:
                async for chunk in chunks:
                    silence.deadline = inf
                    await self._pass_on(Delta(chunk.text, chunk.tool_calls, chunk.logprobs, chunk.tokens))
                    if chunk.finish_reason is not None:
                        completion = completion_of(chunk)
                    if self.first_token_s is not None:  # until then and beside others' prompts it takes its time
                        silence.deadline = trio.current_time() + limit
                return completion
            raise RemoteError(Code.DEADLINE, f"the engine said nothing for {limit:g} s")

    async def _run_remote(self) -> Completion:
        method, body = METHOD, encode(self.job)
        if self._begun is not None:
            method, body = CONTINUE_METHOD, encode(Continuation(self.job, self._begun))
        async with self._calls.stream(self.choice.candidate.peer, method, body, timeout=self._patience.call) as stream:
            self._accepted = True
            limit = self._patience.first_token
            with trio.CancelScope() as silence:  # one for all waits: to enter one costs as much as to pass on a token
                while True:
                    silence.deadline = trio.current_time() + limit
                    item = await anext(stream, None)
                    silence.deadline = inf
                    if item is None:
                        return read_completion(stream.result or b"")
                    for delta in joined(map(read_delta, (item, *stream.ready()))):
                        await self._pass_on(delta)
                    limit = self._patience.first_token if self.first_token_s is None else self._patience.gap
            raise RemoteError(Code.DEADLINE, f"the peer sent nothing for {limit:g} s")

    async def _pass_on(self, delta: Delta) -> None:
        if not (delta.text or delta.tool_calls or delta.logprobs):
            return
        self._answer.bound(delta)
        if self._slower:
            await trio.sleep_forever()  # cancelled already, at the first word of the rival
        if self.first_token_s is None:
            self.first_token_s = trio.current_time() - self._started
            self.settled.set()
            if self.rival is not None:
                self.rival.stop()
            if self._begun is None:
                candidate = self.choice.candidate
                await self._answer.emit(BegunEvent(candidate.peer, self.path, self._answer.attempts))
        self._answer.text.append(delta.text)
        self._answer.tokens += delta.tokens if delta.text else 0
        logprobs = delta.logprobs
        if self.heard is not None:
            self.heard += logprobs
            logprobs = ()
        if delta.text or delta.tool_calls or logprobs:
            await self._answer.emit(TokenEvent(delta.text, delta.tool_calls, logprobs))

    def stop(self) -> None:
        """The rival was faster."""
        self._slower = True
        self._scope.cancel()
