"""The interval around a share of right answers that few trials leave. Pure, and in whole numbers."""

from math import isqrt

MILLI = 1_000

Z90_MILLI = 1_645
"""Standard errors to either side of a 90% interval, in thousandths; also those of a one-sided bound of 95%."""


def wilson_milli(right_milli: int, wrong_milli: int, z_milli: int = Z90_MILLI) -> tuple[int, int]:
    """Bounds of a share, in thousandths, from trials in thousandths of one (Wilson 1927); 0 and 1000 where there are none."""
    trials = right_milli + wrong_milli
    if trials <= 0:
        return 0, MILLI
    # (2np + z^2 -+ z sqrt(z^2 + 4npq)) / 2(n + z^2), each term in millionths.
    square = z_milli * z_milli
    centre = 2 * right_milli * MILLI + square
    half = z_milli * isqrt(square + 4 * right_milli * wrong_milli * MILLI // trials)
    whole = 2 * (trials * MILLI + square)
    return max(0, (centre - half) * MILLI // whole), min(MILLI, (centre + half) * MILLI // whole)
