"""A private mesh of real daemons: invite, join, a stranger at the door, revocation over a relay, leave."""

import time

import pytest

from tests.live.conftest import Daemon, Ran, Starter, run_cli, until

pytestmark = [pytest.mark.live, pytest.mark.slow]

QUIET = ("--no-model", "--set", "nat.punch=false")
HIDDEN = (*QUIET, "--set", "listen=[]")


def folder(starter: Starter, name: str) -> str:
    return starter.arguments(name)[1]


def invited(starter: Starter, founder: Daemon, name: str, *how: str) -> Ran:
    """`name` joins by an invite that `founder` makes."""
    peer_id = run_cli("id", "--data-dir", folder(starter, name)).out.strip()
    made = founder.cli("invite", "create", *(how or ("--for", peer_id)), "--json")
    assert made.code == 0, made.err
    joined = run_cli("join", made.json["invite"], "--data-dir", folder(starter, name), "--json")
    assert joined.code == 0, joined.err
    assert joined.json["mesh"] == "home"
    return made


def connected(daemon: Daemon) -> set[str]:
    return {peer["peer_id"] for peer in daemon.client.peers() if peer.get("path")}


@pytest.fixture
def founder(starter: Starter) -> Daemon:
    assert run_cli("mesh", "create", "home", "--data-dir", folder(starter, "founder")).code == 0
    return starter("founder", *QUIET)


def test_a_revoked_member_is_out_on_every_path_and_a_stranger_never_in(starter: Starter, founder: Daemon) -> None:
    invited(starter, founder, "hidden")
    fallen_invite = invited(starter, founder, "fallen", "--once")
    hidden = starter.start("hidden", *HIDDEN, listen="")  # both can be met at the founder's relay alone
    fallen = starter.start("fallen", *HIDDEN, listen="")
    stranger = starter.start("stranger", *QUIET, "--join", founder.address)
    for daemon in (hidden, fallen, stranger):
        daemon.wait_ready()
    hidden_id, fallen_id = (str(daemon.client.status()["peer_id"]) for daemon in (hidden, fallen))

    until(lambda: {hidden_id, fallen_id} <= connected(founder))
    until(lambda: fallen.client.status()["mesh"]["private"]["provisional_until"] is None)
    until(lambda: fallen.cli("ping", hidden_id, "-c", "1", "--json").json.get("path", {}).get("kind") == "relayed")
    assert stranger.cli("status").code == 4
    assert any("private mesh" in reason for reason in stranger.client.status()["reasons"])
    assert stranger.peer_id not in connected(founder)

    began = time.monotonic()
    assert founder.cli("invite", "revoke", fallen_invite.json["id"]).code == 0
    until(lambda: fallen_id not in connected(founder) and fallen_id not in connected(hidden), 20)
    assert time.monotonic() - began < 60
    until(lambda: any("revoked" in reason for reason in fallen.client.status()["reasons"]))
    for other in (hidden_id, founder.peer_id):
        refused = fallen.cli("ping", other, "-c", "1", "--json")
        assert "revoked" in refused.json["error"] or "could not be reached" in refused.json["error"]
    assert connected(fallen) == set()
    assert [row["state"] for row in founder.client.invites()] == ["revoked", "used"]
    logs = founder.log + hidden.log + fallen.log
    assert fallen_invite.json["invite"][30:60] not in logs
