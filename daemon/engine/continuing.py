"""Decides how an engine completes an answer that another began: what it is given as begun, what it will say again. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from daemon.engine.dialect import Dialect, JsonObject
from daemon.engine.interface import Chunk, EngineRefused
from protocol.inference import Begun
from protocol.job import Job, Role, Usage

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class CannotContinue(EngineRefused):
    """The engine does not say the same again, so the rest of this answer cannot be had from it."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """One way: `given` goes to the engine as the turn to complete, `repeated` is said again and not passed on."""

    given: str
    repeated: str


def resumptions(job: Job, begun: Begun, dialect: Dialect) -> Sequence[Resumption]:
    """The ways to the rest of an answer, the cheapest first; the last one, saying all of it again, works with every engine.

    A sampled answer is always said again: an engine's random numbers start at the seed with each request, so that the rest alone
    would be drawn from the wrong ones. What is constrained is said again too, as a grammar knows nothing of a text half given.
    """
    again = Resumption("", begun.text)
    sampling = job.sampling
    # A character that was lost in the text would be read as another token than the one that was generated.
    if dialect.prefill is None or sampling.temperature_milli or job.extras is not None or _REPLACEMENT in begun.text:
        return (again,)
    if begun.tokens >= sampling.max_tokens:
        return (again,)  # there is no asking for no token at all
    given = begun.text if dialect.prefills_space else begun.text.rstrip()
    return (Resumption(given, begun.text[len(given) :]), again) if given else (again,)


def resumed_request(request: JsonObject, way: Resumption, begun: Begun, dialect: Dialect) -> JsonObject:
    """The completion request of the whole answer, made one for what `way` leaves to be said."""
    if not way.given:
        return request
    return {
        **request,
        "messages": [*request["messages"], {"role": str(Role.ASSISTANT), "content": way.given}],
        "max_tokens": max(1, request["max_tokens"] - begun.tokens),
        **(dialect.prefill or {}),
    }


class Remainder:
    """Takes off what was said before; raises CannotContinue where the engine says something else or less."""

    def __init__(self, way: Resumption, begun: Begun) -> None:
        self._left = way.repeated
        self._counted = begun.tokens if way.given else 0

    def of(self, chunk: Chunk) -> Chunk:
        """The new part of `chunk`. The usage is that of the whole answer, as if nobody had failed."""
        size = min(len(chunk.text), len(self._left))
        if chunk.text[:size] != self._left[:size] or (chunk.finish_reason is not None and len(self._left) > size):
            raise CannotContinue("the engine does not say the same again, so this answer cannot be continued here")
        self._left = self._left[size:]
        usage = chunk.usage
        if usage is not None and self._counted:
            usage = Usage(max(0, usage.prompt_tokens - self._counted), usage.completion_tokens + self._counted)
        return replace(chunk, text=chunk.text[size:], usage=usage)
