"""What judges say together of each pair, against the same written down plainly in whole numbers."""

from fractions import Fraction

from hypothesis import example, given
from hypothesis import strategies as st

from protocol.round.ballots import LEAST_TRIMMED, TASTE_PRIOR_PAIRS, PairSums, evidence_micro, favourites, preferences, ratio
from protocol.round.messages import LOG_ODDS_CLAMP_MILLI, FoldParameters, Judgement

MOST = 8_000_000
Ballots = list[tuple[int, int, list[Judgement]]]


def plainly(judgements: list[Judgement], position_bias: bool) -> dict[tuple[int, int], int]:
    """A judge's log-odds for the lower class of each pair."""
    looks = {(j.first, j.second): j.log_odds_milli for j in judgements}
    swapped = {pair for pair in looks if pair[::-1] in looks and pair[0] < pair[1]}
    taste = ratio(sum(looks[pair] + looks[pair[::-1]] for pair in swapped), 2 * (len(swapped) + TASTE_PRIOR_PAIRS))
    told = {}
    for (a, b), odds in looks.items():
        if (min(a, b), max(a, b)) in swapped:
            told[min(a, b), max(a, b)] = ratio(looks[min(a, b), max(a, b)] - looks[max(a, b), min(a, b)], 2)
        else:
            own = odds - taste * position_bias
            told[min(a, b), max(a, b)] = own if a < b else -own
    return told


@st.composite
def any_ballots(draw: st.DrawFn) -> tuple[int, FoldParameters, Ballots]:
    count = draw(st.sampled_from([2, 3, 5, 50, 60]))
    index = st.integers(0, count - 1)
    clamp = LOG_ODDS_CLAMP_MILLI
    odds = st.integers(-clamp, clamp) | st.sampled_from([-clamp, 0, clamp])
    weight = st.integers(-MOST, MOST) | st.sampled_from([-MOST, -1, 0, 1, MOST])
    judged = st.lists(st.tuples(index, index, odds).filter(lambda j: j[0] != j[1]), max_size=12, unique_by=lambda j: j[:2])
    ballots: Ballots = []
    for _ in range(draw(st.integers(0, LEAST_TRIMMED - 1))):
        other = draw(weight)
        ballots.append((draw(st.just(other) | weight), other, [Judgement(*said) for said in draw(judged)]))
    evidence = draw(st.sampled_from(["probability", "log_odds"]))
    return count, FoldParameters(evidence=evidence, position_bias=draw(st.booleans())), ballots


@given(any_ballots())
@example((2, FoldParameters(evidence="log_odds"), [(1, 1, [Judgement(0, 1, odds)]) for odds in (0, 2)]))
@example((2, FoldParameters(evidence="log_odds"), [(1, 1, [Judgement(1, 0, odds)]) for odds in (0, 2)]))
def test_sums_of_pairs_are_those_of_whole_numbers(given_: tuple[int, FoldParameters, Ballots]) -> None:
    count, rules, ballots = given_
    sums = PairSums(count, rules)
    expected: dict[tuple[int, int], list[int]] = {}
    for favourite, other, judgements in ballots:
        told = plainly(judgements, rules.position_bias)
        asked, swapped, _ = sums.add(favourite, other, judgements)
        assert (asked, asked + swapped) == (len(told), len(judgements))
        if count <= 50:
            assert preferences(judgements, rules.position_bias) == told
        first = favourites(told) if favourite != other else frozenset()
        for (a, b), odds in told.items():
            weight = favourite if (a in first) != (b in first) else other
            row = expected.setdefault((a, b), [0, 0, 0])
            row[0] += weight * evidence_micro(odds, rules)
            row[1] += abs(weight)
            row[2] += 1
    table = sums.table()
    rows = zip(table.first, table.second, table.evidence, table.weight, table.judges, strict=True)
    assert [((a, b), [*row]) for a, b, *row in rows] == sorted(expected.items())
    centred = {pair: round(Fraction(total, weight)) if weight else 0 for pair, (total, weight, _) in expected.items()}
    assert list(table.centred_micro) == [value for _, value in sorted(centred.items())]
    for sums_, by_pair in ((table.lead, {pair: row[0] for pair, row in expected.items()}), (table.wins_micro, centred)):
        signed = [(index, value if index == a else -value) for (a, b), value in by_pair.items() for index in (a, b)]
        assert list(sums_) == [sum(value for index, value in signed if index == one) for one in range(count)]
    assert list(table.met) == [sum(index in pair for pair in expected) for index in range(count)]


odds_of_a_judge = st.tuples(st.integers(1, MOST), st.integers(-LOG_ODDS_CLAMP_MILLI, LOG_ODDS_CLAMP_MILLI))


@given(st.lists(odds_of_a_judge, min_size=LEAST_TRIMMED, max_size=30))
def test_where_many_judged_a_pair_a_twentieth_at_each_end_is_left_out(said: list[tuple[int, int]]) -> None:
    rules = FoldParameters(evidence="log_odds")
    sums = PairSums(2, rules)
    for weight, odds in said:
        sums.add(weight, weight, [Judgement(0, 1, odds)])
    whole = sum(weight for weight, _ in said)
    low, high, passed, kept = whole // 20, whole - whole // 20, 0, 0
    for evidence, weight in sorted((evidence_micro(odds, rules), weight) for weight, odds in said):
        kept += evidence * max(0, min(high, passed + weight) - max(low, passed))
        passed += weight
    table = sums.table()
    assert table.evidence[0] == ratio(kept * whole, high - low)
    assert table.centred_micro[0] == round(Fraction(ratio(kept * whole, high - low), whole))
