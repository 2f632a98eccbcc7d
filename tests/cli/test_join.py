"""`id`, `mesh`, `join`, `leave` and `invite`: which folder is in which mesh, and how mixing two of them is refused."""

import json
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from daemon.config import Base, load
from daemon.identity import load_or_create_key
from daemon.mesh_folder import MeshFolder
from dht.grants import Grant, Rights, sign_grant
from dht.invites import Invite, write_invite
from protocol.wire.envelope import public_bytes
from protocol.wire.ids import peer_id_of

Call = Callable[..., Any]
ISSUED = 1_700_000_000_000
FOREVER = 1 << 52
ADDRESS = "/ip4/192.0.2.1/tcp/4711/p2p/12D3KooWRpRMTtJfBF5tJFtLWhaB8XHSurC2eFeDhudVYzMT6DS3"


@pytest.fixture
def make_invite(swarmd: Call, home: Path) -> Callable[..., str]:
    """The text of an invite into the mesh "home", founded in the folder `founder`."""
    founder = home / "founder"
    assert swarmd("mesh", "create", "home", "--data-dir", founder).code == 0
    kept, key = MeshFolder(founder).read(), load_or_create_key(founder)
    assert kept is not None

    def make(recipient: Any = None, expires: int = FOREVER) -> str:
        bearer = None if recipient else Ed25519PrivateKey.from_private_bytes(bytes([9]) * 32)
        subject = recipient or peer_id_of(public_bytes(bearer))  # type: ignore[arg-type]
        rights = Rights.MEMBER if recipient else Rights.BEARER
        chain = (sign_grant(Grant(kept.mesh.id, bytes(16), subject, rights, ISSUED, expires), key),)
        secret = b"" if bearer is None else bearer.private_bytes_raw()
        return write_invite(Invite(kept.mesh, kept.key, chain, (ADDRESS,), secret), recipient, key, bytes([5]) * 32)

    return make


def test_an_invite_for_this_peer_is_joined_and_left_again(swarmd: Call, make_invite: Call, home: Path) -> None:
    own = swarmd("id", "--data-dir", home / "own").out.strip()
    assert swarmd("id", "--data-dir", home / "own", "--json").out == json.dumps(
        {"peer_id": own, "data_dir": str(home / "own")}, indent=2
    ) + "\n"
    text = make_invite(own)
    joined = swarmd("join", text, "--data-dir", home / "own", "--json")
    assert joined.code == 0
    assert json.loads(joined.out)["mesh"] == "home"
    secret = home / "own" / "mesh.json"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert "home" in swarmd("mesh", "show", "--data-dir", home / "own").out
    unasked = swarmd("leave", "--data-dir", home / "own")
    assert (unasked.code, "--yes" in unasked.err) == (2, True)
    assert swarmd("leave", "--yes", "--data-dir", home / "own").code == 0
    assert not secret.exists()
    assert swarmd("mesh", "create", "other", "--data-dir", home / "own").code == 5
    assert swarmd("join", text, "--data-dir", home / "own").code == 0


def test_an_invite_for_another_peer_names_both(swarmd: Call, make_invite: Call, home: Path) -> None:
    other = swarmd("id", "--data-dir", home / "other").out.strip()
    refused = swarmd("join", make_invite(other), "--data-dir", home / "own")
    assert refused.code == 5
    assert other in refused.err


@pytest.mark.parametrize("used", [True, False])
def test_a_folder_of_the_public_mesh_is_not_mixed_with_a_private_one(
    swarmd: Call, make_invite: Call, home: Path, used: bool
) -> None:
    swarmd("id", "--data-dir", home / "own")
    if used:
        (home / "own" / "epoch").write_text("5\n")
    refused = swarmd("join", make_invite(), "--data-dir", home / "own")
    assert refused.code == (5 if used else 0)
    assert ("public mesh" in refused.err) is used


