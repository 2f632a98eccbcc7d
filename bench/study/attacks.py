"""What liars make of a recording: inverted judges, and colluders who push one wrong answer. Decides no weight and no winner.

An attack turns what was said into what would have been said; honest members' answers and judgements stay the recorded ones.
"""

import itertools
from collections.abc import Set
from typing import Literal

import msgspec

from bench.study.recording import Said
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI
from protocol.wire.ids import sha256

Kind = Literal["inverted", "pushing", "colluding"]
"""inverted: judge the opposite of what their models say, vote honestly. pushing: vote honestly, and judge for the lure with all
certainty wherever it stands. colluding: also vote for the lure."""


def coalition(run: int, prompt: str, members: int, liars: int) -> frozenset[int]:
    """Who lies in a question's round: each coalition of that size is equally likely, and a hash of the question picks it."""
    every = list(itertools.combinations(range(members), liars))
    ticket = sha256(b"bench/zoo/liars", run.to_bytes(4, "big"), liars.to_bytes(1, "big"), prompt.encode())
    return frozenset(every[int.from_bytes(ticket[:8], "big") % len(every)])


def attacked(said: Said, liars: Set[int], kind: Kind) -> Said:
    """The question as it goes where `liars` lie."""
    lure = said.lure
    pairs = itertools.permutations(range(len(said.texts)), 2)
    heard = tuple(
        tuple(_lie(value, lure, pair, kind) if judge in liars else value for judge, value in enumerate(row))
        for pair, row in zip(pairs, said.log_odds_milli, strict=True)
    )
    answers = said.answers
    if kind == "colluding":
        answers = tuple(lure if member in liars else text for member, text in enumerate(answers))
    return msgspec.structs.replace(said, answers=answers, log_odds_milli=heard)


def _lie(honest: int, lure: int, pair: tuple[int, int], kind: Kind) -> int:
    if kind == "inverted":
        return -honest
    if lure not in pair:
        return honest
    return LOG_ODDS_CLAMP_MILLI if pair[0] == lure else -LOG_ODDS_CLAMP_MILLI
