"""Words of judges: made after the seal, signed with the ballot, bounded, for people alone."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.job import Role, Turn
from protocol.round import events as ev
from protocol.round.messages import (
    DOMAIN,
    MAX_JUDGEMENTS,
    MAX_RATIONALE_BYTES,
    MAX_SEAT_MESSAGE_BYTES,
    Ballot,
    Durations,
    Header,
    Judgement,
    Seal,
    open_message,
    sign,
)
from protocol.round.rationale import MAX_RATIONALE_SECONDS, decisive, explanation, rationale_of
from protocol.round.requester import MIN_PATIENCE_S
from protocol.round.transcript import Replayed, replay
from protocol.wire.codec import encode
from protocol.wire.envelope import seal
from protocol.wire.errors import Code, RemoteError
from protocol.wire.ids import PeerId
from tests.sim.round_network import Behaviour, RoundNetwork, Weather, key_of

WORDS = 'seven sixes\nare "42"\x1b[31m, 41 is odd'
QUESTION = ev.PairQuestion(0, 1, (Turn(Role.USER, "A or B?"),), ("A", "B"))


class Seen:
    """A network's judges, who note what they are asked, and what was sent before each was asked for words."""

    def __init__(self, rationale: bool, style: str = "instructed", words: str = WORDS) -> None:
        self.questions: list[ev.PairQuestion] = []
        self.explained: list[tuple[int, ev.Explain]] = []
        self.sealed: set[int] = set()
        self.sealed_first: list[bool] = []

        def judge(number: int, question: ev.PairQuestion) -> int:
            self.questions.append(question)
            return 2000 if question.turns[-1].content.index("42") < question.turns[-1].content.rindex("41") else -2000

        def explain(number: int, effect: ev.Explain) -> str:
            self.explained.append((number, effect))
            self.sealed_first.append(number in self.sealed)
            return words

        def watch(network: RoundNetwork, me: PeerId, send: ev.Send) -> list[ev.Send]:
            message = open_message(send.raw).message
            if isinstance(message, Seal) and message.step == "ballot_seal":
                self.sealed.add(network.ids.index(me))
            return [send]

        tamper = dict.fromkeys(range(1, 6), watch)
        behaviour = Behaviour(
            lambda number: "42" if number % 2 else "41",
            judge,
            explain,
            style,
            tamper=tamper,  # type: ignore[arg-type]
        )
        self.network = RoundNetwork(3, 5, Weather(), behaviour)
        self.network.run(self.network.header(rationale=rationale))

    def replayed(self) -> Replayed:
        return replay(self.network.closed[(self.network.requester, "requester")].transcript)


def test_judges_say_why_once_they_are_sealed_and_people_read_it() -> None:
    seen = Seen(rationale=True)
    replayed = seen.replayed()
    assert replayed.rationales == dict.fromkeys(range(5), 'seven sixes are "42"[31m, 41 is odd')
    assert len(seen.explained) == 5
    assert all(seen.sealed_first)
    for _, effect in seen.explained:
        letter, asked = effect.job.turns[-2:]
        assert (letter.role, asked.role) == (Role.ASSISTANT, Role.USER)
        assert letter.content in ("A", "B")


def test_words_change_no_verdict_and_no_judge_hears_them() -> None:
    with_words, without = Seen(rationale=True), Seen(rationale=False)
    assert not any("seven sixes" in turn.content for question in with_words.questions for turn in question.turns)
    assert not without.explained
    assert without.replayed().rationales == {}
    first, second = with_words.replayed().result, without.replayed().result
    assert first is not None
    assert second is not None
    assert [(row.answer, row.score_micro) for row in first.classes] == [(row.answer, row.score_micro) for row in second.classes]


def test_a_judge_without_words_costs_nothing() -> None:
    assert Seen(rationale=True, words="").replayed().rationales == {}
    compact = Seen(rationale=True, style="compact")
    assert compact.explained == []
    assert all(row.judged for row in compact.replayed().members)


def test_words_that_nobody_asked_for_cost_their_author_its_ballot() -> None:
    def chatty(network: RoundNetwork, me: PeerId, send: ev.Send) -> list[ev.Send]:
        message = open_message(send.raw).message
        if isinstance(message, Ballot):
            return [ev.Send(send.peers, network.sign(3, msgspec.structs.replace(message, rationale="trust me")))]
        return [send]

    network = RoundNetwork(3, 5, Weather(), Behaviour(lambda number: str(number % 2), tamper={3: chatty}))
    network.run(network.header())
    replayed = replay(network.closed[(network.requester, "requester")].transcript)
    assert [row.peer_id for row in replayed.members if not row.judged] == [network.ids[3]]


def ballot(words: str) -> Ballot:
    return Ballot(b"\1" * 32, b"\2" * 32, b"\3" * 32, (Judgement(0, 1, -8000),) * MAX_JUDGEMENTS, words)


def test_the_longest_ballot_fits_and_a_longer_rationale_is_refused() -> None:
    assert len(sign(ballot("x" * MAX_RATIONALE_BYTES), key_of(1))) <= MAX_SEAT_MESSAGE_BYTES
    with pytest.raises(RemoteError) as error:
        open_message(sign(ballot("é" * (MAX_RATIONALE_BYTES // 2 + 1)), key_of(1)))
    assert error.value.code is Code.OVERSIZED


@pytest.mark.parametrize("message", [ballot(""), RoundNetwork(7, 5, Weather(), Behaviour()).header()])
def test_messages_of_peers_that_know_no_rationale_are_read(message: Ballot | Header) -> None:
    shorter = msgpack.packb(msgpack.unpackb(encode(message))[:-1])
    assert open_message(seal(DOMAIN, shorter, key_of(1))).message == message


@given(st.text(max_size=2000))
def test_any_words_become_one_bounded_line(text: str) -> None:
    line = rationale_of(text)
    assert len(line.encode()) <= MAX_RATIONALE_BYTES
    assert "\n" not in line
    assert rationale_of(line) == line


def test_the_surest_judgement_is_the_one_explained() -> None:
    said = (Judgement(0, 1, 100), Judgement(2, 1, -900), Judgement(0, 2, 900))
    assert decisive(said) == said[1]
    assert decisive((Judgement(0, 1, 0),)) is None
    assert decisive(()) is None


def test_there_is_less_time_for_words_than_a_requester_waits() -> None:
    assert MAX_RATIONALE_SECONDS < MIN_PATIENCE_S
    assert explanation(QUESTION, Judgement(0, 1, -5), Durations()).seconds == MAX_RATIONALE_SECONDS
    assert explanation(QUESTION, Judgement(0, 1, -5), Durations(reveal_ms=1000)).seconds == 0.5
    assert explanation(QUESTION, Judgement(0, 1, -5), Durations()).job.turns[-2] == Turn(Role.ASSISTANT, "B")
