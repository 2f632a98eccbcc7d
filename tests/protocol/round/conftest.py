"""Fixtures of the round tests: a network of five members on which nothing has happened yet."""

import pytest

from tests.sim.round_network import Behaviour, RoundNetwork, Weather


@pytest.fixture
def calm_network() -> RoundNetwork:
    """Requester 0 and members 1 to 5; `header()` makes a valid header."""
    return RoundNetwork(7, 5, Weather(), Behaviour())
