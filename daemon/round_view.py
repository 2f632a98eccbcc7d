"""A replayed round as the control API shows it, with the sentences that explain its winner. Pure; reads nothing."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from daemon.round_archive import Note
from protocol.round.calibration import prior_of
from protocol.round.conduct import SelfPreference, self_preference
from protocol.round.fold import Result
from protocol.round.rationale import decisive
from protocol.round.transcript import MemberRow, Replayed
from protocol.wire.ids import short


def round_view(note: Note, replayed: Replayed, size: int) -> dict[str, Any]:
    """The JSON of GET /swarmd/v1/rounds/{id}. `size` is the transcript's length in bytes."""
    result = replayed.result
    selves = _self_preferences(replayed)
    return {
        "round_id": note.round_id,
        "strategy": replayed.header.strategy,
        "question": note.question,
        "state": "verdict" if result is not None else "no_result",
        "reason": replayed.reason,
        "requester": replayed.requester,
        "created": note.created,
        "members": [_member(row, replayed, selves[row.seat]) for row in replayed.members],
        "arm": replayed.header.fold.arm,
        "ballots": ballot_rows(replayed),
        "rationales": _rationales(replayed),
        "pairs": _pairs(result) if result is not None else [],
        "classes": _classes(result, replayed.answers) if result is not None else [],
        "winner": replayed.winner,
        "winner_peer": replayed.members[result.winner_seat].peer_id if result is not None else None,
        "confidence_milli": result.confidence_milli if result is not None else 0,
        "verdict_hash": replayed.verdict_hash.hex() if replayed.verdict_hash is not None else None,
        "attested_by": list(replayed.attested_by),
        "timings_ms": dict(note.timings_ms),
        "messages": replayed.messages,
        "bytes": size,
        "why": _why(replayed, result, selves),
    }


def _member(row: MemberRow, replayed: Replayed, self_preferred: SelfPreference | None) -> dict[str, Any]:
    candidate = next(one for one in replayed.header.candidates if one.peer_id == row.peer_id)
    return {
        "peer_id": row.peer_id,
        "model": row.model,
        "seat": row.seat,
        "sealed": row.sealed,
        "revealed": row.revealed,
        "judged": row.judged,
        "dropped": row.dropped,
        "class": row.class_index,
        "draw_weight_milli": candidate.weight_milli,
        "vote_weight_milli": candidate.answer_weight_milli,
        "judge_weight_milli": candidate.judge_weight_milli,
        "favourite_weight_milli": candidate.favourite_weight_milli,
        "strength_milli": candidate.strength_milli,
        "block": candidate.block,
        "self_preference": None if self_preferred is None else asdict(self_preferred),
    }


def _self_preferences(replayed: Replayed) -> dict[int, SelfPreference | None]:
    class_of = {each.seat: each.class_index for each in replayed.members if each.class_index is not None}
    return {row.seat: self_preference(row.seat, replayed.ballots, class_of) for row in replayed.members}


def ballot_rows(replayed: Replayed) -> list[dict[str, Any]]:
    """Every judgement that counted: who said how surely that which class beats which, and how it was shown."""
    return [
        {
            "peer_id": replayed.members[seat].peer_id,
            "first": judgement.first,
            "second": judgement.second,
            "log_odds_milli": judgement.log_odds_milli,
        }
        for seat, judgements in sorted(replayed.ballots.items())
        for judgement in judgements
    ]


def _rationales(replayed: Replayed) -> list[dict[str, Any]]:
    """What judges said in words, and of which judgement: text of strangers, which counted for nothing."""
    surest = {seat: decisive(replayed.ballots[seat]) for seat in sorted(replayed.rationales)}
    return [
        {
            "peer_id": replayed.members[seat].peer_id,
            "preferred": said.first if said.log_odds_milli > 0 else said.second,
            "over": said.second if said.log_odds_milli > 0 else said.first,
            "text": replayed.rationales[seat],
        }
        for seat, said in surest.items()
        if said is not None
    ]


def _pairs(result: Result) -> list[dict[str, Any]]:
    return [
        {"first": row.first, "second": row.second, "judges": row.judges, "wins_milli": row.wins_milli} for row in result.pairs
    ]


