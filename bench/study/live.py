"""Puts questions of the study to a mesh of real daemons, and plays the same rounds on the recording. Decides no winner itself.

A round's transcript is read from the asker's folder; its header says who sat, with which weights and rules, and the recording
says what each model answers and how it judges. What follows must be what the daemons signed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.study.recording import Recording, Said
from bench.study.rounds import Committee, play
from daemon.cli.demo_mesh import Mesh
from models.recipe.engine import ANSWER_TOKENS
from protocol.round.fold import Voice, verdict_hash
from protocol.round.transcript import Replayed, replay

ASK_SECONDS = 60.0
FORM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Live:
    """How often daemons and the study agree, over `asked` questions."""

    asked: int
    same_answer: int
    same_verdict: int
    """The same bytes: every class, pair, score and rank. Log-odds differ in the last digit with how an engine reads a prompt."""
    largest_wins_gap_milli: int
    """Between a class's share of wins by the daemons and by the study."""
    judgements: int
    other_judgements: int
    """Of `judgements` that both have, those whose log-odds differ; by `largest_odds_gap_milli` at most (milli-nats)."""
    largest_odds_gap_milli: int
    right: int
    failed: tuple[str, ...]


def ask_daemons(recording: Recording, questions: Sequence[Said], pause: Callable[[], None], note: Callable[[str], None]) -> Live:
    """Start one daemon for each model, ask the first of them every question, and compare; `pause` waits a little."""
    same_answer = same_verdict = right = gap = 0
    odds_gaps: list[int] = []
    failed: list[str] = []
    with Mesh(list(recording.models), keep=False) as mesh:
        mesh.start_bootstrap()
        mesh.start_others(lambda: None)
        _await_mesh(mesh, pause)
        note(f"{len(mesh.nodes)} daemons are up")
        client = mesh.nodes[0].client(ASK_SECONDS)
        for said in questions:
            limits = {"committee": len(recording.models), "max_tokens": ANSWER_TOKENS, "timeout_s": ASK_SECONDS}
            events = client.ask(said.prompt, strategy="rank", **limits)
            shown = [event.fields for event in events if event.name == "result"][-1]["round"]
            raw = next(mesh.nodes[0].folder.rglob(f"{shown['round_id']}.round")).read_bytes()
            theirs = replay(raw)
            committee = committee_of(theirs, recording)
            ours = play(theirs.round, said, committee, "rank")
            odds_gaps += _odds_gaps(theirs, said, committee)
            if ours is None or theirs.result is None:
                failed.append(f"{said.prompt}: {theirs.reason or 'no answer is recorded'}")
                continue
            same_answer += ours.answer == theirs.winner
            same_verdict += verdict_hash(ours.result) == theirs.verdict_hash
            right += theirs.winner == said.right
            pairs = zip(ours.result.classes, theirs.result.classes, strict=False)
            gap = max([gap, *(abs(a.wins_milli - b.wins_milli) for a, b in pairs)])
            if ours.answer != theirs.winner:
                failed.append(f"{said.prompt}: the daemons say {theirs.winner!r} and the recording {ours.answer!r}")
    other, most = sum(map(bool, odds_gaps)), max(odds_gaps, default=0)
    return Live(len(questions), same_answer, same_verdict, gap, len(odds_gaps), other, most, right, tuple(failed))


def _odds_gaps(theirs: Replayed, said: Said, committee: Committee) -> list[int]:
    """By how much each judgement of the daemons differs from the recorded one of the same model on the same two texts."""
    heard = said.pairs()
    place = {index: said.texts.index(text) for index, text in enumerate(theirs.answers) if text in said.texts}
    return [
        abs(judgement.log_odds_milli - heard[place[judgement.first], place[judgement.second]][committee.members[seat]])
        for seat, judgements in theirs.ballots.items()
        for judgement in judgements
        if judgement.first in place and judgement.second in place
    ]


def committee_of(theirs: Replayed, recording: Recording) -> Committee:
    """Who sat in a daemon's round, as members of the recording."""
    candidates = {candidate.peer_id: candidate for candidate in theirs.header.candidates}
    seated = [candidates[row.peer_id] for row in theirs.members]
    voices = {seat: Voice.of(candidate) for seat, candidate in enumerate(seated)}
    members = tuple(recording.models.index(candidate.model) for candidate in seated)
    return Committee(members, tuple(row.peer_id for row in theirs.members), voices, theirs.header.fold)


def spread(said: Sequence[Said], count: int) -> list[Said]:
    """`count` questions, evenly over all, so that every skill is among them."""
    return [said[place * len(said) // count] for place in range(min(count, len(said)))]


def _await_mesh(mesh: Mesh, pause: Callable[[], None]) -> None:
    for _ in range(int(FORM_SECONDS * 10)):
        if all(mesh.peers_known(node) >= len(mesh.nodes) - 1 for node in mesh.nodes):
            return
        pause()
    raise TimeoutError(f"the mesh did not form within {FORM_SECONDS:.0f} s")
