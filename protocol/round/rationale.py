"""What a judge may add in words to a ballot that is sealed: for people to read. Decides nothing, and no judge is shown it."""

from collections.abc import Sequence

from protocol.job import Job, Role, Sampling, Turn
from protocol.round.events import Explain, PairQuestion
from protocol.round.judging import quotable
from protocol.round.messages import MAX_RATIONALE_BYTES, Durations, Judgement

MAX_RATIONALE_TOKENS = 64

MAX_RATIONALE_SECONDS = 1.5
"""From the seal on. A requester waits for two seconds at least after a quorum revealed its ballots, and those of judges without
words are there at once."""

_ASKED = "In one sentence of at most 25 words: what decided it?"


def decisive(judgements: Sequence[Judgement]) -> Judgement | None:
    """The judgement that a rationale is about: the surest, of equal ones the first; None where the judge prefers no answer."""
    surest = max(judgements, key=lambda judgement: abs(judgement.log_odds_milli), default=None)
    return surest if surest is not None and surest.log_odds_milli else None


def explanation(question: PairQuestion, said: Judgement, durations: Durations) -> Explain:
    """What to ask our engine after it said `said` to `question`: the letter stands, and the words come after it."""
    letter = question.choices[0 if said.log_odds_milli > 0 else 1]
    turns = (*question.turns, Turn(Role.ASSISTANT, letter), Turn(Role.USER, _ASKED))
    seconds = min(MAX_RATIONALE_SECONDS, durations.reveal_ms / 2000)
    return Explain(Job(turns, Sampling(max_tokens=MAX_RATIONALE_TOKENS)), seconds)


def rationale_of(text: str) -> str:
    """An engine's words as a ballot carries them: one line, no control characters, at most MAX_RATIONALE_BYTES of UTF-8."""
    line = " ".join(quotable(text).split()).encode("utf-8", "replace")
    return line[:MAX_RATIONALE_BYTES].decode("utf-8", "ignore").strip()
