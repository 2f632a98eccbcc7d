"""A smaller mesh under each attack of `make sim-mesh`, one seed; and that the network plays the same history twice."""

from pathlib import Path

import pytest

from tests.sim.dht_attacks import TARGETS, Mesh, d1_hide, d2_lie, d3_squat, d4_rollback, d5_flood, d6_poison, d7_bootstraps_gone
from tests.sim.run_mesh import rows_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh.grown(3, 80)


def holds(figures: dict[str, float]) -> bool:
    rows = rows_of({3: figures})
    assert any(row["limit"] is not None for row in rows)
    return all(row["holds"] is not False for row in rows)


def test_d1_hidden_keys_are_found(mesh: Mesh) -> None:
    """Three keys in three meshes, sixty lookups: one more or less that fails decides nothing."""
    figures = [d1_hide(one, [30]) for one in (mesh, Mesh.grown(8, 80), Mesh.grown(9, 80))]
    mean = {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}
    assert mean["D1 not found, %"] <= 5, figures
    assert mean["D1 forged records accepted"] == 0
    assert mean["D1 not found by plain Kademlia, %"] > 40, "the attack is one"


def test_d2_lies_about_a_key_change_nothing(mesh: Mesh) -> None:
    figures = d2_lie(mesh, [20])
    assert holds(figures), figures
    assert figures["D2 not found by plain Kademlia, %"] > 50, "the attack is one"


def test_d3_a_squatter_hides_nobody(mesh: Mesh) -> None:
    figures = d3_squat(mesh)
    assert holds(figures), figures
    assert figures["D3 places of one block in an answer"] <= 6


def test_d4_what_is_held_never_goes_back() -> None:
    figures = d4_rollback(3, 20_000)
    assert figures["D4 regressions"] == 0


def test_d5_a_flood_is_bounded_and_costs_nobody_his_place() -> None:
    figures = d5_flood(3, 20_000)
    assert holds(figures), figures
    assert figures["D5 signatures checked for 100,000"] <= 320


def test_d6_a_poisoned_restart_finds_the_honest_mesh(mesh: Mesh) -> None:
    assert holds(d6_poison(mesh, 4, 15))


def test_d7_a_stale_cache_is_enough(mesh: Mesh) -> None:
    assert holds(d7_bootstraps_gone(mesh, 3))


def test_one_seed_is_one_history() -> None:
    twice = [Mesh.grown(8, 40) for _ in range(2)]
    assert twice[0].net.purposes == twice[1].net.purposes
    assert [list(host.node.table) for host in twice[0].honest] == [list(host.node.table) for host in twice[1].honest]


def test_a_figure_beyond_its_limit_is_reported_and_the_makefile_offers_it() -> None:
    assert [row["holds"] for row in rows_of({1: dict.fromkeys(TARGETS, 1e9)})] == [False] * len(TARGETS)
    assert "tests.sim.run_mesh" in (Path(__file__).parents[2] / "Makefile").read_text()
