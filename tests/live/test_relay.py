"""Two peers that listen nowhere serve each other through a third: answers, a ranked round and claims, all over its relay."""

import pytest

from tests.live.conftest import Starter, alive, until

pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_peers_behind_a_relay_serve_each_other_and_hold_rounds(starter: Starter) -> None:
    relay = starter("relay", "--no-model")
    hidden = [
        starter.start(name, "--model", model, "--join", relay.address, "--set", "listen=[]", listen="")
        for name, model in (("left", "tiny-add-mod"), ("right", "tiny-rev-conv"))
    ]
    left, right = [daemon.wait_ready() for daemon in hidden]
    assert "/p2p-circuit/" in left.address
    until(lambda: right.peer_id in alive(left) and left.peer_id in alive(right))
    for asker, server, model, question, answer in (
        (left, right, "tiny-rev-conv", "rev abcdef", "fedcba"),
        (right, left, "tiny-add-mod", "add 12 34", "46"),
    ):
        reply = until(lambda a=asker, m=model, q=question: _ok(a.cli("ask", q, "--model", m, "--json")))
        assert (reply["answer"], reply["peer_id"], reply["path"]) == (answer, server.peer_id, "relayed")
    ranked = left.cli("ask", "add 31 12", "--strategy", "rank", "--json")
    assert ranked.code == 0, ranked.err
    assert set(ranked.json["round"]["attested_by"]) == {left.peer_id, right.peer_id}
    until(lambda: left.client.reputation()["replica_hash"] == right.client.reputation()["replica_hash"])
    assert left.client.status()["relay"]["reservations"]


def _ok(ran: object) -> object:
    return ran.json if ran.code == 0 else None  # type: ignore[attr-defined]
