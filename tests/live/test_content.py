"""Model files between real daemons, by the commands that a user types."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.content.conftest import MIB, gguf
from tests.live.conftest import Starter

pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_seed_list_pull_push_and_remove(starter: Starter, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(gguf(5 * MIB))
    alice = starter.start("alice", "--no-model").wait_ready()
    leave = f"content.accept_from={alice.peer_id}"
    bob = starter.start("bob", "--no-model", "--join", alice.address, "--set", leave).wait_ready()

    seeded = alice.cli("models", "seed", str(model), "--json").json
    assert (seeded["name"], seeded["size"]) == ("model.gguf", 5 * MIB)
    address = seeded["address"]
    assert address in alice.cli("models", "list").out
    offered = bob.cli("models", "list", "--peers", "--json").json["files"]
    assert [(row["address"], row["peers"]) for row in offered] == [(address, [alice.peer_id])]

    pulled = bob.cli("models", "pull", address, "--json").json
    assert Path(pulled["path"]).read_bytes() == model.read_bytes()
    assert pulled["by_peer"] == {alice.peer_id: 5 * MIB}
    for arguments, code, said in [
        (("models", "pull", "xyz"), 2, "64 hexadecimal digits"),
        (("models", "pull", "0" * 64), 1, "shares 0000"),
        (("models", "seed", str(tmp_path / "none.gguf")), 5, "there is no file"),
        (("models", "push", "12D3KooWnobody", "model.gguf"), 2, "peer"),
        (("models", "push", alice.peer_id, "model.gguf"), 5, "content.accept_from"),
    ]:
        ran = bob.cli(*arguments)
        assert (ran.code, said in ran.err) == (code, True), (arguments, ran)

    assert bob.cli("models", "remove", address).code == 0
    assert not Path(pulled["path"]).exists()
    assert alice.cli("models", "push", bob.peer_id, "model.gguf").code == 0
    wait = "until [ -e $0 ]; do sleep 0.1; done"
    subprocess.run(["timeout", "20", "sh", "-c", wait, pulled["path"]], check=True)

    curl = ["curl", "-s", "--unix-socket", str(alice.socket), "http://x/swarmd/v1/content/seed", "-d", '{"path": "relative"}']
    reply = json.loads(subprocess.run([*curl, "-H", "content-type: application/json"], capture_output=True, check=True).stdout)
    assert reply["error"]["param"] == "path"
