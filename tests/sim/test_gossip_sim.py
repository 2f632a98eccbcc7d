"""A seed of the cheap attacks on gossip; `make sim-mesh` plays all of them over ten."""

import pytest

from tests.sim.gossip_attacks import TARGETS, figures, g1_network_sybils, g10_score_reset, honest_world, speak
from tests.sim.gossip_world import World

pytestmark = pytest.mark.slow


def test_sybils_that_drop_everything_delay_nobody() -> None:
    row = g1_network_sybils(3, ratio=4)
    assert TARGETS["G1"][2](row), row


def test_a_score_is_kept_over_reconnections() -> None:
    assert TARGETS["G10"][2](g10_score_reset(3))


def test_a_seed_plays_the_same_twice() -> None:
    def played() -> tuple[int, dict[str, object]]:
        world: World = honest_world(5, 12, 6)
        speak(world, 20)
        world.run(25)
        return world.copies, figures(world, 2, 20)

    assert played() == played()
