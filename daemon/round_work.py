"""What a round asks of our own engine: one answer, or the judge's letters with their log-probabilities. Knows no peer."""

import trio

from daemon.serving import Serving
from protocol.round import events as ev
from protocol.round.judging import log_odds_milli
from protocol.wire.errors import RemoteError
from protocol.wire.limits import MAX_ANSWER_BYTES


class RoundWork:
    """Runs `Generate` and `Judge` on the engine within the seconds they carry; a failure becomes an event, never an exception."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def run(self, effect: ev.Generate | ev.Judge) -> ev.Answered | ev.AnswerFailed | ev.Judged | ev.JudgeFailed:
        """Do the work and say how it went."""
        failed: type[ev.AnswerFailed] | type[ev.JudgeFailed]
        failed = ev.AnswerFailed if isinstance(effect, ev.Generate) else ev.JudgeFailed
        outcome: ev.Answered | ev.AnswerFailed | ev.Judged | ev.JudgeFailed = failed("the engine took too long")
        with trio.move_on_after(effect.seconds):
            try:
                outcome = await (self._answer(effect) if isinstance(effect, ev.Generate) else self._judge(effect))
            except RemoteError as error:
                outcome = failed(error.message[:200])
        return outcome

    async def _answer(self, effect: ev.Generate) -> ev.Answered | ev.AnswerFailed:
        pieces: list[str] = []
        size = tokens = 0
        async with self._serving.generate(effect.job) as chunks:
            async for chunk in chunks:
                pieces.append(chunk.text)
                size += len(chunk.text.encode())
                tokens = chunk.usage.completion_tokens if chunk.usage is not None else tokens
                if size > MAX_ANSWER_BYTES:
                    return ev.AnswerFailed(f"the answer is over {MAX_ANSWER_BYTES} bytes")
        text = "".join(pieces).strip()
        return ev.Answered(text, tokens) if text else ev.AnswerFailed("the engine gave an empty answer")

    async def _judge(self, effect: ev.Judge) -> ev.Judged | ev.JudgeFailed:
        engine = self._serving.engine
        slots = engine.model.slots if engine is not None and engine.model is not None else 1
        limiter = trio.CapacityLimiter(slots)
        odds = [0] * len(effect.questions)
        errors: list[RemoteError] = []

        async def ask(place: int, question: ev.PairQuestion) -> None:
            async with limiter:
                try:
                    odds[place] = log_odds_milli(await self._serving.choose(question.turns, question.choices))
                except RemoteError as error:
                    errors.append(error)

        async with trio.open_nursery() as nursery:
            for place, question in enumerate(effect.questions):
                nursery.start_soon(ask, place, question)
        return ev.JudgeFailed(errors[0].message[:200]) if errors else ev.Judged(tuple(odds))
