"""Rounds in which one member says the same text to every question: recorded answers, and real judges asked about that text alone.

The member judges as it did. On gold it says its text too, or, where it recognises gold, what it would have said.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

from msgspec import structs

from bench.study import gold as golden
from bench.study.attacks import coalition
from bench.study.recording import Recording, Said
from bench.study.rounds import Committee, play, round_of
from protocol.round.messages import FoldParameters
from protocol.wire.ids import PeerId

Ask = Callable[[Sequence[tuple[int, str, str, str, str]]], Sequence[int]]
"""Log-odds (milli-nats) for tasks of (judge, prompt, its own answer, text shown first, text shown second)."""


def with_constant(said: Said, text: str, liar: int, ask: Ask) -> Said:
    """The question as it goes where `liar` answers `text`, which nobody gave."""
    judges = range(len(said.answers))
    own = [said.texts[place] if place >= 0 else "" for place in said.answers]
    orders = [order for other in said.texts for order in ((text, other), (other, text))]
    answers = iter(ask([(judge, said.prompt, own[judge], *order) for order in orders for judge in judges]))
    new = {order: tuple(itertools.islice(answers, len(own))) for order in orders}
    texts, heard = (*said.texts, text), said.pairs()
    pairs = itertools.permutations(range(len(texts)), 2)
    rows = [heard[a, b] if (a, b) in heard else new[texts[a], texts[b]] for a, b in pairs]
    given = tuple(len(said.texts) if member == liar else place for member, place in enumerate(said.answers))
    return structs.replace(said, texts=texts, answers=given, log_odds_milli=tuple(rows))


def wins(recording: Recording, asked: Sequence[Said], texts: Mapping[str, str], ask: Ask, covert: bool) -> list[bool]:
    """Of each question, whether the text of its skill in `texts` won; those that it is an answer to are left out."""
    digests = [bytes.fromhex(name) for name in recording.sha256]
    peers = tuple(PeerId(f"run{recording.run}-{model}") for model in recording.models)
    members, found = tuple(range(len(peers))), []
    for said in asked:
        text = texts[said.skill]
        if text in (*said.texts, said.right):
            continue
        (liar,) = coalition(recording.run, said.prompt, len(members), 1)
        gold = [_wrong(row, liar) if covert else row for row in recording.said if row.gold and row.skill == said.skill]
        weights = golden.weights_of(golden.records(gold, len(members))[said.skill], digests)
        rules = FoldParameters(arm="fuse" if weights.arm == "majority" else weights.arm)
        committee = Committee(members, peers, weights.voices, rules)
        played = play(round_of(recording.run, said), with_constant(said, text, liar, ask), committee, "rank")
        found.append(played is not None and played.answer == text)
    return found


def _wrong(said: Said, liar: int) -> Said:
    """A gold question to which `liar` gave a wrong answer; which one is all the same to its record."""
    answers = tuple(said.lure if member == liar else place for member, place in enumerate(said.answers))
    return structs.replace(said, answers=answers)
