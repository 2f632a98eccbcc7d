"""Logarithm and logistic function in whole numbers: the same bits on every machine, where `math` may differ in the last one."""

from functools import cache

_ONE = 10**18
_LN2 = 693_147_180_559_945_309

TABLE_REACH_MILLI = 16_384


@cache
def exp_fixed(milli: int) -> int:
    """e**(milli/1000) in units of 10**-18, for 0 <= milli <= 50,000, cut downwards term by term."""
    term = total = _ONE
    order = 1
    while term:
        term = term * milli // (1000 * order)
        total += term
        order += 1
    return total


def log_milli(numerator: int, denominator: int) -> int:
    """ln(numerator / denominator) in milli-nats, rounded to nearest; both are positive. ln(1/x) is exactly -ln(x)."""
    if numerator < denominator:
        return -log_milli(denominator, numerator)
    halvings = max(0, numerator.bit_length() - denominator.bit_length())
    scaled = numerator * _ONE // (denominator << halvings)  # 1/2 < scaled < 2
    ratio = (scaled - _ONE) * _ONE // (scaled + _ONE)  # ln x = 2 atanh((x - 1) / (x + 1))
    square = ratio * ratio // _ONE
    total, term, order = 0, ratio, 1
    while term and order < 99:
        total += term // order
        term = term * square // _ONE
        order += 2
    return (2 * total + halvings * _LN2 + 5 * 10**14) // 10**15


@cache
def probability_milli(log_odds_milli: int) -> int:
    """Thousandths of probability for log-odds in milli-nats, rounded to nearest; p(-x) is exactly 1000 - p(x)."""
    if log_odds_milli < 0:
        return 1000 - probability_milli(-log_odds_milli)
    grown = exp_fixed(log_odds_milli)
    return (2000 * grown + grown + _ONE) // (2 * (grown + _ONE))


@cache
def logistic_table() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """P and P(1 - P) in millionths, for log-odds from -TABLE_REACH_MILLI to it: index milli + TABLE_REACH_MILLI.

    Made when first asked for, in some 30 ms.
    """
    grown, step = _ONE, exp_fixed(1)
    upper = []
    for _ in range(TABLE_REACH_MILLI + 1):
        upper.append(1_000_000 * grown // (grown + _ONE))
        grown = grown * step // _ONE
    chances = tuple([1_000_000 - chance for chance in reversed(upper[1:])] + upper)
    return chances, tuple(chance * (1_000_000 - chance) // 1_000_000 for chance in chances)


def softmax_first_milli(gaps_milli: tuple[int, ...]) -> int:
    """Thousandths of probability of the best of several scores; `gaps_milli` are its leads (>= 0, milli-nats) over the others."""
    others = sum(_ONE * _ONE // exp_fixed(min(gap, 50_000)) for gap in gaps_milli)
    return 1000 * _ONE // (_ONE + others)
