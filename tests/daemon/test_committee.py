"""A question answered by a round, as the local user and the archive see it; and the backend's view of it, replayed from disk."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from crdt_store.claims import Kind
from daemon.api.backend import AskEvent
from daemon.backend import Life, NodeBackend, Parts
from daemon.config import RoundConfig
from daemon.embedding import Embedding
from daemon.round_archive import Note, RoundArchive
from daemon.weighing import Weighing
from protocol.round.messages import check_invitation, read_header, sign
from protocol.round.weights import Trials
from protocol.wire.errors import Code
from tests.daemon.conftest import FakeEngine, Heard, Peer, ShownGold, Swarm, ask, failure, unix_ms, until

pytestmark = pytest.mark.usefixtures("inline_threads", "one_verification_per_signature")

Clock = trio.testing.MockClock


async def committee(swarm: Swarm, *answers: str, **engine: float) -> list[Peer]:
    transports = swarm.mesh(len(answers), connected=True)
    peers = []
    for transport, answer in zip(transports, answers, strict=True):
        fake = FakeEngine(says=lambda job, answer=answer: answer, **engine)  # type: ignore[arg-type, misc]
        peers.append(await swarm.start(transport, fake))
    for peer in peers:
        await until(lambda p=peer: len(p.membership.committee()) == len(answers))  # type: ignore[misc]
    return peers


def backend_of(peer: Peer) -> NodeBackend:
    parts = Parts(
        peer.transport,
        peer.membership,
        peer.serving,
        peer.asking,
        peer.committee,
        peer.archive,
        peer.reputation,
        peer.metrics,
        Embedding(peer.asking),
    )
    return NodeBackend(Life(1, 0.0, "/run/api.sock"), parts)


async def test_a_round_yields_progress_a_result_and_claims(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "42")
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="rank"), heard.emit)
    result = heard.result
    assert (result.answer, result.strategy, result.path, result.usage.completion_tokens) == ("42", "rank", "round", 3)
    assert {attempt.outcome for attempt in result.attempts} == {"ok"}
    assert heard.phases[0].phase == "join"
    assert heard.phases[-1].of == 3
    shown = result.round
    assert shown is not None
    assert list(shown["timings_ms"]) == ["join", "answer", "reveal", "judge", "ballot", "attest"]
    assert (shown["state"], shown["winner"], len(shown["attested_by"]), shown["bytes"] > 1000) == ("verdict", "42", 3, True)
    assert [row["rank"] for row in shown["classes"]] == [1, 2]
    assert sum(row["votes"] for row in shown["classes"]) == 3
    assert any("votes" in sentence or "pairs" in sentence for sentence in shown["why"])
    await until(lambda: len(peers[0].store.replica) > 0)
    claims = [entry.claim for entry in peers[0].store.replica.claims()]
    me = peers[0].transport.peer_id
    others = sum(1 for member in shown["members"] if member["peer_id"] != me)
    assert [claim.kind for claim in claims].count(Kind.ROUND_TOOK_PART) == others == 2
    assert [claim.kind for claim in claims].count(Kind.ROUND_WON) == (shown["winner_peer"] != me)
    assert me not in {claim.subject for claim in claims}
    assert {claim.evidence.hex() for claim in claims} == {shown["verdict_hash"]}


async def test_every_member_archives_the_round_and_the_requester_marks_it_its_own(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "42")
    await peers[0].committee.ask(ask(strategy="rank"), Heard().emit)
    for peer in peers:
        await peer.committee.settle()
    notes = [peer.archive.find("last") for peer in peers]
    assert [note.requested for note in notes] == [True, False, False]
    assert len({note.verdict_hash for note in notes}) == len({note.round_id for note in notes}) == 1
    assert (notes[0].question, notes[0].winner, notes[0].members) == ("six times seven", "42", 3)
    assert notes[0].timings_ms


async def test_a_user_who_leaves_costs_nobody_anything(swarm: Swarm, autojump_clock: Clock) -> None:
    """The round closes after the reader of its progress is gone: that must not end the daemon."""
    peers = await committee(swarm, "42", "41", "42", pause=2.0)
    heard = Heard()
    with trio.move_on_after(1.0):
        await peers[0].committee.ask(ask(strategy="rank"), heard.emit)
    assert heard.phases
    await until(lambda: all(peer.rounds.open_rounds == 0 for peer in peers), 5)
    for peer in peers:
        await peer.committee.settle()
    assert peers[0].archive.find("last").reason == "the user left"
    assert peers[0].committee._awaited == {}
    for peer in peers:
        assert peer.engine is not None
        peer.engine.pause = 0.01
    again = Heard()
    await peers[0].committee.ask(ask(strategy="rank"), again.emit)
    assert again.result.answer == "42"


async def test_a_round_without_a_result_says_why_and_is_archived(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", " ", " ")
    error = await failure(peers[0].committee.ask(ask(strategy="rank"), Heard().emit))
    assert (error.code, "came to no result" in error.message) == (Code.REFUSED, True)
    note = peers[0].archive.find("last")
    assert (note.state, note.verdict_hash) == ("no_result", None)
    assert note.reason in error.message
    assert len(peers[0].store.replica) == 0
    shown = await backend_of(peers[0]).round(note.round_id)
    assert (shown["state"], shown["winner"], shown["classes"], shown["confidence_milli"]) == ("no_result", None, [], 0)


async def test_rounds_that_we_have_no_seat_in_are_not_archived(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "42", "42", "42")
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="majority", committee=2), heard.emit)
    seated = {row["peer_id"] for row in heard.result.round["members"]} if heard.result.round else set()
    await until(lambda: all(peer.rounds.open_rounds == 0 for peer in peers), 30)
    for peer in peers[1:]:
        await peer.committee.settle()
        assert bool(peer.archive.notes()) == (peer.id in seated)


async def test_what_cannot_be_a_round_is_refused(swarm: Swarm, autojump_clock: Clock) -> None:
    (alice,) = await committee(swarm, "42")
    assert (await failure(alice.committee.ask(ask(strategy="rank"), Heard().emit))).code is Code.NOT_FOUND
    assert (await failure(alice.committee.ask(ask(strategy="rank", peer=alice.id), Heard().emit))).code is Code.UNSUPPORTED
    named = ask(strategy="rank")
    named = replace(named, job=msgspec.structs.replace(named.job, model="tiny-0"))
    assert "leave the model out" in (await failure(alice.committee.ask(named, Heard().emit))).message


@pytest.mark.parametrize("edge", ["ge", "le"])
async def test_every_configurable_duration_is_one_that_peers_accept(swarm: Swarm, autojump_clock: Clock, edge: str) -> None:
    peers = await committee(swarm, "42", "42")
    names = ("draw_timeout_ms", "seal_timeout_ms", "reveal_timeout_ms", "judge_timeout_ms")
    bounds = {name: getattr(RoundConfig.__annotations__[name].__metadata__[0], edge) for name in names}
    peers[0].committee._config = RoundConfig(**bounds)
    planned = peers[0].committee.plan(ask(strategy="rank"))
    raw = sign(peers[0].committee._header(ask(strategy="rank"), planned), peers[0].transport.key)
    header = read_header(raw).message
    check_invitation(header, peers[1].id, unix_ms())  # type: ignore[arg-type]


# ---- the backend


async def test_verify_replays_what_is_on_disk(swarm: Swarm, autojump_clock: Clock, tmp_path: Path) -> None:
    peers = await committee(swarm, "42", "41", "42")
    await peers[0].committee.ask(ask(strategy="rank"), Heard().emit)
    await peers[1].committee.settle()
    backend = backend_of(peers[1])
    note = peers[1].archive.find("last")
    verified = await backend.verify(note.round_id)
    assert (verified["ok"], verified["reason"], verified["replayed_hash"]) == (True, "", note.verdict_hash)
    path = next(tmp_path.glob(f"*/rounds/{note.round_id}.round"))
    for found in tmp_path.glob(f"*/rounds/{note.round_id}.round"):
        path = found if b'"requested":false' in found.with_suffix(".json").read_bytes() else path
        raw = bytearray(found.read_bytes())
        raw[len(raw) // 2] ^= 1
        found.write_bytes(raw)
    tampered = await backend.verify(note.round_id)
    assert (tampered["ok"], tampered["replayed_hash"]) == (False, None)
    assert tampered["reason"].startswith("the transcript does not hold: ")
    assert (await failure(backend.round(note.round_id))).code in (Code.MALFORMED, Code.BAD_SIGNATURE)
    path.write_bytes(b"\x00" * (9 << 20))
    assert (await backend.verify(note.round_id))["ok"] is False
    path.unlink()
    assert (await failure(backend.verify(note.round_id))).code is Code.NOT_FOUND


async def test_a_transcript_of_another_round_does_not_verify(swarm: Swarm, autojump_clock: Clock, tmp_path: Path) -> None:
    peers = await committee(swarm, "42", "41", "42")
    for _ in range(2):
        await peers[0].committee.ask(ask(strategy="rank"), Heard().emit)
    one, other = peers[0].archive.notes()
    copies = tmp_path.glob(f"*/rounds/{one.round_id}.json")
    folder = next(path.parent for path in copies if b'requested":true' in path.read_bytes())
    (folder / f"{one.round_id}.round").write_bytes((folder / f"{other.round_id}.round").read_bytes())
    verified = await backend_of(peers[0]).verify(one.round_id)
    assert (verified["ok"], verified["reason"]) == (False, "the transcript is of another round")


async def test_the_backend_counts_asks_and_refuses_them_while_draining(swarm: Swarm, autojump_clock: Clock) -> None:
    (alice,) = await committee(swarm, "forty two")
    backend = backend_of(alice)
    heard: list[AskEvent] = []

    async def hear(event: AskEvent) -> None:
        heard.append(event)
        assert backend._life.running == 1

    await backend.ask(ask(), hear)
    assert (len(heard), backend._life.running) == (4, 0)
    await backend.ask(ask(), hear)
    assert alice.metrics.registry.get_sample_value("swarmd_asks_total", {"strategy": "route", "outcome": "ok"}) == 2
    assert backend.readiness() == (True, ())
    backend._life.draining = True
    refused = await failure(backend.ask(ask(), hear))
    assert (refused.code, refused.retry_after) == (Code.OVERLOADED, 5.0)
    assert (await backend.status())["state"] == "draining"
    assert (await failure(backend.reputation("12D3KooWnobody"))).code is Code.MALFORMED


async def test_an_ask_has_its_time_and_no_more(swarm: Swarm, autojump_clock: Clock) -> None:
    (alice,) = await committee(swarm, "so " * 100, pause=1.0)
    backend, started = backend_of(alice), trio.current_time()
    late = await failure(backend.ask(replace(ask(), timeout_s=10.0), Heard().emit))
    assert (late.code, late.message) == (Code.DEADLINE, "no answer within 10 s")
    assert trio.current_time() - started == pytest.approx(10.0)
    assert alice.serving.busy == 0


async def test_status_and_peers_show_who_is_there(swarm: Swarm, autojump_clock: Clock) -> None:
    alice, bob = await committee(swarm, "a", "b")
    status = await backend_of(alice).status()
    assert (status["state"], status["engine"]["model"], status["mesh"]["connected"]) == ("ready", "tiny-0", 1)
    (row,) = (await backend_of(alice).peers())["peers"]
    assert (row["peer_id"], row["model"], row["state"], row["path"]["kind"]) == (bob.id, "tiny-1", "alive", "direct")
    models = (await backend_of(alice).models())["models"]
    assert [(row["name"], row["local"], row["slots_free"]) for row in models] == [("tiny-0", True, 2), ("tiny-1", False, 2)]


# ---- the archive


def note(number: int, requested: bool = False) -> Note:
    return Note(f"{number:064x}", float(number), "rank", "verdict", "", "q", "42", 3, "ab", requested, {"join": 1})


async def test_the_archive_keeps_the_newest_within_its_bounds(tmp_path: Path, autojump_clock: Clock) -> None:
    archive = RoundArchive(tmp_path / "rounds", max_rounds=4)
    for number in range(10):
        await archive.keep(note(number), b"x")
    assert [int(each.round_id, 16) for each in archive.notes()] == [9, 8, 7, 6]
    assert len(list((tmp_path / "rounds").iterdir())) == 8


async def test_strangers_rounds_do_not_push_out_our_own(tmp_path: Path, autojump_clock: Clock) -> None:
    archive = RoundArchive(tmp_path / "rounds", max_rounds=6)
    for number in range(3):
        await archive.keep(note(number, requested=True), b"x")
    for number in range(10, 60):
        await archive.keep(note(number), b"x")
    assert [each.requested for each in archive.notes()] == [False, False, False, True, True, True]


async def test_large_transcripts_leave_room_for_fewer(tmp_path: Path, autojump_clock: Clock) -> None:
    archive = RoundArchive(tmp_path / "rounds", max_bytes=1000)
    for number in range(5):
        await archive.keep(note(number), b"x" * 300)
    assert len(archive.notes()) == 3
    await archive.keep(note(9), b"x" * 5000)
    assert [each.created for each in archive.notes()] == [9.0]


async def test_the_archive_survives_a_restart_and_clears_what_was_unfinished(tmp_path: Path, autojump_clock: Clock) -> None:
    folder = tmp_path / "rounds"
    archive = RoundArchive(folder)
    for number in (1, 2):
        await archive.keep(note(number, requested=True), b"transcript")
    (folder / f"{3:064x}.round").write_bytes(b"a crash before its note")
    (folder / f".{3:064x}.json.77.new").write_bytes(b"half")
    (folder / f"{4:064x}.json").write_bytes(b"{]")
    (folder / f"{5:064x}.json").write_bytes((folder / f"{1:064x}.json").read_bytes())
    again = RoundArchive(folder)
    assert again.notes() == archive.notes()
    assert await again.transcript(again.find(f"{2:064x}")) == b"transcript"
    assert not list(folder.glob(".*"))
    assert not (folder / f"{3:064x}.round").exists()
    await again.keep(note(1), b"a member's copy")
    assert await again.transcript(again.find(f"{1:064x}")) == b"transcript"


async def test_a_round_is_found_by_the_start_of_its_id(tmp_path: Path, autojump_clock: Clock) -> None:
    archive = RoundArchive(tmp_path / "rounds")
    for text in ("last", "abcdef"):
        with pytest.raises(Exception, match="no round has an id"):
            archive.find(text)
    await archive.keep(note(1), b"x")
    await archive.keep(note(0xABCDEF << 232), b"x")
    assert archive.find("ABCDEF").created == archive.find("last").created
    with pytest.raises(Exception, match="no round has an id"):
        archive.find("abc")


async def test_a_full_disk_costs_the_transcript_alone(
    tmp_path: Path, autojump_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = RoundArchive(tmp_path / "rounds")

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("daemon.round_archive.write_durably", full)
    await archive.keep(note(1), b"x")
    assert archive.notes() == []


async def test_gold_goes_into_the_header_and_auto_asks_the_one_that_is_far_ahead(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "40")
    best = peers[1].transport.peer_id

    def tally(peer: str, skill: str) -> Trials:
        right = 49_000 if peer == best else 5_000
        return Trials(right, 50_000 - right) if not skill.startswith("judge.") else Trials(25_000, 25_000)

    peers[0].committee.weighing = Weighing(tally, lambda peer, skill: 900)
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="rank", text="12 + 30"), heard.emit)
    shown = heard.result.round
    assert shown is not None
    weights = {row["peer_id"]: row["vote_weight_milli"] for row in shown["members"]}
    assert weights[best] > sum(weights.values()) - weights[best]
    assert (shown["arm"], shown["winner_peer"]) == ("best", best)
    assert (heard.estimates[0].arm, heard.estimates[0].known, heard.estimates[0].topic) == ("best", True, "arithmetic")
    backend, heard = backend_of(peers[0]), Heard()
    await backend.ask(ask(strategy="auto", text="12 + 30"), heard.emit)
    assert (heard.result.strategy, heard.result.peer_id, heard.estimates[0].strategy) == ("route", best, "route")
    assert "one peer is so far ahead" in heard.estimates[0].why


async def test_auto_asks_a_committee_of_equals_that_judge_well(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "42", "42", "40")
    good, even = Trials(45_000, 5_000), Trials(25_000, 25_000)
    peers[0].committee.weighing = Weighing(lambda peer, skill: good if "judge" in skill else even)
    heard = Heard()
    await backend_of(peers[0]).ask(ask(strategy="auto", text="12 + 30"), heard.emit)
    assert heard.result.strategy == "rank"
    assert heard.estimates[0].round["per_right"] < heard.estimates[0].route["per_right"]
    shown = heard.result.round
    assert shown is not None
    assert len(shown["ballots"]) > 0
    assert {"peer_id", "first", "second", "log_odds_milli"} == set(shown["ballots"][0])
    named, heard = ask(strategy="auto", text="12 + 30"), Heard()
    await backend_of(peers[0]).ask(replace(named, job=msgspec.structs.replace(named.job, model="tiny-3")), heard.emit)
    assert (heard.result.strategy, heard.result.model) == ("route", "tiny-3")


async def test_a_lead_that_judges_could_not_change_is_not_judged(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "42", "42", "42")
    weak, good = Trials(28_000, 22_000), Trials(45_000, 5_000)
    peers[0].committee.weighing = Weighing(lambda peer, skill: weak if "judge" in skill else good)
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="rank", text="12 + 30"), heard.emit)
    shown = heard.result.round
    assert shown is not None
    assert (shown["winner"], shown["ballots"]) == ("42", [])
    assert (
        "votes alone decided, by more than all judges together could change, so none was asked: the winner has 4" in shown["why"]
    )


async def test_two_members_have_no_pair_to_judge(swarm: Swarm, autojump_clock: Clock) -> None:
    """Each of the two answers is a judge's own, so votes decide without the lead that asks nobody."""
    peers = await committee(swarm, "42", "41")
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="rank", text="12 + 30"), heard.emit)
    shown = heard.result.round
    assert shown is not None
    assert "votes alone decided: the winner has 1" in shown["why"]


