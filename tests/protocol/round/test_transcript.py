"""Replay: the same verdict from the bytes alone, and no changed byte, missing or moved message goes unnoticed.

`REWRITE=1` writes tests/transcripts/round_basic.txt anew; review it as text.
"""

import os
from pathlib import Path

import pytest

from protocol.round import events as ev
from protocol.round.messages import Attestation, open_message
from protocol.round.transcript import Transcript, replay
from protocol.wire.codec import decode, encode
from protocol.wire.errors import RemoteError
from tests.sim.round_network import Behaviour, RoundNetwork, Weather

CONVERSATION = Path(__file__).parents[2] / "transcripts" / "round_basic.txt"


def judged_round() -> RoundNetwork:
    """Three members, two answers, fixed times."""
    calm = Weather(latency=(0.01, 0.01))
    behaviour = Behaviour(
        answer=lambda number: "41" if number == 2 else "42",
        judge=lambda number, question: 2000 if question.turns[-1].content.startswith("A:42") else -1000,
        answer_s=(0.5, 0.5),
        judge_s=(0.2, 0.2),
    )
    network = RoundNetwork(11, 3, calm, behaviour)
    network.trace = {}
    network.run(network.header())
    return network


@pytest.fixture(scope="module")
def network() -> RoundNetwork:
    return judged_round()


@pytest.fixture(scope="module")
def raw(network: RoundNetwork) -> bytes:
    return network.closed[(network.requester, "requester")].transcript


def messages_of(raw: bytes) -> tuple[bytes, ...]:
    return decode(Transcript, raw, 1 << 20).messages


def test_the_recorded_conversation(network: RoundNetwork, raw: bytes) -> None:
    assert network.trace is not None
    lines = ["time s  from -> to  what, size. Peer 0 asks; 1 to 3 sit. Links take 10 ms, answers 0.5 s, judging 0.2 s.", ""]
    lines += [line.format(",".join(map(str, targets))) for line, targets in network.trace.items()]
    replayed = replay(raw)
    assert replayed.result is not None
    lines += ["", f"winner {replayed.winner!r}, confidence {replayed.result.confidence_milli} milli"]
    lines += [
        f"class {row.seats} votes {row.vote_micro} wins {row.wins_milli} score {row.score_micro}"
        for row in replayed.result.classes
    ]
    lines += [f"verdict {replayed.verdict_hash.hex() if replayed.verdict_hash else None}"]
    text = "\n".join(lines) + "\n"
    if "REWRITE" in os.environ:
        CONVERSATION.write_text(text)
    assert text == CONVERSATION.read_text()


def test_replay_gives_the_live_verdict_and_every_table(network: RoundNetwork, raw: bytes) -> None:
    replayed = replay(raw)
    live = network.closed[(network.requester, "requester")].outcome
    assert isinstance(live, ev.Decided)
    assert (replayed.verdict_hash, replayed.result, replayed.winner) == (live.verdict_hash, live.result, live.answer)
    assert set(replayed.attested_by) == set(network.members)
    assert [(row.sealed, row.revealed, row.judged, row.dropped, row.tokens) for row in replayed.members] == [
        (True, True, True, False, 8)
    ] * 3
    assert sorted(row.class_index for row in replayed.members if row.class_index is not None) == [0, 0, 1]


def test_transcripts_of_all_peers_differ_in_attestations_alone(network: RoundNetwork, raw: bytes) -> None:
    def without_attestations(transcript: bytes) -> list[bytes]:
        return [each for each in messages_of(transcript) if not isinstance(open_message(each).message, Attestation)]

    assert len({tuple(without_attestations(closed.transcript)) for closed in network.closed.values()}) == 1


def test_no_message_can_be_left_out_moved_or_added(raw: bytes) -> None:
    messages = messages_of(raw)
    for place in range(len(messages)):
        if not isinstance(open_message(messages[place]).message, Attestation):
            with pytest.raises(RemoteError):
                replay(encode(Transcript(messages[:place] + messages[place + 1 :])))
        swapped = [*messages[:place], *messages[place + 1 : place + 2], messages[place], *messages[place + 2 :]]
        if tuple(swapped) != messages:
            with pytest.raises(RemoteError):
                replay(encode(Transcript(tuple(swapped))))
        with pytest.raises(RemoteError):
            replay(encode(Transcript((*messages, messages[place]))))


@pytest.mark.slow
def test_no_byte_can_be_changed(raw: bytes) -> None:
    for place in range(0, len(raw), 37):
        with pytest.raises(RemoteError):
            replay(raw[:place] + bytes([raw[place] ^ 0x20]) + raw[place + 1 :])


def test_replay_names_what_does_not_fit(raw: bytes) -> None:
    messages = messages_of(raw)
    with pytest.raises(RemoteError, match="lacks 1 of the messages that its reveal list names"):
        replay(encode(Transcript(messages[:7] + messages[8:])))
    with pytest.raises(RemoteError, match="does not start with a header"):
        replay(encode(Transcript(messages[1:])))


def test_a_round_without_a_verdict_replays_to_its_reason() -> None:
    network = RoundNetwork(1, 3, Weather(), Behaviour(kill={"answer": [1, 2]}))
    network.run(network.header())
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    assert (replayed.result, replayed.winner, replayed.verdict_hash) == (None, None, None)
    assert replayed.reason == "1 of 3 members answered where 2 are needed"
    assert len(replayed.members) == 3