def test_a_folder_is_in_one_mesh(swarmd: Call, make_invite: Call, home: Path) -> None:
    assert swarmd("join", make_invite(), "--data-dir", home / "own").code == 0
    assert swarmd("mesh", "create", "second", "--data-dir", home / "own").code == 5
    assert swarmd("join", make_invite(), "--data-dir", home / "own").code == 0  # the same mesh again


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["join"], 2, "--file"),
        (["join", "--file", "no-such-file"], 2, "no-such-file"),
        (["join", "hello"], 5, "swarmd-invite-"),
        (["join", "swarmd-invite-AAAA"], 5, "damaged"),
        (["mesh", "create", "Not A Name"], 2, "lower-case"),
        (["mesh", "show", "--mesh", "a", "--data-dir", "b"], 2, "--data-dir"),
        (["leave", "--yes"], 2, "no private mesh"),
        (["invite", "create"], 2, "--once"),
        (["invite", "create", "--for", "B2D"], 2, "swarmd id"),
        (["invite", "create", "--once", "--for", "x"], 2, "--once"),
        (["invite", "create", "--once", "--expires", "soon"], 2, "24h"),
        (["invite", "list"], 3, "swarmd start"),
        (["invite", "revoke", "abcd"], 3, "swarmd start"),
    ],
)
def test_bad_use_is_one_clear_sentence(swarmd: Call, arguments: list[str], code: int, says: str) -> None:
    result = swarmd(*arguments)
    assert result.code == code
    assert says in result.err
    assert result.out == ""


def test_an_expired_invite_is_refused(swarmd: Call, make_invite: Call, home: Path) -> None:
    refused = swarmd("join", make_invite(None, ISSUED + 1), "--data-dir", home / "own")
    assert refused.code == 5
    assert "expired" in refused.err
    assert not (home / "own" / "mesh.json").exists()


def test_an_invite_is_read_from_a_file_and_a_secret_on_the_command_line_is_remarked(
    swarmd: Call, make_invite: Call, home: Path
) -> None:
    (home / "invite").write_text(make_invite() + "\n")
    joined = swarmd("--data-dir", home / "own", "join", "--file", home / "invite")
    assert joined.code == 0
    assert f"swarmd start --data-dir {home / 'own'}" in joined.err
    assert "command line" not in joined.err
    assert "command line" in swarmd("join", make_invite(), "--data-dir", home / "own").err
    bound = make_invite(swarmd("id", "--data-dir", home / "own").out.strip())
    assert "command line" not in swarmd("join", bound, "--data-dir", home / "own").err


def test_invites_are_made_written_listed_and_revoked(ask_daemon: Call, server: Any, home: Path) -> None:
    row = {"id": "ab" * 16, "for": None, "once": True, "state": "open", "created": 0, "expires": 3_600_000, "used_by": None}
    server.answers[("POST", "/swarmd/v1/invites/create")] = row | {"invite": "swarmd-invite-secret"}
    server.answers[("GET", "/swarmd/v1/invites")] = {"invites": [row]}
    server.answers[("POST", "/swarmd/v1/invites/revoke")] = {"invite": "ab" * 16, "peer_id": None, "new": True}
    made = ask_daemon("invite", "create", "--once", "--expires", "15m")
    assert made.out == "swarmd-invite-secret\n"
    assert server.seen[-1][2] == {"recipient": None, "expires_s": 900.0, "may_invite": False}
    written = ask_daemon("invite", "create", "--once", "--out", home / "file", "--json")
    assert "secret" not in written.out + written.err
    assert stat.S_IMODE((home / "file").stat().st_mode) == 0o600
    asked = len(server.seen)
    assert ask_daemon("invite", "create", "--once", "--out", home / "file").code == 2  # never over another file
    assert len(server.seen) == asked  # nor is an invite made that nobody can read
    del server.answers[("POST", "/swarmd/v1/invites/create")]
    assert ask_daemon("invite", "create", "--once", "--out", home / "none").code == 1
    assert not (home / "none").exists()
    row["created"], row["expires"] = 0, int(time.time() * 1000) + 1_790_000
    assert re.search("abababab.* 30m", ask_daemon("invite", "list").out)  # what is left, not what it was given
    assert "abababab is revoked" in ask_daemon("invite", "revoke", "abab").err


def test_meshes_of_one_box_share_nothing(home: Path) -> None:
    one, two, main = (load(environ={}, base=Base(name)).config for name in ("one", "two", None))
    for what in ("data_dir", "socket_path", "listen"):
        assert len({getattr(config, what) for config in (one, two, main)}) == 3
    assert one.join == ()
    folder = home / ".config" / "swarmd"
    (folder / "meshes").mkdir(parents=True)
    (folder / "config.toml").write_text(f'join = ["{ADDRESS}"]')
    (folder / "meshes" / "two.toml").write_text('listen = ["/ip4/127.0.0.1/tcp/5"]')
    assert load(environ={}).config.join == (ADDRESS,)
    assert load(environ={}, base=Base("one")).config.join == ()  # the public mesh's bootstraps are nothing to a private one
    assert load(environ={}, base=Base("two")).config.listen == ("/ip4/127.0.0.1/tcp/5",)
