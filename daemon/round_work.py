"""What a round asks of our own engine: an answer, a judge's letters with log-probabilities, a sentence on them. Knows no peer."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from daemon.serving import ROUNDS, Serving
from protocol.round import events as ev
from protocol.round.judging import log_odds_milli
from protocol.round.messages import MAX_RATIONALE_BYTES
from protocol.wire.errors import Code, RemoteError
from protocol.wire.limits import MAX_ANSWER_BYTES

log = structlog.get_logger("swarmd.rounds")

T = TypeVar("T")
Done = ev.Answered | ev.AnswerFailed | ev.Judged | ev.JudgeFailed | ev.Explained

RETRY_SECONDS = 0.5
"""Pause before a full engine is asked again; a member that gives up at once would lose a seat to a moment's load."""


class RoundWork:
    """Runs `Generate`, `Judge`, `Explain` on the engine in the seconds they carry; a failure is an event, never an exception."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._judging: trio.CapacityLimiter | None = None

    async def run(self, effect: ev.Generate | ev.Judge | ev.Explain) -> Done:
        """Do the work and say how it went."""
        if isinstance(effect, ev.Explain):
            return await self._explain(effect)
        failed: type[ev.AnswerFailed] | type[ev.JudgeFailed]
        failed = ev.AnswerFailed if isinstance(effect, ev.Generate) else ev.JudgeFailed
        outcome: Done = failed("the engine took too long")
        with trio.move_on_after(effect.seconds):
            try:
                outcome = await (self._answer(effect) if isinstance(effect, ev.Generate) else self._judge(effect))
            except RemoteError as error:
                outcome = failed(error.message[:200])
        return outcome

    async def _answer(self, effect: ev.Generate) -> ev.Answered | ev.AnswerFailed:
        async def generate() -> ev.Answered | ev.AnswerFailed:
            pieces: list[str] = []
            size = tokens = 0
            async with self._serving.generate(effect.job, caller=ROUNDS) as chunks:
                async for chunk in chunks:
                    pieces.append(chunk.text)
                    size += len(chunk.text.encode())
                    tokens = chunk.usage.completion_tokens if chunk.usage is not None else tokens
                    if size > MAX_ANSWER_BYTES:
                        return ev.AnswerFailed(f"the answer is over {MAX_ANSWER_BYTES} bytes")
            text = "".join(pieces).strip()
            return ev.Answered(text, tokens) if text else ev.AnswerFailed("the engine gave an empty answer")

        return await self._patiently(generate)

    async def _judge(self, effect: ev.Judge) -> ev.Judged | ev.JudgeFailed:
        limiter = self._limiter()
        odds = [0] * len(effect.questions)
        errors: list[RemoteError] = []

        async def ask(place: int, question: ev.PairQuestion, stop: trio.CancelScope) -> None:
            async with limiter:
                try:
                    said = await self._patiently(lambda: self._serving.choose(question.turns, question.choices))
                    odds[place] = log_odds_milli(said)
                except RemoteError as error:
                    if error.code is Code.OVERSIZED:
                        return  # no opinion on this pair: else one overlong answer would take every judge out of the round
                    errors.append(error)
                    stop.cancel()

        async with trio.open_nursery() as nursery:
            for place, question in enumerate(effect.questions):
                nursery.start_soon(ask, place, question, nursery.cancel_scope)
        return ev.JudgeFailed(errors[0].message[:200]) if errors else ev.Judged(tuple(odds))

    async def _explain(self, effect: ev.Explain) -> ev.Explained:
        """What came in time; no words are no reason to be late with a ballot or to leave."""
        pieces: list[str] = []
        with trio.move_on_after(effect.seconds):
            try:
                async with self._serving.generate(effect.job, caller=ROUNDS) as chunks:
                    async for chunk in chunks:
                        pieces.append(chunk.text)
                        if sum(map(len, pieces)) > MAX_RATIONALE_BYTES:
                            break
            except RemoteError as error:
                log.debug("our engine gave no rationale", reason=error.message)
        return ev.Explained("".join(pieces))

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, again while the engine is full; the caller bounds the time."""
        while True:
            try:
                return await work()
            except RemoteError as error:
                if error.code is not Code.OVERLOADED or not self._serving.ready:
                    raise
            await trio.sleep(RETRY_SECONDS)

    def _limiter(self) -> trio.CapacityLimiter:
        """Judgements of all rounds together use as many slots as there are, and so never fill the queue of other requests."""
        engine = self._serving.engine
        slots = engine.model.slots if engine is not None and engine.model is not None else 1
        if self._judging is None:
            self._judging = trio.CapacityLimiter(slots)
        self._judging.total_tokens = slots
        return self._judging
