"""Covert gold between whole peers: what earns a probe, that its path is the user's, what claims it leaves. Engines are fakes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
import trio.testing

from crdt_store.claims import Kind
from daemon.api.backend import ProbeRequest
from daemon.config import ProbeConfig
from daemon.gold_book import GoldBook, GoldRound
from daemon.probing import FLUSH_SECONDS, Probing
from protocol.job import Job, Turn
from protocol.probes.answers import near_miss
from protocol.probes.task import known_answer
from protocol.wire.errors import Code, RemoteError
from tests.daemon.conftest import FakeEngine, Heard, Peer, Swarm, ask, until

Clock = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("inline_threads", "one_verification_per_signature")


def able(job: Job) -> str:
    """Answers all that can be worked out."""
    known = known_answer(job.turns[:1])
    return known.truth if known is not None else "hm"


def unable(job: Job) -> str:
    known = known_answer(job.turns[:1])
    return near_miss(known, Random(1)) if known is not None else "hm"


@dataclass
class Judging(FakeEngine):
    """Prefers the right answer, or the other one where it is `perverse`."""

    perverse: bool = False

    async def choose(self, turns: Sequence[Turn], choices: Sequence[str]) -> tuple[float, ...]:
        await trio.sleep(self.pause)
        known = known_answer(turns[:1])
        assert known is not None
        first = turns[-1].content.startswith(f"A:{known.truth}\n") is not self.perverse
        return (math.log(0.9), math.log(0.1)) if first else (math.log(0.1), math.log(0.9))


async def meshed(
    swarm: Swarm, *others: FakeEngine, own: FakeEngine | None = None, **config: float
) -> tuple[Peer, Probing, list[Peer]]:
    """The asker with its probing, and the peers that it may ask."""
    transports = swarm.mesh(1 + len(others), connected=True)
    asker = await swarm.start(transports[0], own, no_engine=own is None)
    served = [await swarm.start(transport, engine) for transport, engine in zip(transports[1:], others, strict=True)]
    asking, committee, members = asker.asking, asker.committee, asker.membership
    book = GoldBook(swarm._folder / "gold.json")
    probing = Probing(asking, committee, asker.reputation.record, ProbeConfig(**config), Random(4), book)
    await swarm._nursery.start(probing.run)
    await until(lambda: len(members.candidates("")) == len(others) + (own is not None))
    return asker, probing, served


async def written(asker: Peer) -> None:
    """Claims are written aside: wait until none is on its way."""
    await until(lambda: not asker.reputation._waiting and not asker.reputation.sync.storing.locked())


def claims(asker: Peer) -> dict[tuple[str, str, Kind], int]:
    """What probes counted, by subject, skill and kind."""
    found: dict[tuple[str, str, Kind], int] = {}
    for entry in asker.store.replica.claims():
        claim = entry.claim
        if claim.kind in (Kind.PROBE_PASSED, Kind.PROBE_FAILED):
            key = (claim.subject, claim.skill, Kind(claim.kind))
            found[key] = found.get(key, 0) + claim.value
    return found


async def ask_often(asker: Peer, probing: Probing, times: int, question: Callable[[int], str]) -> None:
    work = probing.beside(asker.asking.route)
    for place in range(times):
        await work(ask(question(place)), Heard().emit)
        await trio.sleep(2)


async def test_a_twentieth_of_what_a_peer_is_asked_is_gold_that_looks_like_the_rest(swarm: Swarm, autojump_clock: Clock) -> None:
    engine = FakeEngine(says=able)
    asker, probing, (peer,) = await meshed(swarm, engine, per_hour=10_000)
    asked = [f"add {11 + n % 80} {10 + n % 70}" for n in range(400)]
    await ask_often(asker, probing, 400, lambda place: asked[place])
    await trio.sleep(130)
    await written(asker)
    probes = len(engine.jobs) - 400
    assert 10 <= probes <= 32  # 21 of 421 are expected
    assert probes == probing.outcomes["passed"]
    assert {job.turns[-1].content.partition(" ")[0] for job in engine.jobs} == {"add"}
    assert len({(job.sampling, job.model, job.extras, len(job.turns)) for job in engine.jobs}) == 1
    calls = {method for side, method, _ in asker.calls.outcomes if side == "out"}
    assert "infer" in calls
    assert not any("probe" in method for method in calls)
    # The user's own questions could be worked out too, so they count as well.
    assert claims(asker) == {(peer.id, "add", Kind.PROBE_PASSED): 400 + probes}
    assert sum(note.kind == "probe" for note in asker.asking.notes.newest_first()) > 0
    assert asker.asking.notes.find("last").kind == "text"


async def test_wrong_answers_become_failures_and_unanswered_ones_nothing(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, probing, (peer,) = await meshed(swarm, FakeEngine(says=unable))
    shown = await probing.now(ProbeRequest(skill="mod", count=7))
    await written(asker)
    assert claims(asker) == {(peer.id, "mod", Kind.PROBE_FAILED): 7}
    (row,) = shown["peers"]
    assert (row["peer_id"], row["skills"][0]["right"], row["skills"][0]["wrong"]) == (peer.id, 0, 7)
    peer.kill()
    shown = await probing.now(ProbeRequest(peer=peer.id, skill="mod", count=2))
    await written(asker)
    assert shown["peers"][0]["unanswered"] == 2
    assert claims(asker) == {(peer.id, "mod", Kind.PROBE_FAILED): 7}


async def test_nothing_is_probed_where_that_is_turned_off(swarm: Swarm, autojump_clock: Clock) -> None:
    engine = FakeEngine(says=able)
    asker, probing, _ = await meshed(swarm, engine, share=0.0)
    await ask_often(asker, probing, 50, lambda place: "who are you")
    assert len(engine.jobs) == 50


async def test_probes_end_where_the_budget_is_spent(swarm: Swarm, autojump_clock: Clock) -> None:
    engine = FakeEngine(says=able)
    asker, probing, _ = await meshed(swarm, engine, share=0.5, per_hour=3)
    await ask_often(asker, probing, 60, lambda place: "who are you")
    await trio.sleep(130)
    assert len(engine.jobs) == 63
    assert probing.outcomes["over budget"] > 30


async def test_a_gold_round_marks_answers_and_ballots_of_all_members(swarm: Swarm, autojump_clock: Clock) -> None:
    own = Judging(says=able)
    good, bad, perverse = Judging(says=able), Judging(says=unable), Judging(says=able, perverse=True)
    asker, probing, peers = await meshed(swarm, good, bad, perverse, own=own)
    shown = await probing.now(ProbeRequest(skill="add", count=0, rounds=4))
    await written(asker)
    found = claims(asker)
    by = dict(zip(("good", "bad", "perverse"), (peer.id for peer in peers), strict=True))
    assert found[by["good"], "add", Kind.PROBE_PASSED] == 4
    assert found[by["bad"], "add", Kind.PROBE_FAILED] == 4

    def judged(name: str, kind: Kind) -> int:
        return sum(found.get((by[name], skill, kind), 0) for skill in ("judge.add", "judge.first.add"))

    # Of three answers, two of them wrong, a judge may be given the two wrong ones: such a pair tells nothing of it.
    assert judged("good", Kind.PROBE_PASSED) >= 3
    assert judged("bad", Kind.PROBE_PASSED) >= 3  # it cannot answer, and can judge
    assert judged("perverse", Kind.PROBE_FAILED) >= 3
    assert judged("good", Kind.PROBE_FAILED) == judged("bad", Kind.PROBE_FAILED) == judged("perverse", Kind.PROBE_PASSED) == 0
    assert asker.id not in {subject for subject, _, _ in found}
    assert {row["peer_id"] for row in shown["peers"]} == set(by.values())
    assert probing.outcomes["gold round"] == 4
    await asker.committee.settle()
    assert [note.is_probe for note in asker.archive.notes()] == [True] * 4
    await asker.committee.ask(ask("add 1 2", strategy="rank"), Heard().emit)
    await asker.committee.settle()
    await probing.now(ProbeRequest(skill="add", count=0, rounds=1))
    assert not asker.archive.find("last").is_probe


LIKE = [{"rationale": True}, {}, {"strategy": "majority"}, {"committee": 2}, {"strategy": "auto"}]


@pytest.mark.parametrize("like", LIKE)
async def test_a_gold_round_is_asked_for_as_the_users_round_was_that_earned_it(
    swarm: Swarm, autojump_clock: Clock, like: dict[str, Any]
) -> None:
    """Or its header says which of them is a user's: words or none, judges or none, so many seats."""
    asker, probing, _ = await meshed(swarm, *(Judging(says=able) for _ in range(3)), share=0.5)
    work, headers = probing.beside(asker.committee.ask), []
    told, asker.committee.replayed = asker.committee.replayed, lambda replayed: (headers.append(replayed.header), told(replayed))
    await work(replace(ask("what is the best colour", strategy="rank"), **like), Heard().emit)
    await until(lambda: len(headers) == 2, 10_000)
    user, gold = headers
    assert user.rationale == like.get("rationale", False)
    for name in ("rationale", "strategy", "committee", "durations", "quorum_milli"):
        assert getattr(user, name) == getattr(gold, name), name
    assert user.job.sampling.seed == gold.job.sampling.seed == 0


