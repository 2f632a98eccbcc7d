"""The line of advice and the leg that fails: a table, and no advice that names nothing."""

import itertools

import pytest

from nat.advice import Standing, advice, failing_leg
from nat.observed import Mapping

TABLE = [
    (Standing(None, None, None, Mapping.UNKNOWN, 0, 0), "no peer is connected", "swarmd start --join"),
    (Standing(True, True, None, Mapping.NONE, 0, 3), None, "nothing to do: others can come in"),
    (Standing(True, True, None, Mapping.PORT_PRESERVING, 2, 3), None, "as far as is known: peers that we talk to"),
    (Standing(True, True, True, Mapping.PORT_PRESERVING, 2, 3), None, "nothing to do: others can come in"),
    (Standing(True, False, None, Mapping.PORT_PRESERVING, 2, 3), None, "met at relays"),
    (Standing(True, False, None, Mapping.PORT_PRESERVING, 0, 3), "no relay holds us", "forward the TCP port"),
    (Standing(True, False, None, Mapping.SYMMETRIC, 2, 3), "another port", "guessing ports"),
    (Standing(False, False, None, Mapping.SYMMETRIC, 2, 3), "UDP does not pass", "allow UDP"),
    (Standing(False, False, None, Mapping.PORT_PRESERVING, 2, 3), "UDP does not pass", "symmetric NATs"),
    (Standing(None, None, None, Mapping.UNKNOWN, 0, 1), None, "wait for a relay"),
]


@pytest.mark.parametrize(("standing", "leg", "line"), TABLE)
def test_table(standing, leg, line):
    found = failing_leg(standing)
    assert found is None if leg is None else leg in found
    assert line in advice(standing)


def test_there_is_always_one_line():
    known = (None, True, False)
    for udp, reachable, strangers, mapping, relays, connected in itertools.product(known, known, known, Mapping, (0, 2), (0, 5)):
        line = advice(Standing(udp, reachable, strangers, mapping, relays, connected))
        assert line
        assert "\n" not in line
