"""Applies what a request wishes of its peers to those that could answer. Pure; the selector's order stands between equals."""

from collections.abc import Callable, Sequence

from daemon.api.backend import PeerWish
from daemon.selector import Candidate, Choice


def sifted(
    candidates: Sequence[Candidate], refused: Callable[[Candidate], str]
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Those of whom `refused` says nothing, and the ids of the others, each with what it says."""
    kept: list[Candidate] = []
    ruled_out: list[tuple[str, str]] = []
    for one in candidates:
        if reason := refused(one):
            ruled_out.append((str(one.peer), reason))
        else:
            kept.append(one)
    return kept, ruled_out


def eligible(candidates: Sequence[Candidate], wish: PeerWish | None) -> list[Candidate]:
    """Those that the wish allows. A peer whose round trip was not measured is not within any limit."""
    return [one for one in candidates if not refusal(one, wish)]


def wished_order(choices: Sequence[Choice], wish: PeerWish | None) -> list[Choice]:
    """The choices, those first that the wish puts first."""
    match wish.sort if wish is not None else None:
        case "latency":
            return sorted(choices, key=lambda choice: _rtt(choice.candidate))
        case "load":
            return sorted(choices, key=lambda choice: choice.candidate.load.busy / max(1, choice.candidate.slots))
        case None:
            return list(choices)


def refusal(candidate: Candidate, wish: PeerWish | None) -> str:
    """Why the wish does not allow `candidate`; "" where it does."""
    if wish is None:
        return ""
    if candidate.peer in wish.ignore:
        return "'peer.ignore' names it"
    if wish.only is not None and candidate.peer not in wish.only:
        return "'peer.only' does not name it"
    if wish.max_rtt is not None and _rtt(candidate) > wish.max_rtt:
        return "its round trip is longer than 'peer.max_rtt_ms', or was not measured"
    if wish.min_score_milli is not None and (candidate.score_milli or 0) < wish.min_score_milli:
        return f"its score of {(candidate.score_milli or 0) / 1000:.3f} is below 'peer.min_score'"
    return ""


def _rtt(candidate: Candidate) -> float:
    if candidate.path == "local":
        return 0.0
    return float("inf") if candidate.rtt is None else candidate.rtt