async def test_auto_says_why_it_asks_one_peer(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "42")
    said = []
    for tally in (None, lambda peer, skill: Trials(45_000, 5_000)):
        peers[0].committee.weighing = Weighing() if tally is None else Weighing(tally)
        heard = Heard()
        await backend_of(peers[0]).ask(ask(strategy="auto", text="12 + 30"), heard.emit)
        assert (heard.result.strategy, heard.estimates[0].strategy) == ("route", "route")
        said.append(heard.estimates[0].why)
    assert said[0].startswith("gold says nothing of these peers yet")
    assert said[1] == "a right answer is expected to cost less by one of the best peers than by a round"


async def test_a_tie_says_what_broke_it_and_a_majority_shows_no_judge(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "42", "41")
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="majority"), heard.emit)
    shown = heard.result.round
    assert shown is not None
    assert "it is level with the next class: a hash of the round and the answers orders them" in shown["why"]
    assert {row.judged for row in heard.phases} == {0}
    assert heard.phases[-1].revealed == 4


async def test_a_round_without_answers_says_what_its_members_said(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "", "", "42")
    failed = await failure(peers[0].committee.ask(ask(strategy="rank"), Heard().emit))
    assert failed.message.endswith("1 of 3 members answered where 2 are needed; 2 left: the engine gave an empty answer")


