"""The fold: the same bits in any order, finite under any ballots, and the arithmetic of its tables by hand."""

import math
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.round.ballots import preferences
from protocol.round.classes import AnswerClass, classes_of, voices
from protocol.round.fold import Contributions, Voice, fold, verdict_hash
from protocol.round.logistic import probability_milli, softmax_first_milli
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, WEIGHT_CLAMP_MILLI, FoldParameters, Judgement, quorum
from protocol.wire.ids import Hash
from tests.sim.round_network import seeded

ROUND = Hash(b"r" * 32)


def contributions(answers: str, ballots: dict[int, list[Judgement]], **changes: object) -> Contributions:
    """One letter per seat is its answer; classes are numbered by their order of weight."""
    fold_parameters = changes.pop("fold", FoldParameters())
    table = {seat: Voice(1000, 1000, bytes([seat])) for seat in range(len(answers))} | changes.pop("voices", {})  # type: ignore[operator]
    weights = voices(
        {seat: table[seat].answer_weight_milli for seat in table},
        {seat: table[seat].config_digest for seat in table},
        fold_parameters.one_voice,  # type: ignore[attr-defined]
    )
    classes = classes_of(ROUND, dict(enumerate(answers)), weights)
    return Contributions(ROUND, "rank", fold_parameters, table, classes, ballots, **changes)  # type: ignore[arg-type]


def test_the_logistic_function_is_right_to_the_last_milli() -> None:
    for milli in range(-8000, 8001, 7):
        assert probability_milli(milli) == round(1000 / (1 + math.exp(-milli / 1000)))
        assert probability_milli(milli) + probability_milli(-milli) == 1000


@pytest.mark.parametrize(("gaps", "expected"), [((), 1000), ((0,), 500), ((0, 0, 0), 250), ((1000,), 731), ((10**9,), 1000)])
def test_confidence_is_a_softmax(gaps: tuple[int, ...], expected: int) -> None:
    assert softmax_first_milli(gaps) == expected


def test_votes_alone_decide_a_majority() -> None:
    result = fold(contributions("aabbb", {}))
    assert [(row.seats, row.vote_micro, row.score_micro, row.rank) for row in result.classes] == [
        ((2, 3, 4), 3_000_000, 3_000_000, 1),
        ((0, 1), 2_000_000, 2_000_000, 2),
    ]
    assert (result.basis, result.winner, result.winner_seat, result.confidence_milli) == ("votes", 0, 2, 681), (
        "1 / (1 + e**-1 + 2 e**-3): the other class, and two wrong answers that nobody gave"
    )


def test_sure_judges_overrule_a_close_vote() -> None:
    """Five judges, each wholly sure of class 1: 5 votes' weight times one half either way against a lead of one vote."""
    ballots = {seat: [Judgement(0, 1, -LOG_ODDS_CLAMP_MILLI)] for seat in range(5)}
    result = fold(contributions("aabbb", ballots))
    assert [(row.score_micro, row.wins_milli) for row in result.classes] == [(500_000, 0), (4_500_000, 1000)]
    assert (result.basis, result.winner, result.confidence_milli) == ("judged", 1, 961), "1 / (1 + e**-4 + 2 e**-4.5)"


def test_asking_both_ways_cancels_a_taste_for_the_first_place() -> None:
    assert preferences([Judgement(0, 1, 3000), Judgement(1, 0, 3000)]) == {(0, 1): 0}
    assert preferences([Judgement(1, 0, 3000), Judgement(0, 1, -1000)]) == {(0, 1): -2000}
    result = fold(
        contributions("ab", {0: [Judgement(0, 1, 3000), Judgement(1, 0, 3000)], 1: [Judgement(0, 1, 2), Judgement(1, 0, -2)]})
    )
    assert [(row.swapped, row.consistent) for row in result.judges] == [(1, 0), (1, 1)]


