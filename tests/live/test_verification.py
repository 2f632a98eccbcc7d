"""`swarmd ask --verify` against real daemons: an honest peer, and one that serves a 4-bit copy as the whole model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.quantize import quantize
from daemon.engine.catalog import models_folder
from tests.live.conftest import Daemon, Starter, until

pytestmark = [pytest.mark.live, pytest.mark.slow]

WHOLE = models_folder() / "tiny-all.gguf"

LIAR = """
import sys
from pathlib import Path
from daemon.engine import embedded
whole, sys.argv = Path(sys.argv[1]), ["swarmd", *sys.argv[2:]]
read_head, embedded.read_head = embedded.read_head, lambda path: read_head(whole)
class Lying(embedded.WeightsHash):
    def __init__(self, path): super().__init__(whole)
embedded.WeightsHash = Lying
from swarmd.__main__ import main
main()
"""
"""A daemon that hashes another file than it serves, and so offers that one's config digest."""


def start_liar(starter: Starter, name: str, copy: Path, join: str) -> Daemon:
    reading, writing = os.pipe()
    command = [sys.executable, "-P", "-c", LIAR, str(WHOLE), "start", *starter.arguments(name), "--api", "", "--listen"]
    command += ["/ip4/127.0.0.1/tcp/0", "--ready-fd", str(writing), "--set", f"engine.model={copy}", "--join", join]
    folder = starter._base / name
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writing,), cwd=folder)
    os.close(writing)
    daemon = Daemon(folder, child, reading)
    starter._daemons.append(daemon)
    return daemon.wait_ready()


@pytest.mark.skipif(not WHOLE.exists(), reason="the models have not been trained in this tree")
def test_a_copy_in_4_bits_is_refuted_and_the_whole_model_verified(starter: Starter, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(quantize(WHOLE.read_bytes(), "Q4_0"))
    asker = starter("asker", "--set", f"engine.model={WHOLE}")
    honest = starter("honest", "--set", f"engine.model={WHOLE}", "--join", asker.address)
    liar = start_liar(starter, "liar", copy, asker.address)
    until(lambda: sum(bool(row["model"]) for row in asker.client.peers()) == 2)
    assert len({digest for row in asker.client.models() for digest in row["config_digests"]}) == 1

    for peer, verdict in ((honest, "verified"), (liar, "refuted")):
        checked = asker.cli("ask", "rev abcdefgh", "--peer", peer.peer_id, "--verify", "--json").json["verification"]
        assert (checked["verdict"], checked["verifier"]) == (verdict, "local")
    shown = asker.cli("ask", "sort hgfedcba", "--peer", liar.peer_id, "--verify")
    assert "output refuted by this peer's own engine" in shown.err
    kinds = {claim["kind"]: claim["subject"] for claim in asker.client.reputation()["claims_list"]}
    assert kinds["output_verified"] == honest.peer_id
    assert kinds["output_refuted"] == liar.peer_id
    refused = asker.cli("ask", "rev ab", "--strategy", "rank", "--verify")
    assert refused.code == 2
