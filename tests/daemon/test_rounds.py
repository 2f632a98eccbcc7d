"""Rounds over whole peers: one verdict everywhere, whoever dies when; flaps and cut links; users who leave; garbage; bounds."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import trio
import trio.testing

from daemon import round_role, round_table
from daemon.config import LimitsConfig
from daemon.engine.interface import EngineState
from daemon.round_invitations import MAX_OPEN_OF_PEER
from daemon.round_links import GONE_SECONDS, METHOD, PULL_METHOD
from daemon.round_role import Finished
from protocol.job import Job
from protocol.round import events as ev
from protocol.round.judging import CHOICES
from protocol.round.messages import Acceptance, Candidate, Durations, Header, Leave, sign
from protocol.round.pulling import PullRequest, read_reply
from protocol.round.transcript import replay
from protocol.wire.codec import encode
from protocol.wire.errors import Code
from protocol.wire.ids import Hash
from tests.daemon.conftest import FakeEngine, Peer, Swarm, failure, full, job, model, unix_ms, until

pytestmark = pytest.mark.usefixtures("one_verification_per_signature")

Clock = trio.testing.MockClock

ANSWERS = ("42", "41", "41", "40", "42", "41", "42")
DURATIONS = Durations(join_ms=3000, answer_ms=8000, reveal_ms=5000, judge_ms=8000, attest_ms=5000)


def header(asker: Peer, members: list[Peer], **changes: object) -> Header:
    candidates = tuple(
        Candidate(peer.id, peer.engine.model.name, bytes.fromhex(peer.engine.model.config_digest))
        for peer in members
        if peer.engine is not None and peer.engine.model is not None
    )
    fields: dict[str, object] = {"job": job(), "committee": len(members), "durations": DURATIONS, "nonce": bytes(32)}
    return Header(candidates=candidates, created_ms=unix_ms(), **(fields | changes))  # type: ignore[arg-type]


@dataclass
class Shown:
    """What a requester was told; `on_phase` is called once as each phase begins."""

    on_phase: dict[str, Callable[[], None]] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    last: ev.Progress | None = None

    def report(self, effect: ev.Progress | ev.Folded | Finished) -> None:
        if isinstance(effect, ev.Progress):
            self.last = effect
            if effect.phase not in self.phases:
                self.phases[effect.phase] = trio.current_time()
                self.on_phase.get(effect.phase, lambda: None)()


async def committee(swarm: Swarm, count: int, **engine: float) -> tuple[list[Peer], list[Finished]]:
    """Peers that answer differently and judge for 42, and what each role that closed anywhere came to."""
    transports = swarm.mesh(count, connected=True)
    closed: list[Finished] = []
    peers = []
    for transport, answer in zip(transports, ANSWERS, strict=False):
        fake = FakeEngine(says=lambda job, answer=answer: answer, **engine)  # type: ignore[arg-type, misc]
        peers.append(await swarm.start(transport, fake))
        peers[-1].rounds.on_finished(closed.append)
    return peers, closed


def verdicts(closed: list[Finished]) -> set[bytes]:
    return {bytes(each.outcome.verdict_hash) for each in closed if isinstance(each.outcome, ev.Decided)}


@pytest.mark.slow
async def test_everybody_comes_to_the_same_verdict(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, closed = await committee(swarm, 7)
    shown = Shown()
    finished = await peers[0].rounds.ask(header(peers[0], peers), shown.report)
    assert isinstance(finished.outcome, ev.Decided)
    assert finished.outcome.answer == "42"
    await until(lambda: len(closed) == 8)
    assert verdicts(closed) == {finished.outcome.verdict_hash}
    assert {replay(each.transcript).verdict_hash for each in closed} == {finished.outcome.verdict_hash}
    assert len(replay(finished.transcript).attested_by) == 7
    assert list(shown.phases) == ["join", "answer", "reveal", "judge", "ballot", "attest", "closed"]
    assert trio.current_time() < 5
    assert sum(peer.rounds.open_rounds for peer in peers) == 0
    await until(lambda: not any(list(peer.rounds._table) for peer in peers), 120)  # closed ones are forgotten in time


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["join", "answer", "reveal", "judge", "ballot", "attest"])
async def test_a_member_killed_in_any_phase_is_noticed_in_about_a_second(swarm: Swarm, autojump_clock: Clock, phase: str) -> None:
    peers, closed = await committee(swarm, 7, pause=0.2)
    shown = Shown({phase: peers[6].kill})
    # Joining must not lose the quorum: 5 of 7 is more than enough.
    finished = await peers[0].rounds.ask(header(peers[0], peers), shown.report)
    assert isinstance(finished.outcome, ev.Decided), finished.outcome
    assert finished.outcome.answer == "42"
    await until(lambda: len(closed) >= 7)
    assert verdicts(closed) == {finished.outcome.verdict_hash}
    ends = [*shown.phases.values()]
    assert max(b - a for a, b in pairwise(ends)) < GONE_SECONDS + 0.8, "nobody waited for a deadline"


async def test_more_killed_than_the_quorum_bears_is_no_result(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 5, pause=0.2)

    def kill_two() -> None:
        peers[3].kill()
        peers[4].kill()

    finished = await peers[0].rounds.ask(header(peers[0], peers), Shown({"reveal": kill_two}).report)
    assert finished.outcome == ev.NoResult("3 of 5 members revealed their answers where 4 are needed")


async def test_a_connection_that_flaps_costs_nobody_a_seat(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    peers, closed = await committee(swarm, 5, pause=0.5)
    requester, flapping = peers[0], peers[3]

    async def flap() -> None:
        swarm.mesh.cut(requester.id, flapping.id)
        await trio.sleep(0.6)
        swarm.mesh.heal(requester.id, flapping.id)

    shown = Shown({phase: lambda: nursery.start_soon(flap) for phase in ("answer", "judge")})
    finished = await requester.rounds.ask(header(requester, peers), shown.report)
    rows = {row.peer_id: row for row in replay(finished.transcript).members}
    assert rows[flapping.id].revealed
    assert rows[flapping.id].judged
    await until(lambda: len(closed) == 6)
    assert verdicts(closed) == {finished.outcome.verdict_hash}  # type: ignore[union-attr]


async def test_members_without_a_link_to_each_other_pull_from_the_others(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, closed = await committee(swarm, 6)
    for one, other in ((1, 2), (1, 3), (2, 4)):
        swarm.mesh.cut(peers[one].id, peers[other].id)
    finished = await peers[0].rounds.ask(header(peers[0], peers), Shown().report)
    await until(lambda: len(closed) == 7)
    assert len(replay(finished.transcript).attested_by) == 6
    assert verdicts(closed) == {finished.outcome.verdict_hash}  # type: ignore[union-attr]
    assert sum(peer.calls.outcomes["out", PULL_METHOD, "ok"] for peer in peers) > 0


async def test_a_frozen_peer_holds_up_a_pull_for_half_a_second(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 3)
    alice, frozen, carol = peers
    finished = await carol.rounds.ask(header(carol, [alice, carol]), Shown().report)
    swarm.mesh.freeze(frozen.id)
    arrived: list[bytes] = []
    started = trio.current_time()
    await alice.rounds._links.pull(finished.round, [finished.round], [frozen.id, carol.id], lambda peer, raw: arrived.append(raw))
    assert len(arrived) == 1
    assert trio.current_time() - started < 0.7


async def test_a_user_who_leaves_ends_the_round_for_everybody(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, closed = await committee(swarm, 5, pause=2.0)
    shown = Shown()
    with trio.move_on_after(1.0):
        await peers[0].rounds.ask(header(peers[0], peers), shown.report)
    await until(lambda: len(closed) == 6, 3)
    assert all(isinstance(each.outcome, ev.NoResult) for each in closed)
    assert all(peer.engine.running == 0 for peer in peers if peer.engine)
    assert [peer.engine.stopped for peer in peers if peer.engine] == [1] * 5


async def test_a_killed_requester_frees_its_members(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, closed = await committee(swarm, 4, pause=0.2)
    asker = peers[0]
    shown = Shown({"judge": asker.kill})
    await failure(asker.rounds.ask(header(asker, peers[1:]), shown.report))  # its process is no more
    await until(lambda: sum(not each.requested for each in closed) == 3, 15)
    outcomes = {each.outcome for each in closed if not each.requested}
    assert outcomes == {ev.NoResult("the requester is gone")}


async def test_stopping_says_goodbye_and_joins_nothing_new(swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    peers, closed = await committee(swarm, 5, pause=0.5)
    leaving = peers[4]
    nursery.start_soon(peers[0].rounds.ask, header(peers[0], peers), Shown().report)
    await until(lambda: leaving.engine is not None and leaving.engine.running == 1)
    await leaving.rounds.stop("the peer is stopping")
    assert leaving.rounds.open_rounds == 0
    await until(lambda: any(each.requested for each in closed), 10)
    (requested,) = [each for each in closed if each.requested]
    assert isinstance(requested.outcome, ev.Decided)
    assert (await failure(leaving.rounds.ask(header(leaving, peers), Shown().report))).code is Code.OVERLOADED
    again = await peers[0].rounds.ask(header(peers[0], peers, nonce=b"1" * 32), Shown().report)
    assert leaving.id not in {row.peer_id for row in replay(again.transcript).members}


async def test_garbage_is_counted_and_harmless(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 3)
    asker, member, stranger = peers
    finished = await asker.rounds.ask(header(asker, [asker, member]), Shown().report)
    junk = [b"", b"\xc1\x00", b"\x93" * 4000, encode([member.id, b"x", bytes(64)]), bytes(700_000)]
    for method in (METHOD, PULL_METHOD):
        for body in junk:
            error = await failure(stranger.calls.unary(member.id, method, body, timeout=5))
            assert error.code in (Code.MALFORMED, Code.BAD_SIGNATURE, Code.OVERSIZED)
    assert sum(member.rounds.faults.values()) == 2 * len(junk)
    well_formed = sign(Acceptance(finished.round, bytes(32)), stranger.transport.key)
    assert (await failure(stranger.calls.unary(member.id, METHOD, well_formed, timeout=5))).code is Code.REFUSED
    unknown = sign(Acceptance(Hash(b"9" * 32), bytes(32)), stranger.transport.key)
    assert (await failure(stranger.calls.unary(member.id, METHOD, unknown, timeout=5))).code is Code.NOT_FOUND
    pull = encode(PullRequest(finished.round, (finished.round,)))
    assert (await failure(stranger.calls.unary(member.id, PULL_METHOD, pull, timeout=5))).code is Code.NOT_FOUND
    assert len(read_reply(await asker.calls.unary(member.id, PULL_METHOD, pull, timeout=5))) == 1
    assert member.transport.faults == 0
    again = await asker.rounds.ask(header(asker, [asker, member], nonce=b"2" * 32), Shown().report)
    assert isinstance(again.outcome, ev.Decided)


async def test_a_pull_that_brings_garbage_takes_what_was_asked_for(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 2)
    alice, bob = peers
    finished = await alice.rounds.ask(header(alice, [alice, bob]), Shown().report)
    good = sign(Acceptance(finished.round, bytes(32)), bob.transport.key)
    wanted = {Hash(bytes(32))}
    arrived: list[bytes] = []
    for raw in (b"junk", good):
        alice.rounds._links._accept(bob.id, raw, wanted, lambda peer, raw: arrived.append(raw))
    assert (arrived, alice.rounds.faults["malformed"]) == ([], 1)


async def test_an_invitation_comes_from_the_requester_itself(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 3)
    invitation = sign(header(peers[0], peers), peers[0].transport.key)
    error = await failure(peers[2].calls.unary(peers[1].id, METHOD, invitation, timeout=5))
    assert (error.code, peers[1].rounds.open_rounds) == (Code.REFUSED, 0)


async def test_one_peer_has_us_in_a_bounded_number_of_its_rounds(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 3, pause=3.0)
    greedy, member, modest = peers
    for number in range(round_table.MAX_HELD_OF_PEER + 9):
        one = header(greedy, [greedy, member], nonce=bytes([number]) * 32)
        await greedy.calls.unary(member.id, METHOD, sign(one, greedy.transport.key), timeout=5)
        await trio.lowlevel.checkpoint()
    assert member.rounds.open_rounds == MAX_OPEN_OF_PEER
    assert len(list(member.rounds._table)) <= round_table.MAX_HELD_OF_PEER
    other = header(modest, [modest, member])
    await modest.calls.unary(member.id, METHOD, sign(other, modest.transport.key), timeout=5)
    assert member.rounds.open_rounds == MAX_OPEN_OF_PEER + 1


@pytest.mark.parametrize("why", ["limits", "restarting", "another model", "no engine", "a long queue"])
async def test_a_member_that_cannot_take_part_declines_at_once(swarm: Swarm, autojump_clock: Clock, why: str) -> None:
    codes = {"limits": "oversized", "restarting": "overloaded", "a long queue": "deadline"}
    codes |= dict.fromkeys(("another model", "no engine"), "not_found")
    peers, _ = await committee(swarm, 3)
    asked = header(peers[0], peers)
    declining = peers[2]
    assert declining.engine is not None
    if why == "limits":
        declining.serving._limits = LimitsConfig(prompt_bytes=1024)
        asked = header(peers[0], peers, job=job("x" * 2000))
    elif why == "restarting":
        declining.engine.state = EngineState.RESTARTING
    elif why == "a long queue":
        slots = declining.serving._slots
        slots.leave(slots.enter("before", trio.current_time() - 6.0), trio.current_time())
        running = [slots.enter(number, trio.current_time()) for number in range(slots.free)]
        assert running
        assert declining.serving.queued_seconds > DURATIONS.answer_ms / 1000
    elif why == "no engine":
        declining.serving._engine = None
    else:
        declining.engine.model = peers[1].engine.model if peers[1].engine else None
    started = trio.current_time()
    finished = await peers[0].rounds.ask(asked, Shown().report)
    assert trio.current_time() - started < 2.0
    assert len(replay(finished.transcript).members) == 2
    assert declining.engine.jobs == []
    (role,) = list(declining.rounds._table)
    leave = role.machine._record.find(declining.id, "leave")
    assert leave is not None
    assert leave.message == Leave(finished.round, leave.message.reason, codes[why])  # type: ignore[union-attr]


async def test_the_tokens_of_a_strangers_round_are_held_to_our_limits(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 2)
    peers[1].serving._limits = LimitsConfig(max_tokens=7)
    await peers[0].rounds.ask(header(peers[0], peers), Shown().report)
    jobs: list[Job] = [peer.engine.jobs[0] for peer in peers if peer.engine]
    assert [one.sampling.max_tokens for one in jobs] == [256, 7]


async def test_a_full_inbox_refuses_peers_and_still_takes_our_own_answer(swarm: Swarm, autojump_clock: Clock) -> None:
    peers, _ = await committee(swarm, 2)
    asker, member = peers
    await asker.rounds.ask(header(asker, peers), Shown().report)
    (role,) = [role for role in member.rounds._table if not role.requested]
    before = role._waiting_of.total()
    for _ in range(round_role.MAX_WAITING_OF_PEER):
        role.receive(asker.id, b"junk")
    error = await failure(_receive(role, asker))
    assert (error.code, error.retry_after) == (Code.OVERLOADED, 1.0)
    assert role.tell(ev.Answered("42", 1))
    await until(lambda: role._waiting_of.total() == before, 5)
    assert member.rounds.faults["malformed"] == round_role.MAX_WAITING_OF_PEER


async def _receive(role: round_role.Role, sender: Peer) -> None:
    role.receive(sender.id, b"junk")


async def test_a_bug_in_one_round_ends_that_round_alone(
    swarm: Swarm, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, _ = await committee(swarm, 2)
    with monkeypatch.context() as patched:
        patched.setattr("protocol.round.requester.RequesterMachine._draw", lambda self, now: 1 // 0)
        error = await failure(peers[0].rounds.ask(header(peers[0], peers), Shown().report))
    assert error.code is Code.INTERNAL
    assert peers[0].rounds.faults["internal"] == 1
    again = await peers[0].rounds.ask(header(peers[0], peers, nonce=b"3" * 32), Shown().report)
    assert isinstance(again.outcome, ev.Decided)


async def test_a_member_with_a_full_engine_waits_for_a_slot_instead_of_leaving(
    swarm: Swarm, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    peers, _ = await committee(swarm, 2)
    member = peers[1]

    async def take() -> None:
        with full(member):
            await trio.sleep(1.2)

    nursery.start_soon(take)
    finished = await peers[0].rounds.ask(header(peers[0], peers), Shown().report)
    assert all(row.revealed for row in replay(finished.transcript).members)


@pytest.mark.parametrize(("seconds", "words"), [(0.0, "41 is odd and six sevens are even"), (60.0, "")])
async def test_judges_words_are_in_the_transcript_and_a_slow_engine_is_not_waited_for(
    swarm: Swarm, autojump_clock: Clock, seconds: float, words: str
) -> None:
    peers = []
    for transport, answer in zip(swarm.mesh(3, connected=True), ANSWERS, strict=False):
        fake = FakeEngine(model=replace(model(), judge_prompt="instructed"))

        def say(job: Job, fake: FakeEngine = fake, answer: str = answer) -> str:
            if job.turns[-2:-1] and job.turns[-2].content in CHOICES:
                fake.pause = seconds
                return "41 is odd and six sevens are even"
            return answer

        fake.says = say
        peers.append(await swarm.start(transport, fake))
    finished = await peers[0].rounds.ask(header(peers[0], peers, rationale=True), Shown().report)
    replayed = replay(finished.transcript)
    assert all(row.judged for row in replayed.members)
    assert set(replayed.rationales.values()) == ({words} if words else set())
    assert trio.current_time() < 5