async def test_our_own_member_is_wrong_by_a_coin_so_that_there_is_a_pair_to_judge(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, probing, peers = await meshed(swarm, Judging(says=able), Judging(says=able), own=Judging(says=able))
    await probing.now(ProbeRequest(skill="add", count=0, rounds=12))
    await written(asker)
    judged = claims(asker)[peers[0].id, "judge.add", Kind.PROBE_PASSED]
    assert 2 <= judged <= 10  # all others were right in all of 12 rounds


async def test_a_users_round_whose_question_can_be_worked_out_counts_too(
    swarm: Swarm, autojump_clock: Clock, tmp_path: Path
) -> None:
    asker, probing, peers = await meshed(swarm, Judging(says=able), Judging(says=unable), Judging(says=able), share=0.0)
    work = probing.beside(asker.committee.ask)
    await work(ask("mod 83 7", strategy="rank"), Heard().emit)
    await trio.sleep(2 * FLUSH_SECONDS)
    await written(asker)
    found = claims(asker)
    assert found[peers[0].id, "mod", Kind.PROBE_PASSED] == 1
    assert found[peers[1].id, "mod", Kind.PROBE_FAILED] == 1
    assert {key[2] for key in found if key[1] == "judge.mod"} == {Kind.PROBE_PASSED}
    (shown,) = msgspec.json.decode((tmp_path / "gold.json").read_bytes(), type=tuple[GoldRound, ...])
    assert {arm: right for arm, (_, right) in shown.trials.items()} == {"fuse": True, "majority": True}
    marks = dict(zip(shown.errors.members, shown.errors.answers, strict=True))
    assert [marks[peer.id] == "." for peer in peers] == [True, False, True]


async def test_a_unanimous_round_becomes_a_later_probe_of_somebody_else(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, probing, _ = await meshed(swarm, *(FakeEngine(says=lambda job: "Danube") for _ in range(4)))
    await asker.committee.ask(ask("Which river flows through Budapest?", strategy="rank"), Heard().emit)
    await until(lambda: probing._traffic.solved == 1)
    assert probing._traffic.task("somebody else", ("add",), Random(3)).known.truth in ("danube", *map(str, range(300)))


async def test_what_cannot_be_probed_is_refused_in_one_sentence(swarm: Swarm, autojump_clock: Clock) -> None:
    _, probing, _ = await meshed(swarm, FakeEngine(says=able))
    for request, code, said in (
        (ProbeRequest(skill="poetry"), Code.MALFORMED, "there are no tasks of skill 'poetry'"),
        (ProbeRequest(peer="12D3KooWNobody"), Code.NOT_FOUND, "12D3KooWNobody is no other peer with a model"),
        (ProbeRequest(count=0, rounds=1), Code.NOT_FOUND, "a round needs 2 peers"),
    ):
        with pytest.raises(RemoteError, match=said) as refused:
            await probing.now(request)
        assert refused.value.code is code


async def test_marks_are_counted_together_and_kept_at_the_end(swarm: Swarm, autojump_clock: Clock) -> None:
    asker, probing, _ = await meshed(swarm, FakeEngine(says=able), share=0.0)
    work = probing.beside(asker.asking.route)
    for _ in range(20):
        await work(ask("add 1 2"), Heard().emit)
    assert claims(asker) == {}
    await trio.sleep(2 * FLUSH_SECONDS)
    await written(asker)
    assert sum(one.claim.kind == Kind.PROBE_PASSED for one in asker.store.replica.claims()) == 1
    assert list(claims(asker).values()) == [20]