async def test_a_block_is_one_voice_and_confidence_is_as_gold_says(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "41")
    plain, shared = Heard(), Heard()
    await peers[0].committee.ask(ask(strategy="rank"), plain.emit)
    away, here = ("somebody", "away"), (peers[1].transport.peer_id, peers[2].transport.peer_id)
    peers[0].committee.weighing = Weighing(gold=ShownGold(away, here, gain=500))
    await peers[0].committee.ask(ask(strategy="rank"), shared.emit)
    before, after = plain.result.round, shared.result.round
    assert before is not None
    assert after is not None

    def weight(shown: dict[str, object], answer: str) -> float:
        return next(row["vote_weight"] for row in shown["classes"] if row["answer"] == answer)  # type: ignore[attr-defined]

    assert weight(before, "41") == 2 * weight(before, "42")
    assert weight(after, "41") == weight(after, "42")
    assert {row["peer_id"]: row["block"] for row in after["members"]} == {
        peers[0].transport.peer_id: 0,
        peers[1].transport.peer_id: 1,
        peers[2].transport.peer_id: 1,
    }
    assert any("one voice" in reason for reason in after["why"])
    assert any("at a gain of 0.5, which was right on gold" in reason for reason in after["why"])
    assert after["confidence_milli"] < before["confidence_milli"]


