"""What was thought and done for the latest routed asks, so that `swarmd why` can tell. Keeps it in memory, and no prompt.

Decides nothing; the oldest is forgotten first.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from daemon.selector import Choice
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId, short

MAX_NOTES = 256
MAX_CANDIDATES = 32
"""Of one note: the best ones; the rest is counted."""

MAX_NAMED = 8
"""Of the asks that an id is short for: the choices of one request."""

LEAST_CHARS = 6
"""Of an id that is looked up, as for rounds."""


@dataclass(slots=True)
class AttemptNote:
    """One peer that was tried. Times in seconds; `at_s` from the start of the ask, `first_token_s` from that of the attempt."""

    peer_id: str
    reason: str
    """Why it was tried: "best", "next" (the one before failed), "hedge" (it was slow) or "continue" (it failed in mid-answer)."""
    at_s: float
    predicted_s: float
    outcome: str = "running"
    message: str = ""
    at_chars: int | None = None
    first_token_s: float | None = None


@dataclass(slots=True)
class AskNote:
    """One ask. `created` is unix seconds; `elapsed_s` is None while it runs."""

    ask_id: str
    created: float
    model: str
    kind: str = "text"
    """"text", "embeddings" or "probe" (a question of the daemon's own, to learn how good a peer is)."""
    candidates: Sequence[Choice] = ()
    """The best MAX_CANDIDATES, in the order in which they would be asked."""
    more_candidates: int = 0
    ruled_out: list[tuple[str, str]] = field(default_factory=list)
    """Peers that serve the model and could not be asked, each with the reason."""
    attempts: list[AttemptNote] = field(default_factory=list)
    hedge_after_s: float | None = None
    outcome: str = "running"
    """"running", "ok", "cancelled" or an error code."""
    error: str = ""
    peer_id: str = ""
    elapsed_s: float | None = None

    def weigh(self, choices: Sequence[Choice], ruled_out: Sequence[tuple[str, str]] = ()) -> None:
        """Note who could be asked, the best first, and who could not."""
        self.candidates, self.more_candidates = choices[:MAX_CANDIDATES], max(0, len(choices) - MAX_CANDIDATES)
        self.ruled_out = list(ruled_out[:MAX_CANDIDATES])

    def close(self, outcome: str, elapsed_s: float) -> None:
        """The ask is over, and so is every attempt."""
        self.outcome, self.elapsed_s = outcome, elapsed_s
        for attempt in self.attempts:
            if attempt.outcome == "running":
                attempt.outcome = self.outcome

    def shown(self) -> dict[str, Any]:
        """The JSON of GET /swarmd/v1/asks/{id}."""
        return {
            "ask_id": self.ask_id,
            "created": self.created,
            "kind": self.kind,
            "model": self.model,
            "outcome": self.outcome,
            "error": self.error,
            "peer_id": self.peer_id or None,
            "elapsed_s": _rounded(self.elapsed_s),
            "hedge_after_s": _rounded(self.hedge_after_s),
            "candidates": [_candidate(choice) for choice in self.candidates],
            "more_candidates": self.more_candidates,
            "ruled_out": [{"peer_id": peer, "reason": reason} for peer, reason in self.ruled_out],
            "attempts": [_attempt(attempt) for attempt in self.attempts],
            "why": self._why(),
        }

    def _why(self) -> list[str]:
        said = []
        if self.candidates:
            count = len(self.candidates) + self.more_candidates
            lead = f"the first of {count} candidates" if count > 1 else "the only candidate"
            said.append(f"{lead}: {self.candidates[0].why}")
        for before, one in pairwise(self.attempts):
            who, slow = short(PeerId(one.peer_id)), f"had no word after {one.at_s - before.at_s:.2f} s"
            cause = slow if one.reason == "hedge" else f"ended with {before.outcome}"
            verb = "asked to go on" if one.reason == "continue" else "asked"
            said.append(f"{who} was {verb} after {one.at_s:.2f} s, as {short(PeerId(before.peer_id))} {cause}")
        return said


def _candidate(choice: Choice) -> dict[str, Any]:
    candidate, parts = choice.candidate, choice.parts
    return {
        "peer_id": candidate.peer,
        "model": candidate.model,
        "path": candidate.path,
        "rtt_ms": None if candidate.rtt is None else round(candidate.rtt * 1000, 2),
        "slots": candidate.slots,
        "busy": candidate.load.busy,
        "predicted_s": round(parts.total, 4),
        "parts": {
            "reach_s": round(parts.reach, 4),
            "queue_s": round(parts.queue, 4),
            "share_s": round(parts.share, 4),
            "engine_s": round(parts.engine, 4),
            "engine_from": parts.source,
        },
        "why": choice.why,
    }


def _attempt(attempt: AttemptNote) -> dict[str, Any]:
    return {
        "peer_id": attempt.peer_id,
        "reason": attempt.reason,
        "at_s": _rounded(attempt.at_s),
        "predicted_s": _rounded(attempt.predicted_s),
        "first_token_s": _rounded(attempt.first_token_s),
        "outcome": attempt.outcome,
        "message": attempt.message,
        "at_chars": attempt.at_chars,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


class AskNotes:
    """The latest MAX_NOTES asks by their ids."""

    def __init__(self, unix_s: Callable[[], float] = time.time) -> None:
        self._unix_s = unix_s
        self._notes: OrderedDict[str, AskNote] = OrderedDict()

    def begin(self, ask_id: str, model: str, kind: str = "text") -> AskNote:
        """A note that is kept from now on; the asker fills it in."""
        note = self._notes[ask_id] = AskNote(ask_id, self._unix_s(), model, kind)
        self._notes.move_to_end(ask_id)
        if len(self._notes) > MAX_NOTES:
            self._notes.popitem(last=False)
        return note

    def newest_first(self) -> Sequence[AskNote]:
        return list(reversed(self._notes.values()))

    def newest(self) -> AskNote | None:
        """The latest of the user's, or of the probes where the user asked nothing."""
        notes = self.newest_first()
        return next((note for note in notes if note.kind != "probe"), notes[0] if notes else None)

    def find(self, wanted: str) -> AskNote:
        """By its id, a prefix of it (with or without "chatcmpl-" and the like), or "last"; raises RemoteError(not_found)."""
        if wanted == "last":
            if (newest := self.newest()) is not None:
                return newest
            raise RemoteError(Code.NOT_FOUND, "nothing was asked yet since this daemon started")
        if len(wanted) < LEAST_CHARS:
            raise RemoteError(Code.NOT_FOUND, f"an ask is named by {LEAST_CHARS} characters of its id at least, or 'last'")
        found = self._named(wanted)
        if not found:
            raise RemoteError(Code.NOT_FOUND, f"no ask {wanted[:64]}; the latest {MAX_NOTES} since the start are kept")
        if len(found) > 1 and found[0].ask_id != wanted:
            named = ", ".join(sorted(one.ask_id for one in found)[:MAX_NAMED])
            raise RemoteError(Code.NOT_FOUND, f"{wanted[:64]} names {len(found)} asks: {named}; give one of these")
        return found[0]

    def has(self, wanted: str) -> bool:
        """Whether an ask has an id that starts so."""
        return bool(self._named(wanted))

    def _named(self, wanted: str) -> list[AskNote]:
        if len(wanted) < LEAST_CHARS:
            return []
        return [one for one in self.newest_first() if one.ask_id.startswith(wanted) or _bare(one.ask_id).startswith(wanted)]


def _bare(ask_id: str) -> str:
    """The id without the kind of response that it names."""
    return re.sub(r"^[a-z]+[-_]", "", ask_id)