def _classes(result: Result, answers: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = [
        {
            "class": index,
            "answer": answers[index],
            "votes": len(row.seats),
            "vote_weight": row.vote_micro / 1_000_000,
            "pair_wins_milli": row.wins_milli,
            "score": row.score_micro / 1_000_000,
            "rank": row.rank,
        }
        for index, row in enumerate(result.classes)
    ]
    return sorted(rows, key=lambda row: row["rank"])


def _why(replayed: Replayed, result: Result | None, selves: Mapping[int, SelfPreference | None]) -> list[str]:
    header = replayed.header
    seats = len(replayed.members)
    drawn = f"{seats} of {len(header.candidates)} candidates were drawn, seeded by the header and the members' nonces"
    if result is None:
        return [drawn, f"no result: {replayed.reason}"]
    sentences = [drawn]
    revealed = sum(1 for row in replayed.members if row.revealed)
    sentences.append(f"{revealed} of {seats} members revealed an answer, in {len(result.classes)} classes of equal answers")
    winner = result.classes[result.winner]
    if result.basis == "unanimous":
        sentences.append("all answers are equal, so there was nothing to judge")
    elif result.basis == "best":
        sentences.append("by gold one member is far ahead of all others, so its answer was taken without judging")
    elif result.basis == "ranked":
        sentences.append(
            f"no two answers are equal, so {len(result.judges)} judges alone ranked them, "
            f"by Bradley-Terry over {len(result.pairs)} pairs"
        )
    elif result.basis == "judged":
        judges = len(result.judges)
        sentences.append(
            f"{judges} judges compared {len(result.pairs)} pairs; the winner has {len(winner.seats)} votes "
            f"and was preferred with {winner.wins_milli / 10:.1f}% over the classes it met"
        )
    else:
        ahead = winner.vote_micro - max(row.vote_micro for index, row in enumerate(result.classes) if index != result.winner)
        exited = header.strategy == "rank" and 0 < header.fold.early_exit_margin * 1_000_000 <= ahead
        why = ", by more than all judges together could change, so none was asked" if exited else ""
        sentences.append(f"votes alone decided{why}: the winner has {len(winner.seats)}")
    others = sorted((row for index, row in enumerate(result.classes) if index != result.winner), key=lambda row: row.rank)
    if others:
        lead = (winner.score_micro - others[0].score_micro) / 1_000_000
        level = "it is level with the next class: a hash of the round and the answers orders them"
        sentences.append(f"it leads the next class by {lead:.2f} nats" if lead else level)
    gain = header.fold.confidence_gain_milli
    learned = f"at a gain of {gain / 1000:g}" + ("" if gain == prior_of(header.fold.arm)[0] else ", which was right on gold")
    over = "every other answer given" if result.basis == "ranked" else "every other answer, also those that nobody gave"
    sentences.append(f"confidence {result.confidence_milli / 10:.1f}%: its leads over {over}, {learned}")
    names = [short(row.peer_id) for row in replayed.members]
    if header.rationale and result.judges and not replayed.rationales:
        sentences.append("no judge gave its reasons in words: those of tiny models have letters alone, and others have 1.5 s")
    sentences += _conduct(replayed, names, selves)
    sentences += [f"{names[seat]} sealed an answer and did not reveal it: last place" for seat in result.aborted]
    sentences += [f"{names[seat]} signed two different statements and was dropped" for seat in result.dropped]
    return sentences


def _conduct(replayed: Replayed, names: list[str], selves: Mapping[int, SelfPreference | None]) -> list[str]:
    """Who counts as one voice, and which judges prefer their own answers beyond what others see in them."""
    blocks: dict[int, list[str]] = {}
    numbers = {candidate.peer_id: candidate.block for candidate in replayed.header.candidates}
    sentences = []
    for row in replayed.members:
        if numbers[row.peer_id]:
            blocks.setdefault(numbers[row.peer_id], []).append(names[row.seat])
        found = selves[row.seat]
        if found is not None and found.own_milli > found.others_milli:
            own, others = found.own_milli / 10, found.others_milli / 10
            sentences.append(
                f"{names[row.seat]} prefers its own answer with {own:.1f}%, where other judges do with {others:.1f}%"
            )
    together = [f"{', '.join(found)} err together on gold far beyond chance: one voice" for found in blocks.values() if found[1:]]
    return together + sentences
