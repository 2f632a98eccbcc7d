"""The main job on a real mesh of three daemons: routed answers, ranked rounds, replay by another peer, claims that agree."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.live.conftest import Daemon, Starter, run_cli, until

pytestmark = [pytest.mark.live, pytest.mark.slow]


def test_ask_prints_the_answer_alone_on_stdout(mesh: list[Daemon]) -> None:
    ran = mesh[0].cli("ask", "add 47 38", "--model", "tiny-add-mod")
    assert (ran.code, ran.out) == (0, "85\n"), ran.err + mesh[0].log
    assert "answered by" in ran.err


def test_ask_reads_standard_input_and_prints_json(mesh: list[Daemon]) -> None:
    ran = mesh[0].cli("ask", "-", "--json", "--model", "tiny-add-mod", stdin="add 12 34\n")
    assert ran.code == 0
    assert ran.json["answer"] == "46"
    assert ran.json["attempts"] == [{"peer_id": ran.json["peer_id"], "outcome": "ok"}]


def test_ask_a_named_peer_and_a_named_model(mesh: list[Daemon]) -> None:
    by_peer = mesh[0].cli("ask", "add 12 30", "--peer", mesh[2].peer_id, "--json").json
    assert (by_peer["answer"], by_peer["peer_id"], by_peer["path"]) == ("42", mesh[2].peer_id, "direct")
    by_model = mesh[1].cli("ask", "add 12 30", "--model", "tiny-add-mod", "--json").json
    assert (by_model["peer_id"], by_model["model"]) == (mesh[2].peer_id, "tiny-add-mod")


def test_ask_for_a_model_that_nobody_serves(mesh: list[Daemon]) -> None:
    ran = mesh[0].cli("ask", "x", "--model", "no-such-model")
    assert ran.code == 1
    assert "no reachable peer serves no-such-model" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("name", ["--trust-remote-code", "../../etc/passwd", "a/b/c", "-m", "x y", "/abs/olute"])
def test_ask_refuses_names_that_smuggle(mesh: list[Daemon], name: str) -> None:
    ran = mesh[0].cli("ask", "x", f"--model={name}")
    assert ran.code == 1
    assert "is not a model's name" in ran.err


def test_a_prompt_over_the_limit_is_refused(mesh: list[Daemon]) -> None:
    ran = mesh[0].cli("ask", "-", stdin="x" * (257 << 10))
    assert ran.code == 5
    assert "bytes where" in ran.err


def test_a_ranked_round_is_attested_replayed_and_explained_by_another_peer(mesh: list[Daemon]) -> None:
    ran = mesh[0].cli("ask", "sort hgcabdfe", "--strategy", "rank", "--committee", "3", "--json")
    assert ran.code == 0, ran.err
    shown = ran.json["round"]
    assert len(shown["members"]) == len(shown["attested_by"]) == 3
    assert shown["winner"] == ran.json["answer"]
    assert {row["answer"] for row in shown["classes"]} >= {shown["winner"]}
    round_id = shown["round_id"]
    replays = [until(lambda d=daemon: [r for r in d.client.rounds() if r["round_id"] == round_id]) for daemon in mesh]
    assert {rows[0]["verdict_hash"] for rows in replays} == {shown["verdict_hash"]}
    verified = mesh[1].cli("verify", round_id, "--json")
    assert verified.code == 0
    assert verified.json["replayed_hash"] == shown["verdict_hash"]
    why = mesh[2].cli("why", round_id[:12])
    assert why.code == 0
    assert shown["winner"] in why.out
    assert round_id in mesh[2].cli("rounds").out


def test_a_transcript_with_one_changed_byte_does_not_verify(mesh: list[Daemon]) -> None:
    shown = mesh[0].cli("ask", "add 31 12", "--strategy", "rank", "--json").json["round"]
    path = mesh[0].folder / "data" / "rounds" / f"{shown['round_id']}.round"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    ran = mesh[0].cli("verify", shown["round_id"], "--json")
    assert ran.code == 1
    assert ran.json["ok"] is False
    assert ran.json["reason"]


def test_majority_counts_votes(mesh: list[Daemon]) -> None:
    ran = mesh[1].cli("ask", "add 20 22", "--strategy", "majority", "--json")
    assert ran.code == 0, ran.err
    shown = ran.json["round"]
    assert shown["strategy"] == "majority"
    assert shown["classes"][0]["votes"] == max(row["votes"] for row in shown["classes"])
    assert not any(member["judged"] for member in shown["members"]) or len(shown["classes"]) == 1


def test_two_peers_hold_the_same_claims_after_a_round(mesh: list[Daemon]) -> None:
    before = mesh[0].client.reputation()["claims"]
    mesh[0].cli("ask", "add 11 22", "--strategy", "rank")

    def same() -> bool:
        views = [daemon.client.reputation() for daemon in mesh]
        return views[0]["claims"] > before and len({view["replica_hash"] for view in views}) == 1

    until(same)
    claims = json.loads(mesh[1].cli("reputation", "--json").out)["claims_list"]
    assert "round_took_part" in {claim["kind"] for claim in claims}
    assert all(claim["issuer"] in {daemon.peer_id for daemon in mesh} for claim in claims)
    assert not any(claim["issuer"] == claim["subject"] for claim in claims)


def test_what_peers_did_becomes_scores_whose_evidence_adds_up(mesh: list[Daemon]) -> None:
    asker, asked = mesh[0], mesh[2].peer_id
    until(lambda: asker.cli("ask", "add 3 4", "--peer", asked).code == 0)

    def called() -> bool:
        lines = asker.cli("reputation", "why", asked, "--skill", "service", "--json").out
        return bool(lines) and any(line["kind"] == "call_served" and line["own"] for line in json.loads(lines)["evidence"])

    until(called)
    one = json.loads(asker.cli("reputation", "why", asked, "--skill", "service", "--json").out)
    (score,) = one["scores"]
    added = sum(line["adds_right_milli"] for line in one["evidence"])
    assert abs(added - score["right_milli"]) <= len(one["evidence"])
    assert score["mean_milli"] > 250
    assert score["own_milli"] > 0
    everybody = asker.cli("reputation").out
    assert asked in everybody
    assert "service" in everybody


def test_openai_client_routes_by_model_and_runs_rounds(mesh: list[Daemon]) -> None:
    client = openai.OpenAI(base_url=mesh[0].api_url, api_key="unused", max_retries=0, timeout=30)
    with client:
        names = {model.id for model in client.models.list()}
        assert {"tiny-all", "tiny-add-mod", "tiny-sort-bool", "swarm/rank"} <= names
        messages: Any = [{"role": "user", "content": "add 47 38"}]
        whole = client.chat.completions.with_raw_response.create(model="tiny-add-mod", messages=messages)
        assert whole.headers["x-swarmd-peer"] == mesh[2].peer_id
        assert whole.parse().choices[0].message.content == "85"
        streamed = client.chat.completions.create(model="tiny-add-mod", messages=messages, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == "85"
        ranked: Any = client.chat.completions.create(model="swarm/rank", messages=messages)
        assert ranked.choices[0].message.content == ranked.swarm["round"]["winner"]
        assert len(ranked.swarm["round"]["attested_by"]) == 3
        pieces: Any = list(client.chat.completions.create(model="swarm/rank", messages=messages, stream=True))
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == pieces[-1].swarm["round"]["winner"]
        assert pieces[-1].swarm["round"]["verdict_hash"]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody-serves-this", messages=messages)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_over_the_socket(mesh: list[Daemon]) -> None:
    body = json.dumps({"model": "tiny-add-mod", "messages": [{"role": "user", "content": "add 47 38"}]})
    command = ["curl", "-sS", "--unix-socket", str(mesh[1].socket), "http://x/v1/chat/completions"]
    done = subprocess.run([*command, "-H", "Content-Type: application/json", "-d", body], capture_output=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == "85"


def test_health_ready_and_metrics_answer_over_loopback(mesh: list[Daemon]) -> None:
    base = mesh[0].api_url.removesuffix("/v1")
    with urllib.request.urlopen(f"{base}/health", timeout=5) as reply:  # noqa: S310 - loopback
        assert json.load(reply) == {"status": "alive"}
    with urllib.request.urlopen(f"{base}/ready", timeout=5) as reply:  # noqa: S310 - loopback
        assert json.load(reply) == {"ready": True, "reasons": []}
    with urllib.request.urlopen(f"{base}/metrics", timeout=5) as reply:  # noqa: S310 - loopback
        text = reply.read().decode()
    assert 'swarmd_mesh_connections{kind="direct"} 2.0' in text
    assert not any(daemon.peer_id in text for daemon in mesh)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{base}/swarmd/v1/status", timeout=5)  # noqa: S310 - loopback
    with caught.value as refusal:
        assert refusal.code == 403


def test_every_read_verb_prints_json(mesh: list[Daemon]) -> None:
    assert mesh[0].cli("status", "--json").json["mesh"]["connected"] == 2
    assert mesh[1].cli("status", "--json").json["mesh"]["bootstrap"][0]["connected"] is True
    peers = mesh[0].cli("peers", "--json").json["peers"]
    assert {peer["path"]["kind"] for peer in peers} == {"direct"}
    assert {row["name"] for row in mesh[0].cli("models", "--json").json["models"]} >= {"tiny-all", "tiny-add-mod"}
    assert mesh[0].cli("config", "show", "--json").code == 0
    assert run_cli("version", "--json").code == 0


def test_claims_leave_one_daemon_as_a_file_and_enter_another(mesh: list[Daemon], starter: Starter, tmp_path: Path) -> None:
    mesh[0].client.probe(mesh[1].peer_id, count=1)
    until(lambda: mesh[0].client.reputation()["claims"])
    archive = str(tmp_path / "all.claims")
    assert mesh[0].cli("reputation", "export", archive).code == 0
    alone = starter("alone", "--no-model")
    first, again = (alone.cli("reputation", "import", archive, "--json").json for _ in range(2))
    assert first["inserted"] == again["duplicate"] > 0
    assert again["inserted"] == first["refused"] == again["refused"] == 0
    for checked in ([], [archive]):
        assert alone.cli("reputation", "check", *checked, "--json").json == {
            "checked": archive if checked else "the daemon's database", "ok": True, "claims": first["inserted"],
            "proofs": 0, "fault": "", "row": "", "offset": None,
        }  # fmt: skip
    second = str(tmp_path / "again.claims")
    assert alone.cli("reputation", "export", second).code == 0
    assert Path(second).read_bytes() == Path(archive).read_bytes()
