"""The JSON of what peers say of each other: scores by peer and skill, and one peer's with its evidence. Decides nothing."""

from collections.abc import Iterator
from typing import Any

from crdt_store.claims import Kind, SignedClaim
from crdt_store.explain import MAX_READ, Line, explain
from crdt_store.replica import Replica
from crdt_store.scores import Scores
from protocol.wire.ids import PeerId

MAX_LISTED = 1000
"""Claims, or rows of scores, in one listing for people; of claims the newest ones."""


def everybody(replica: Replica, scores: Scores, now_ms: int) -> dict[str, Any]:
    """Every peer's scores, the surest first, and the newest claims of all."""
    rows = [row for peer in scores.ledger.subjects() for row in _scores(scores, peer, now_ms)]
    rows.sort(key=lambda row: (-row["trials_milli"], row["peer"], row["skill"]))
    claims = sorted(_newest(replica), key=_order)
    return {"scores": rows[:MAX_LISTED], "claims_list": [_claim_view(entry) for entry in claims[-MAX_LISTED:]]}


def one_peer(replica: Replica, scores: Scores, peer: PeerId, now_ms: int) -> dict[str, Any]:
    """One peer's scores, its standing as a witness, and every claim about it with what it adds."""
    lines = explain(replica, scores, peer, None, now_ms)
    fork = replica.fork_of(peer)
    shared, error = scores.witnesses.shared(peer)
    return {
        "peer": peer,
        "frozen_from": None if fork is None else fork.epoch,
        "witness": {"weight_milli": scores.witnesses.weight(peer), "shared_trials": shared, "error_milli": error},
        "scores": _scores(scores, peer, now_ms),
        "evidence": [_line_view(line) for line in lines],
        "claims_list": [_claim_view(line.entry) for line in reversed(lines)],
    }


def _newest(replica: Replica) -> Iterator[SignedClaim]:
    """The last claims of every issuer: reading all of a large replica would hold up the daemon for seconds."""
    issuers = replica.issuers()
    each = max(1, MAX_READ // max(1, len(issuers)))
    for issuer in issuers:
        wanted = each
        for head in reversed(replica.heads(issuer).logs):
            if wanted <= 0:
                break
            for seq in range(max(0, head.length - wanted), head.length):
                entry = replica.entry(issuer, head.epoch, seq)
                if entry is not None:
                    yield entry
            wanted -= head.length


def _scores(scores: Scores, peer: PeerId, now_ms: int) -> list[dict[str, Any]]:
    return [_score_view(scores, peer, skill, now_ms) for skill in scores.ledger.skills(peer)]


def _score_view(scores: Scores, peer: PeerId, skill: str, now_ms: int) -> dict[str, Any]:
    score, tally = scores.score(peer, skill, now_ms), scores.tally(peer, skill, now_ms)
    weighed = scores.weighed(peer, skill, now_ms)
    said = () if weighed is None else weighed.said
    own = next((one for one in said if one.issuer == scores.me), None)
    return {
        "peer": peer,
        "skill": skill,
        "mean_milli": score.mean_milli,
        "low_milli": score.low_milli,
        "high_milli": score.high_milli,
        "weight_milli": score.weight_milli,
        "right_milli": tally.right_milli,
        "wrong_milli": tally.wrong_milli,
        "trials_milli": tally.right_milli + tally.wrong_milli,
        "own_milli": 0 if own is None else own.counts_right + own.counts_wrong,
        "witnesses": len(said) - (own is not None),
        "left_out": sum(one.verdict == "contradicted" for one in said),
    }


def _line_view(line: Line) -> dict[str, Any]:
    return {
        **_claim_view(line.entry),
        "own": line.own,
        "counts_for": line.skill,
        "right": line.right,
        "wrong": line.wrong,
        "weight_milli": line.weight_milli,
        "adds_right_milli": line.adds_right_milli,
        "adds_wrong_milli": line.adds_wrong_milli,
        "note": line.note,
    }


def _order(entry: SignedClaim) -> tuple[int, str, int, int]:
    return entry.claim.time, entry.claim.issuer, entry.claim.epoch, entry.claim.seq


def _claim_view(entry: SignedClaim) -> dict[str, Any]:
    claim = entry.claim
    kind = Kind(claim.kind).name.lower() if claim.kind in Kind.__members__.values() else str(claim.kind)
    return {
        "issuer": claim.issuer,
        "epoch": claim.epoch,
        "seq": claim.seq,
        "kind": kind,
        "subject": claim.subject,
        "skill": claim.skill,
        "value": claim.value,
        "evidence": claim.evidence.hex(),
        "time": claim.time / 1000,
        "hash": entry.hash.hex(),
        "compacted": not entry.raw,
    }
