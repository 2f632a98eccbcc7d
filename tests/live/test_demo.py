"""The demo itself, smaller than its default: what it prints is what happened, and nothing of it stays behind."""

import subprocess

import pytest

from tests.live.conftest import run_cli

pytestmark = [pytest.mark.live, pytest.mark.slow]


def daemons() -> set[str]:
    """Command lines of demo daemons and engines that run now."""
    listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
    return {line for line in listed.splitlines() if "swarmd-demo-" in line}


def test_the_demo_ranks_replays_and_cleans_up() -> None:
    before = daemons()
    ran = run_cli("demo", "--nodes", "3", "--json", timeout=110)
    assert ran.code == 0, ran.err
    report = ran.json
    assert report["ok"] is True
    assert report["replayed_same"] is True
    assert report["claims_same"] is True
    assert report["answer"] == report["round"]["winner"]
    assert len(report["round"]["attested_by"]) == 3
    assert 0 < report["peak_memory_mib"] < 3 * 300
    assert daemons() == before


def test_a_member_killed_in_mid_round_costs_at_most_the_result() -> None:
    ran = run_cli("demo", "--nodes", "4", "--kill", "1", "--json", timeout=110)
    report = ran.json
    assert ran.code == 0, ran.err
    assert report["killed"] == ["node1"]
    if report["round"] is None:
        assert report["error"]
    else:
        assert report["replayed_same"] is True
        assert report["round"]["winner"] == report["answer"]


def test_killing_everybody_but_the_asker_is_refused_beforehand() -> None:
    ran = run_cli("demo", "--nodes", "3", "--kill", "3")
    assert ran.code == 2
    assert "leaves nobody" in ran.err