def test_a_judge_of_negative_weight_counts_by_its_opposite() -> None:
    liar = {2: Voice(1000, -1000, b"\2")}
    for odds, winner in ((4000, 1), (-4000, 0)):
        given_ = contributions("aabb", {2: [Judgement(0, 1, odds)]}, voices=liar)
        assert fold(given_).winner == winner


def test_one_configuration_votes_and_judges_with_one_voice() -> None:
    same = {seat: Voice(1000, 1000, b"same") for seat in range(4)}
    ballots = {seat: [Judgement(0, 1, 8000 if seat < 4 else -8000)] for seat in range(6)}
    result = fold(contributions("aaaabb", ballots, voices=same))
    assert [(row.seats, row.vote_micro) for row in result.classes] == [((4, 5), 2_000_000), ((0, 1, 2, 3), 1_000_000)]
    assert result.pairs[0].wins_milli == 333, "one voice for class 0, two against it"


def test_evidence_may_be_log_odds_on_the_same_range() -> None:
    given_ = contributions("ab", {0: [Judgement(0, 1, 4000)]}, fold=FoldParameters(evidence="log_odds"))
    assert fold(given_).pairs[0].wins_milli == 750


def test_the_class_of_a_dropped_seat_cannot_win() -> None:
    ballots = {seat: [Judgement(0, 1, -8000)] for seat in range(3)}
    kept = fold(contributions("aab", ballots))
    assert kept.winner_seat == 2
    dropped = fold(contributions("aab", ballots, dropped=(2,)))
    assert (dropped.winner, dropped.winner_seat, dropped.dropped) == (0, 0, (2,))
    assert [row.rank for row in dropped.classes] == [1, 2]


def test_ties_are_broken_by_the_round_and_not_by_the_order() -> None:
    winners = set()
    for number in range(20):
        round_id = Hash(bytes([number]) * 32)
        classes = classes_of(round_id, {0: "a", 1: "b"}, {0: 1_000_000, 1: 1_000_000})
        table = {seat: Voice(1000, 1000, bytes([seat])) for seat in range(2)}
        result = fold(Contributions(round_id, "rank", FoldParameters(), table, classes, {}))
        assert result.confidence_milli == 365, "1 / (2 + 2 / e)"
        winners.add(classes[result.winner].key)
    assert winners == {"a", "b"}


@pytest.mark.parametrize(
    ("count", "milli", "expected"),
    [
        (1, 666, 1),
        (2, 666, 2),
        (3, 666, 2),
        (4, 666, 3),
        (5, 666, 4),
        (6, 666, 4),
        (7, 666, 5),
        (9, 666, 6),
        (50, 666, 34),
        (7, 1000, 7),
        (0, 666, 1),
    ],
)
def test_quorum_is_two_thirds_rounded_up(count: int, milli: int, expected: int) -> None:
    assert quorum(count, milli) == expected


