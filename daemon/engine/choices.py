"""Decides how likely a judge finds each of its choices, from the one token that an engine said and listed. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from daemon.engine.dialect import CompletionEvent, ListedToken
from daemon.engine.interface import EngineError

UNSEEN_CHOICE_NATS = 1.0
"""A choice outside the listed tokens is put this far below the least likely listed one: it is known to be no likelier."""

SPOKEN_CHOICE_NATS = 2.0
"""Log-odds claimed for a choice that an engine without log-probabilities has merely said: 0.88 of two."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """What was said for a choice: the text, and the log-probability of each listed token; empty where the engine gives none."""

    text: str
    logprobs: Mapping[str, float]

    @staticmethod
    def of(events: Sequence[CompletionEvent]) -> "FirstToken":
        choices = [event.choices[0] for event in events if event.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for c in choices if c.logprobs is not None for token in c.logprobs.content or []]
        listed = [ListedToken(tokens[0].token, tokens[0].logprob), *(tokens[0].top_logprobs or [])] if tokens else []
        sums: dict[str, float] = {}
        for name, found in {entry.token: entry.logprob for entry in listed if math.isfinite(entry.logprob)}.items():
            word = name.strip()
            sums[word] = _log_sum((sums[word], found)) if word in sums else found
        return FirstToken(text.strip(), sums)


def unlisted(said: FirstToken, choices: Sequence[str]) -> list[str]:
    """The choices whose log-probability is not known."""
    return [choice for choice in choices if choice not in said.logprobs]


def normalised(said: FirstToken, choices: Sequence[str]) -> tuple[float, ...]:
    """Log-probabilities over `choices` that sum to one; raises EngineError where nothing was said that bears on them."""
    if not said.logprobs:
        return _spoken(said.text, choices)
    floor = min(said.logprobs.values()) - UNSEEN_CHOICE_NATS
    raw = [said.logprobs.get(choice, floor) for choice in choices]
    total = _log_sum(raw)
    return tuple(value - total for value in raw)


def _spoken(text: str, choices: Sequence[str]) -> tuple[float, ...]:
    if text not in choices:
        raise EngineError("the engine gives no log-probabilities and named none of the choices")
    raw = [SPOKEN_CHOICE_NATS if choice == text else 0.0 for choice in choices]
    total = _log_sum(raw)
    return tuple(value - total for value in raw)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))
