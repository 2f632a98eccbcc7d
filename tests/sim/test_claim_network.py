"""A few histories of fifty peers; `make sim-claims` plays a thousand."""

import pytest

from tests.sim.claim_network import play


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_honest_peers_end_equal_and_know_every_fork(seed: int) -> None:
    outcome = play(seed)
    assert outcome.good, f"SEED={seed} make sim-claims: {outcome}"
    assert outcome.claims > 100


def test_a_seed_is_one_history() -> None:
    assert play(7) == play(7)