def test_quorum_is_exactly_two_thirds_for_every_committee() -> None:
    assert [quorum(count, 666) for count in range(1, 51)] == [-(-2 * count // 3) for count in range(1, 51)]


odds = st.integers(-LOG_ODDS_CLAMP_MILLI, LOG_ODDS_CLAMP_MILLI)
weights = st.integers(-WEIGHT_CLAMP_MILLI, WEIGHT_CLAMP_MILLI)


@st.composite
def any_round(draw: st.DrawFn) -> Contributions:
    """Cycles, ties, one vote, weights of zero or less, judges of few pairs: whatever the wire lets through."""
    answers = draw(st.text("abcd", min_size=1, max_size=9))
    table = {
        seat: Voice(draw(weights), draw(weights), bytes([draw(st.integers(0, 3))]), draw(st.none() | weights))
        for seat in range(len(answers))
    }
    classes = len(set(answers))
    index = st.integers(0, classes - 1)
    judged = st.lists(st.tuples(index, index, odds).filter(lambda j: j[0] != j[1]), max_size=6, unique_by=lambda j: j[:2])
    ballots = {
        seat: [Judgement(*judgement) for judgement in draw(judged)] if classes > 1 else []
        for seat in draw(st.sets(st.integers(0, len(answers) - 1)))
    }
    parameters = FoldParameters(
        vote_gain_milli=draw(st.integers(0, 100_000)),
        judge_gain_milli=draw(st.integers(0, 100_000)),
        evidence=draw(st.sampled_from(["probability", "log_odds"])),
        one_voice=draw(st.booleans()),
        arm=draw(st.sampled_from(["fuse", "rank", "best"])),
        position_bias=draw(st.booleans()),
    )
    dropped = draw(st.sets(st.integers(0, len(answers) - 1), max_size=len(answers) - 1))
    return contributions(answers, ballots, fold=parameters, voices=table, dropped=tuple(dropped))


@st.composite
def any_ranked_round(draw: st.DrawFn) -> Contributions:
    """No two answers are equal, and some pair was judged."""
    answers = "abcdefghi"[: draw(st.integers(2, 9))]
    clamp = st.integers(-WEIGHT_CLAMP_MILLI, WEIGHT_CLAMP_MILLI)
    weight = clamp | st.sampled_from([0, 1000])
    table = {
        seat: Voice(1000, draw(weight), bytes([draw(st.integers(0, 3))]), draw(st.none() | weight), draw(clamp | st.just(0)))
        for seat in range(len(answers))
    }
    index = st.integers(0, len(answers) - 1)
    odds = st.integers(-LOG_ODDS_CLAMP_MILLI, LOG_ODDS_CLAMP_MILLI)
    judged = st.lists(st.tuples(index, index, odds).filter(lambda j: j[0] != j[1]), max_size=20, unique_by=lambda j: j[:2])
    ballots = {seat: [Judgement(*judgement) for judgement in draw(judged)] for seat in table}
    ballots[0] = ballots[0] or [Judgement(0, 1, draw(odds))]
    return contributions(answers, ballots, fold=FoldParameters(arm="rank", position_bias=draw(st.booleans())), voices=table)


@given(any_round() | any_ranked_round(), st.integers())
def test_any_ballots_fold_to_a_finite_result_in_any_order(given_: Contributions, seed: int) -> None:
    result = fold(given_)
    assert 0 <= result.confidence_milli <= 1000
    assert result.winner_seat not in given_.dropped
    assert result.classes[result.winner].rank == 1
    assert all(0 <= pair.wins_milli <= 1000 for pair in result.pairs)
    shuffle = seeded(seed)
    ballots = [(seat, shuffle.sample(judged, len(judged))) for seat, judged in given_.ballots.items()]
    shuffle.shuffle(ballots)
    table = shuffle.sample(list(given_.voices.items()), len(given_.voices))
    again = Contributions(
        given_.round, given_.strategy, given_.fold, dict(table), given_.classes, dict(ballots), dropped=given_.dropped[::-1]
    )
    assert verdict_hash(fold(again)) == verdict_hash(result)


@given(any_ranked_round())
def test_where_no_two_answers_are_equal_judges_rank_them_whatever_all_of_them_weigh_together(given_: Contributions) -> None:
    table = {seat: replace(v, judge_weight_milli=v.judge_weight_milli // 4 * 4) for seat, v in given_.voices.items()}
    table = {seat: replace(voice, favourite_weight_milli=None) for seat, voice in table.items()}
    rules = msgspec.structs.replace(given_.fold, one_voice=False)
    whole = fold(replace(given_, voices=table, fold=rules))
    quarter = {seat: replace(voice, judge_weight_milli=voice.judge_weight_milli // 4) for seat, voice in table.items()}
    assert whole.basis == "ranked"
    assert whole.classes == fold(replace(given_, voices=quarter, fold=rules)).classes


def test_an_answer_that_nobody_judged_comes_a_nat_behind_the_last_that_was() -> None:
    table = {seat: Voice(1000, 1000, bytes([seat]), strength_milli=-3000 * (seat == 2)) for seat in range(3)}
    ballots = {seat: [Judgement(0, 1, 2000)] for seat in range(3)}
    classes = tuple(AnswerClass(name, name, (seat,), 1_000_000) for seat, name in enumerate("abc"))
    result = fold(Contributions(ROUND, "rank", FoldParameters(arm="rank"), table, classes, ballots))
    first, last, unseen = (row.score_micro for row in result.classes)
    assert first > last == unseen + 1_000_000


def test_a_dropped_judge_changes_nothing_for_the_others() -> None:
    said = [Judgement(0, 1, 2000), Judgement(1, 2, 700)]
    rules = FoldParameters(arm="rank")
    whole = fold(contributions("abc", dict.fromkeys(range(2), said), fold=rules, dropped=(2,)))
    assert fold(contributions("abc", dict.fromkeys(range(3), said), fold=rules, dropped=(2,))) == whole


def test_a_ranked_round_has_these_bits_on_every_machine() -> None:
    chance = seeded(11)
    table = {seat: Voice(1000, chance.randint(-500, 3000), bytes([seat]), None, chance.randint(-1500, 1500)) for seat in range(7)}
    pairs = [(a, b) for a in range(7) for b in range(7) if a != b]
    ballots = {seat: [Judgement(a, b, chance.randint(-4000, 4000)) for a, b in chance.sample(pairs, 20)] for seat in range(7)}
    classes = tuple(AnswerClass(str(i), str(i), (i,), 1_000_000) for i in range(7))
    result = fold(Contributions(ROUND, "rank", FoldParameters(arm="rank"), table, classes, ballots))
    assert [row.score_micro // 1000 for row in result.classes] == [478, 484, 628, -55, 225, 398, -169]
    assert verdict_hash(result).hex() == "b8a451fa81c3e202ffb61871fcc64298f2f66b9af7506d5315d904b72466d42b"


def test_five_in_a_hundred_of_the_weight_rigging_other_pairs_moves_the_winner_nowhere() -> None:
    """R4 of the threat table: judges of 5% of the weight say the opposite on pairs that do not hold the target."""
    classes = [AnswerClass(str(i), str(i), (i,), 1_000_000) for i in range(4)]
    table = {seat: Voice(1000, 1000, bytes([seat])) for seat in range(40)}
    honest = [Judgement(a, b, 1500) for a in range(4) for b in range(a + 1, 4)]
    rigged = [Judgement(a, b, 1500 if a == 0 else -8000) for a in range(4) for b in range(a + 1, 4)]
    ballots = {seat: rigged if seat < 2 else honest for seat in range(40)}
    result = fold(Contributions(ROUND, "rank", FoldParameters(), table, tuple(classes), ballots))
    assert [row.rank for row in result.classes] == [1, 2, 3, 4]


def of_twenty(first: int, others: int, weight: int = 1000, judges: int = 20) -> int:
    """How often class 0 beats class 1 where the first judge says one thing and all others another."""
    classes = [AnswerClass("a", "a", (40,), 1_000_000), AnswerClass("b", "b", (41,), 1_000_000)]
    table = {seat: Voice(1000, 1000 if seat else weight, bytes([seat])) for seat in range(42)}
    ballots = {seat: [Judgement(0, 1, others if seat else first)] for seat in range(judges)}
    return fold(Contributions(ROUND, "rank", FoldParameters(own_pairs=True), table, tuple(classes), ballots)).pairs[0].wins_milli


def test_one_judge_of_twenty_moves_a_pair_no_further_than_its_neighbours() -> None:
    alone = of_twenty(700, 700)
    assert of_twenty(-8000, 700) == of_twenty(8000, 700) == alone == probability_milli(700)
    assert of_twenty(8000, 700, weight=-1000) == alone, "also by its opposite"
    assert of_twenty(-8000, 700, judges=11) < alone, "of few, each one counts"
    assert of_twenty(-8000, 700, weight=4000) < alone, "what is beyond a twentieth of the weight counts"
    assert of_twenty(8000, -8000) + of_twenty(-8000, 8000) == 1000


def test_a_judge_is_weighed_apart_where_the_answer_it_puts_first_is_concerned() -> None:
    """The judge of seat 2 is bought: it lies for class 2 and nowhere else; its word on the other pair counts in full."""
    bought = {2: Voice(1000, 4000, b"\2", 1)}
    ballots = {2: [Judgement(2, 0, 8000), Judgement(2, 1, 8000), Judgement(1, 0, 8000)]}
    result = fold(contributions("abc", ballots, voices=bought, fold=FoldParameters(arm="rank")))
    letters = {row.seats: row.score_micro for row in result.classes}
    assert letters[(1,)] > letters[(2,)]
    trusted = fold(contributions("abc", ballots, voices={2: Voice(1000, 4000, b"\2")}, fold=FoldParameters(arm="rank")))
    assert trusted.winner_seat == trusted.classes[2].seats[0]


def test_a_taste_for_the_first_place_is_taken_off_the_pairs_seen_one_way() -> None:
    said = [Judgement(0, 1, 3000), Judgement(1, 0, 3000), Judgement(2, 0, 500)]
    assert preferences(said) == {(0, 1): 0, (0, 2): -500}
    assert preferences(said, position_bias=True) == {(0, 1): 0, (0, 2): 500}, "a third of 3000, as two unbiased pairs are assumed"


def test_rank_leaves_votes_out_and_best_leaves_everybody_else_out() -> None:
    strong = {0: Voice(8000, 1000, b"\0")}
    ballots = {seat: [Judgement(0, 1, -4000)] for seat in range(2)}
    ranked = fold(contributions("ab", ballots, voices=strong, fold=FoldParameters(arm="rank")))
    assert (ranked.basis, ranked.winner) == ("ranked", 1)
    assert fold(contributions("aab", ballots, voices=strong, fold=FoldParameters(arm="rank"))).basis == "judged"
    best = fold(contributions("aaabb", {}, voices={4: Voice(1001, 0, b"\4")}, fold=FoldParameters(arm="best")))
    assert (best.basis, best.winner_seat) == ("best", 3)
    assert [row.vote_micro for row in best.classes if 4 in row.seats] == [1_001_000]


def test_a_class_that_no_judge_saw_ranks_below_those_that_were_judged() -> None:
    ballots = {seat: [Judgement(0, 1, 500)] for seat in range(3)}
    result = fold(contributions("abc", ballots, fold=FoldParameters(arm="rank")))
    assert [row.rank for row in result.classes] == [1, 2, 3]


@pytest.mark.parametrize("arm", ["fuse", "rank"])
def test_judges_of_no_weight_are_listed_and_move_nothing(arm: str) -> None:
    nobody = {seat: Voice(1000, 0, bytes([seat])) for seat in range(3)}
    result = fold(contributions("abc", {0: [Judgement(0, 1, 4000)]}, voices=nobody, fold=FoldParameters(arm=arm)))  # type: ignore[arg-type]
    assert [(row.judges, row.wins_milli) for row in result.pairs] == [(1, 500)]


def test_an_answer_is_drawn_to_what_is_expected_of_its_author_and_judges_overrule_that() -> None:
    known = {0: Voice(1000, 1000, b"\0", strength_milli=900)}
    level = {seat: [Judgement(0, 1, 0)] for seat in range(2)}
    parameters = FoldParameters(arm="rank")
    for voices_, winners in (({}, {0, 1}), (known, {0})):
        found = fold(contributions("ab", level, voices=voices_, fold=parameters))
        assert found.winner_seat in winners
        assert (found.confidence_milli > 500) == (voices_ == known)
    other = {seat: [Judgement(0, 1, -8000), Judgement(1, 0, 8000)] for seat in range(2)}
    classes = contributions("ab", {}, voices=known).classes
    against = other if classes[0].key == "a" else {seat: [Judgement(0, 1, 8000), Judgement(1, 0, -8000)] for seat in range(2)}
    assert fold(contributions("ab", against, voices=known, fold=parameters)).winner_seat == 1