@pytest.mark.parametrize(
    ("answers", "over"),
    [(("42", "41", "40"), "every other answer given"), (("42", "41", "41"), "also those that nobody gave")],
    ids=["ranked", "judged"],
)
async def test_why_says_what_a_confidence_is_over(
    swarm: Swarm, autojump_clock: Clock, answers: tuple[str, ...], over: str
) -> None:
    peers = await committee(swarm, *answers)
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="rank"), heard.emit)
    shown = heard.result.round
    assert shown is not None
    (sentence,) = [reason for reason in shown["why"] if reason.startswith("confidence")]
    assert over in sentence
    assert sentence.startswith(f"confidence {shown['confidence_milli'] / 10:.1f}%:")


async def test_a_judges_two_records_are_two_weights(swarm: Swarm, autojump_clock: Clock) -> None:
    peers = await committee(swarm, "42", "41", "40")
    bought = peers[1].transport.peer_id

    def tally(peer: str, skill: str) -> Trials:
        return Trials(25_000, 25_000) if peer == bought and skill.startswith("judge.first.") else Trials(45_000, 5_000)

    peers[0].committee.weighing = Weighing(tally)
    heard = Heard()
    await peers[0].committee.ask(ask(strategy="rank", text="12 + 30"), heard.emit)
    shown = heard.result.round
    assert shown is not None
    weights = {row["peer_id"]: (row["judge_weight_milli"], row["favourite_weight_milli"]) for row in shown["members"]}
    assert weights.pop(bought)[1] < 100 < weights[peers[0].transport.peer_id][1]
