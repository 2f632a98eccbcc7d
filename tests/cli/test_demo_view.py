"""What the demo shows of a round."""

import pytest

from daemon.cli.demo_view import DemoView


def test_sentences_name_the_nodes_that_the_table_names(capsys: pytest.CaptureFixture[str]) -> None:
    view = DemoView(quiet=False)
    view.name_peers({"12D3KooWabcdefgh": "node0", "12D3KooWijklmnop": "node1"})
    members = [{"peer_id": "12D3KooWabcdefgh", "class": 0}, {"peer_id": "12D3KooWqrstuvwx", "class": 0}]
    row = {"class": 0, "rank": 1, "answer": "85", "votes": 2, "vote_weight": 2.2, "pair_wins_milli": 551, "score": 3.66}
    why = ["ijklmnop prefers its own answer", "abcdefgh, qrstuvwx err together"]
    view.ranking({"classes": [row], "members": members, "why": why})
    shown = capsys.readouterr().err
    assert "node0, qrstuvwx" in shown.splitlines()[1]
    assert "  - node1 prefers its own answer\n  - node0, qrstuvwx err together\n" in shown
