"""Logarithm and logistic function in whole numbers: the same bits on every machine, where `math` may differ in the last one."""

from collections.abc import Sequence
from functools import cache

_ONE = 10**18
_LN2 = 693_147_180_559_945_309


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


def softmax_first_milli(gaps_milli: Sequence[int]) -> int:
    """Thousandths of probability of the best of several scores; `gaps_milli` are its leads (>= 0, milli-nats) over the others."""
    others = sum([_ONE * _ONE // exp_fixed(min(gap, 50_000)) for gap in gaps_milli])
    return 1000 * _ONE // (_ONE + others)
