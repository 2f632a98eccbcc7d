"""What each verb prints and exits with."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from daemon.cli import COMMANDS

Call = Callable[..., Any]

PEER = "12D3KooWGRUfXzAkT8ZQJq9kSpzTnPzh5cQd1xh1jhm1HWQZDXpz"
EVIL = "\x1b]0;owned\x07\x1b[31mred\x1b[0m \u202egnp.exe\nnext"
STATUS = {
    "version": "0.1.0",
    "peer_id": PEER,
    "epoch": 7,
    "state": "ready",
    "reasons": [],
    "addresses": ["/ip4/127.0.0.1/tcp/4711/p2p/" + PEER],
    "uptime_s": 90.0,
    "engine": {"state": "ready", "reason": "", "model": "tiny", "engine": "xllamacpp", "version": "1", "slots": 4, "busy": 1},
    "mesh": {"peers": 3, "connected": 2, "bootstrap": []},
    "relay": {"reservations": []},
    "api": {"socket": "/s", "url": "http://127.0.0.1:4712/v1"},
    "counters": {},
}
ROUND = {
    "round_id": "r1",
    "strategy": "rank",
    "question": "2+2?",
    "state": "verdict",
    "reason": "",
    "requester": PEER,
    "created": 1.0,
    "members": [{"peer_id": PEER, "model": "tiny", "seat": 0, "sealed": True, "revealed": True, "judged": False, "class": 0}],
    "classes": [
        {"class": 1, "answer": "5", "votes": 1, "vote_weight": 1000, "pair_wins_milli": 250, "score": -3, "rank": 2},
        {"class": 0, "answer": "4", "votes": 4, "vote_weight": 4000, "pair_wins_milli": 1750, "score": 9, "rank": 1},
    ],
    "winner": 0,
    "confidence_milli": 930,
    "verdict_hash": "ab" * 32,
    "attested_by": [PEER],
    "timings_ms": {},
    "messages": 1,
    "bytes": 1,
    "why": ["four of five agreed"],
    "rationales": [{"peer_id": PEER, "preferred": 0, "over": 1, "text": "2 and 2\x1b[31m make 4"}],
}
READS = [
    (("status",), "GET", "/status", STATUS),
    (("peers",), "GET", "/peers", {"peers": []}),
    (("models",), "GET", "/models", {"models": []}),
    (("rounds",), "GET", "/rounds", {"rounds": []}),
    (("why", "r1"), "GET", "/why/r1", ROUND),
    (("verify", "r1"), "POST", "/rounds/r1/verify", {"round_id": "r1", "ok": True, "verdict_hash": "ab", "replayed_hash": "ab"}),
    (("reputation",), "GET", "/reputation", {"replica_hash": "ab", "claims": 0, "issuers": 0, "forks": [], "claims_list": []}),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "method", "path", "reply"), READS, ids=[read[0][0] for read in READS])
def test_every_read_verb_prints_the_replys_json(
    ask_daemon: Call, server: Any, arguments: Any, method: str, path: str, reply: Any
) -> None:
    server.answers[method, "/swarmd/v1" + path] = reply
    result = ask_daemon(*arguments, "--json")
    assert (result.code, json.loads(result.out), result.err) == (0, reply, "")


@pytest.mark.parametrize("arguments", [*(read[0] for read in READS), ("stop",), ("ask", "hi")])
def test_without_a_daemon_every_call_exits_3_and_says_how_to_start_it(swarmd: Call, home: Any, arguments: Any) -> None:
    result = swarmd("--socket", home / "absent", *arguments)
    assert (result.code, result.out) == (3, "")
    assert result.err == f"swarmd: no swarmd daemon answers on {home}/absent; start one with: swarmd start\n"


@pytest.mark.parametrize("arguments", [read[0] for read in READS])
def test_what_the_daemon_does_not_know_exits_1(ask_daemon: Call, arguments: Any) -> None:
    assert ask_daemon(*arguments) == (1, "", "swarmd: there is no such thing\n")


def test_status_for_people(ask_daemon: Call, server: Any) -> None:
    server.answers["GET", "/swarmd/v1/status"] = STATUS
    result = ask_daemon("status")
    assert result.code == 0
    for fact in ("ready", PEER, "2m", "tiny", "1 of 4 slots busy", "2 connected, 3 known", "http://127.0.0.1:4712/v1"):
        assert fact in result.out


def test_a_dead_bootstrap_is_degraded_with_its_reason_and_exits_4(ask_daemon: Call, server: Any) -> None:
    dead = {"address": "/ip4/192.0.2.1/tcp/1", "connected": False, "error": "the dial timed out"}
    reasons = ["no bootstrap peer answers"]
    server.answers["GET", "/swarmd/v1/status"] = {
        **STATUS, "state": "degraded", "reasons": reasons, "mesh": {"peers": 0, "connected": 0, "bootstrap": [dead]},
    }  # fmt: skip
    result = ask_daemon("status")
    assert result.code == 4
    assert "not ready: no bootstrap peer answers" in result.out
    assert "/ip4/192.0.2.1/tcp/1: the dial timed out" in result.out
    assert ask_daemon("status", "--json").code == 4
    assert ask_daemon("status", "-q") == (4, "", "")


def test_status_of_a_client_without_a_model(ask_daemon: Call, server: Any) -> None:
    server.answers["GET", "/swarmd/v1/status"] = {**STATUS, "engine": None}
    assert "none (client)" in ask_daemon("status").out


def test_peers_for_people(ask_daemon: Call, server: Any) -> None:
    path = {"kind": "relayed", "transport": "tcp", "address": "/x", "rtt_ms": 12.34, "age_s": 3}
    peers = [
        {
            "peer_id": PEER,
            "model": "tiny",
            "state": "alive",
            "path": path,
            "last_heard_s": 3.2,
            "epoch": 1,
            "slots": 4,
            "busy": 2,
        },
        {
            "peer_id": "other",
            "model": None,
            "state": "gone",
            "path": None,
            "last_heard_s": 7200,
            "epoch": 1,
            "slots": None,
            "busy": None,
        },
    ]
    server.answers["GET", "/swarmd/v1/peers"] = {"peers": peers}
    lines = ask_daemon("peers").out.splitlines()
    assert lines[0].split() == ["PEER", "STATE", "MODEL", "BUSY", "REACHED", "SINCE", "RTT", "HEARD"]
    assert lines[1].split() == [PEER, "alive", "tiny", "2/4", "relayed", "tcp", "3s", "12.3", "ms", "3s"]
    assert lines[2].split() == ["other", "gone", "-", "-", "-", "-", "-", "2h"]


def test_what_a_stranger_wrote_cannot_steer_the_terminal(ask_daemon: Call, server: Any) -> None:
    long = {"peer_id": "p", "model": "x" * 5000, "state": EVIL + "[bold]", "path": None}
    server.answers["GET", "/swarmd/v1/peers"] = {"peers": [long]}
    printed = ask_daemon("peers").out
    assert not set("\x1b\x07\u202e") & set(printed)
    assert "owned" not in printed
    assert "[bold]" in printed
    assert printed.count("x") < 300
    assert not set("\x1b\x07\u202e") & set(ask_daemon("peers", "--json").out)


def test_models_for_people(ask_daemon: Call, server: Any) -> None:
    model = {"name": "tiny", "peers": ["a", "b"], "config_digests": ["d"], "local": True, "slots_free": 3}
    server.answers["GET", "/swarmd/v1/models"] = {"models": [model]}
    assert ask_daemon("models").out.splitlines()[1].split() == ["tiny", "2", "3", "yes", "1"]


def test_rounds_and_why_for_people(ask_daemon: Call, server: Any) -> None:
    summary = {**ROUND, "winner": "4", "members": 5}
    server.answers["GET", "/swarmd/v1/rounds"] = {"rounds": [summary, {**summary, "state": "no_result", "reason": "no quorum"}]}
    listed = ask_daemon("rounds").out
    assert "2+2?" in listed
    assert "no quorum" in listed
    server.answers["GET", "/swarmd/v1/why/r1"] = {"what": "round", **ROUND}
    explained = ask_daemon("why", "r1")
    assert explained.code == 0
    ranking = explained.out.splitlines()
    assert ranking[2].split() == ["1", "4", "4", "4000", "1.750", "9"]
    assert ranking[3].split() == ["2", "5", "1", "1000", "0.250", "-3"]
    assert "because four of five agreed" in explained.out
    assert f'{PEER} on 0 over 1: "2 and 2 make 4"' in explained.out
    assert "verdict " + "ab" * 32 + ", confidence 0.930, attested by 1" in explained.out


def test_why_of_a_round_shows_every_weight_and_what_it_cost(ask_daemon: Call, server: Any) -> None:
    weights = {"draw_weight_milli": 900, "vote_weight_milli": 1100, "judge_weight_milli": -200, "favourite_weight_milli": 50}
    members: Any = ROUND["members"]
    cost = {"messages": 42, "bytes": 13698, "timings_ms": {"join": 21, "answer": 53}}
    shown = []
    for arm in ("rank", "fuse"):
        member = members[0] | weights | {"strength_milli": -847}
        server.answers["GET", "/swarmd/v1/why/r1"] = ROUND | cost | {"members": [member], "arm": arm, "what": "round"}
        out = ask_daemon("why", "r1").out
        assert "cost 42 messages, 13698 bytes; ms by phase: join 21, answer 53" in out
        shown.append(next(line.split() for line in out.splitlines() if line.startswith(PEER)))
    assert [row[6:] for row in shown] == [
        ["0.900", "1.100", "-0.200", "0.050", "-0.847"],
        ["0.900", "1.100", "-0.200", "0.050"],
    ]


def test_why_of_a_routed_question_for_people(ask_daemon: Call, server: Any) -> None:
    parts = {"reach_s": 0.05, "queue_s": 1.0, "share_s": 0.05, "engine_s": 0.12, "engine_from": "offered"}
    candidate = {"peer_id": "near", "model": "m", "path": "direct", "busy": 3, "slots": 2, "predicted_s": 1.22, "parts": parts}
    attempt = {"peer_id": "near", "reason": "best", "at_s": 0.0, "predicted_s": 1.22, "first_token_s": None, "outcome": "gone"}
    ruled_out = [{"peer_id": "far", "reason": "'peer.ignore' names it"}]
    reply = {"what": "ask", "ask_id": "a1", "model": "m", "outcome": "gone", "error": "the link was lost", "elapsed_s": 0.5}
    reply |= {"candidates": [candidate], "attempts": [attempt], "ruled_out": ruled_out, "why": ["the only candidate: near"]}
    server.answers["GET", "/swarmd/v1/why/last"] = reply
    lines = [line.split() for line in ask_daemon("why", "last").out.splitlines()]
    assert lines[0] == ["ask", "a1", "m", "gone", "0.500", "s"]
    assert lines[3] == ["near", "m", "direct", "3/2", "1.220", "0.050", "1.000", "0.050", "0.120", "offered"]
    assert ["near", "best", "0.000", "s", "1.220", "s", "-", "gone", "-"] in lines
    assert ["not", "far:", "'peer.ignore'", "names", "it"] in lines
    assert ask_daemon("why", "last", "--json").out.startswith("{")


def test_verify_exits_1_where_the_replay_differs(ask_daemon: Call, server: Any) -> None:
    reply = {
        "round_id": "r1",
        "ok": False,
        "verdict_hash": "ab",
        "replayed_hash": "cd",
        "reason": "a ballot's signature is wrong",
    }
    server.answers["POST", "/swarmd/v1/rounds/r1/verify"] = reply
    result = ask_daemon("verify", "r1")
    assert result.code == 1
    assert "DIFFERENT: a ballot's signature is wrong" in result.out


SCORE = {
    "peer": PEER, "skill": "arithmetic", "mean_milli": 812, "low_milli": 701, "high_milli": 923, "weight_milli": 640,
    "right_milli": 32_000, "wrong_milli": 6_500, "trials_milli": 38_500, "own_milli": 9_000, "witnesses": 4, "left_out": 1,
}  # fmt: skip
LINE = {
    "issuer": "i" * 40, "epoch": 1, "seq": 4, "kind": "probe_passed", "subject": PEER, "skill": "arithmetic", "value": 3,
    "evidence": "e", "time": 0.0, "hash": "h", "own": False, "counts_for": "arithmetic", "right": 3, "wrong": 0,
    "weight_milli": 225, "adds_right_milli": 675, "adds_wrong_milli": 0, "note": "agreed with us on 80 shared trials",
}  # fmt: skip
ONE_PEER = {
    "peer": PEER, "frozen_from": None, "witness": {"weight_milli": 900, "shared_trials": 80, "error_milli": 4},
    "scores": [SCORE], "evidence": [LINE, LINE | {"own": True, "counts_for": "service", "kind": EVIL}], "claims_list": [LINE],
    "claims": 1, "issuers": 1, "forks": [], "replica_hash": "ab",
}  # fmt: skip


def test_reputation_of_everybody(ask_daemon: Call, server: Any) -> None:
    reply = {"replica_hash": "ab", "claims": 7, "issuers": 2, "forks": [{"issuer": "liar", "epoch": 3}], "scores": [SCORE]}
    server.answers["GET", "/swarmd/v1/reputation"] = reply
    lines = [line.split() for line in ask_daemon("reputation").out.splitlines()]
    assert lines[-1] == [PEER, "arithmetic", "0.812", "0.701", "and", "0.923", "0.640", "38.5", "9.0", "4", "1"]
    assert ["frozen:", "liar", "signed", "two", "histories;"] in [line[:5] for line in lines]


@pytest.mark.parametrize("words", [("reputation", PEER), ("reputation", "show", PEER)])
def test_reputation_of_one_peer(ask_daemon: Call, server: Any, words: tuple[str, ...]) -> None:
    server.answers["GET", f"/swarmd/v1/reputation/{PEER}"] = ONE_PEER
    out = ask_daemon(*words).out
    assert "believed 0.900 of 1 on 80 shared trials" in out
    assert out.splitlines()[-1].split() == ["arithmetic", "0.812", "0.701", "and", "0.923", "0.640", "38.5", "9.0", "4", "1"]


@pytest.mark.parametrize("words", [("why", PEER), ("reputation", "why", PEER)])
def test_why_a_peer_has_its_reputation(ask_daemon: Call, server: Any, words: tuple[str, ...]) -> None:
    server.answers["GET", f"/swarmd/v1/reputation/{PEER}"] = ONE_PEER | {"frozen_from": 5}
    out = ask_daemon(*words).out
    assert "FROZEN" in out
    assert "\x1b" not in out
    line = next(line for line in out.splitlines() if "agreed with us" in line)
    for part in ("i" * 40, "probe_passed x3", "0.225", "+0.7 right", "agreed with us on 80 shared trials"):
        assert part in line
    assert "+0.0 wrong" not in out
    assert "this peer" in out


def test_one_skill_of_a_peer(ask_daemon: Call, server: Any) -> None:
    server.answers["GET", f"/swarmd/v1/reputation/{PEER}"] = ONE_PEER
    shown = json.loads(ask_daemon("reputation", "why", PEER, "--skill", "arithmetic", "--json").out)
    assert (len(shown["evidence"]), len(shown["scores"])) == (1, 1)
    refused = ask_daemon("reputation", "show", PEER, "--skill", "logic")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == "swarmd: nothing is known of this peer's logic; what is known: arithmetic\n"


def test_the_claims_of_one_peer(ask_daemon: Call, server: Any) -> None:
    server.answers["GET", f"/swarmd/v1/reputation/{PEER}"] = ONE_PEER
    last = ask_daemon("reputation", "claims", PEER).out.splitlines()[-1].split()
    assert last == ["i" * 40, "4", "probe_passed", PEER, "arithmetic", "3", "e"]


RESULT = {
    "answer": "4",
    "peer_id": PEER,
    "model": "tiny",
    "strategy": "route",
    "round": None,
    "round_id": None,
    "elapsed_s": 0.52,
}


def test_ask_streams_the_answer_to_stdout_and_the_rest_to_stderr(ask_daemon: Call, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = [
        ("token", {"text": "The "}),
        ("token", {"text": "sum\n\tis \x1b[2J4"}),
        ("result", RESULT),
    ]
    result = ask_daemon("ask", "2+2?")
    assert (result.code, result.out) == (0, "The sum\n\tis [2J4\n")
    assert result.err == f"answered by {PEER} (tiny) in 0.5 s\n"


def test_ask_shows_the_round(ask_daemon: Call, server: Any) -> None:
    progress = {"phase": "seal", "members": [], "sealed": 1, "revealed": 0, "judged": 0, "of": 5}
    events = [
        ("progress", progress),
        ("progress", progress),
        ("progress", {**progress, "sealed": 2}),
        ("result", {**RESULT, "round": ROUND}),
    ]
    server.answers["POST", "/swarmd/v1/ask"] = events
    result = ask_daemon("ask", "2+2?", "--strategy", "rank", "--committee", "5", "--timeout", "9", "--max-tokens", "8")
    assert (result.code, result.out) == (0, "4\n")
    assert result.err.count("seal: sealed 1/5, revealed 0/5, judged 0/5\n") == 1
    assert "seal: sealed 2/5" in result.err
    assert "because four of five agreed" in result.err
    assert server.seen[-1][2] == {"prompt": "2+2?", "strategy": "rank", "committee": 5, "timeout_s": 9.0, "max_tokens": 8}


def test_ask_as_json_prints_the_result_alone(ask_daemon: Call, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = [("token", {"text": "4"}), ("result", RESULT)]
    result = ask_daemon("ask", "2+2?", "--json")
    assert (result.code, json.loads(result.out)) == (0, RESULT)


def test_ask_reads_standard_input(ask_daemon: Call, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = [("result", RESULT)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("zwölf?\n".encode())))
    assert ask_daemon("ask", "-").code == 0
    assert server.seen[-1][2]["prompt"] == "zwölf?"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    assert ask_daemon("ask", "-") == (1, "", "swarmd: standard input is not UTF-8\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * (9 << 20))))
    assert ask_daemon("ask", "-") == (1, "", "swarmd: standard input has more than 8 MiB\n")


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (413, "prompt_too_long", 5),
        (429, "overloaded", 5),
        (403, "refused", 5),
        (503, "overloaded", 5),
        (502, "gone", 1),
        (400, "invalid_value", 2),
    ],
)
def test_refusals_exit_5_failures_1_wrong_values_2(ask_daemon: Call, server: Any, status: int, code: str, exit_code: int) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = (status, {"error": {"message": "no, because", "code": code}})
    assert ask_daemon("ask", "hi") == (exit_code, "", "swarmd: no, because\n")


def test_an_error_that_quotes_a_peer_is_one_harmless_line(ask_daemon: Call, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = (502, {"error": {"message": EVIL, "code": "gone"}})
    result = ask_daemon("ask", "hi")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert not set("\x1b\x07\u202e") & set(result.err)


def test_a_stream_that_fails_after_the_first_token_exits_1(ask_daemon: Call, server: Any) -> None:
    server.answers["POST", "/swarmd/v1/ask"] = [("token", {"text": "4"}), ("error", {"code": "gone", "message": "the peer left"})]
    result = ask_daemon("ask", "hi")
    assert (result.code, result.out, result.err) == (1, "4", "swarmd: the peer left\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask",), ("ask", ""), ("ask", "  "), ("ask", "x", "--committee", "5"),
        ("ask", "x", "--committee", "1", "--strategy", "rank"), ("ask", "x", "--model", "m", "--strategy", "rank"),
        ("ask", "x", "--strategy", "vote"), ("ask", "x", "--peer", "p", "--strategy", "rank"), ("ask", "x", "--timeout", "0"),
        ("verify",), ("why",), ("nothing",), ("status", "--nothing"), ("completion", "tcsh"),
        ("start", "--no-model", "--model", "x"),
        ("start", "--no-model", "--engine-url", "http://x"), ("--socket", "x/other.sock", "start"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_2(swarmd: Call, arguments: Any) -> None:
    result = swarmd(*arguments)
    assert (result.code, result.out) == (2, "")
    assert "Error: " in result.err


def test_stop_waits_until_the_daemon_is_gone(swarmd: Call, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    polls = []

    def end(delay: float) -> None:
        polls.append(delay)
        if len(polls) == 3:
            os.unlink(str(server.server_address))

    monkeypatch.setattr("time.sleep", end)
    server.answers = {("POST", "/swarmd/v1/stop"): {"stopping": True}, ("GET", "/swarmd/v1/status"): {"state": "draining"}}
    assert swarmd("stop", "--socket", str(server.server_address)) == (0, "", "stopped\n")
    assert len(polls) == 3


def test_stop_that_takes_too_long_says_so(ask_daemon: Call, server: Any) -> None:
    server.answers = {("POST", "/swarmd/v1/stop"): {"stopping": True}, ("GET", "/swarmd/v1/status"): {"state": "draining"}}
    assert ask_daemon("stop", "--timeout", "0") == (1, "", "swarmd: the daemon is still finishing what it was doing after 0 s\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_explains_itself(swarmd: Call, name: str) -> None:
    import importlib.util

    if importlib.util.find_spec(COMMANDS[name][0].partition(":")[0]) is None:
        pytest.fail(f"{COMMANDS[name][0]} is missing")
    result = swarmd(name, "--help")
    assert result.code == 0
    assert f"Usage: swarmd {name}" in result.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(swarmd: Call, shell: str) -> None:
    result = swarmd("completion", shell)
    assert result.code == 0
    assert "_SWARMD_COMPLETE" in result.out


def test_version(swarmd: Call) -> None:
    assert swarmd("version").out.startswith("swarmd 0.1.0 (Python 3.")
    assert json.loads(swarmd("version", "--json").out)["libp2p"] == "0.8.1"


def test_config_show_and_validate(swarmd: Call, home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMD_ENGINE_THREADS", "3")
    shown = swarmd("config", "show", "--origin", "--data-dir", "x")
    assert shown.code == 0
    lines = {line.split()[0]: line for line in shown.out.splitlines()}
    assert lines["engine.threads"].endswith("3  (environment SWARMD_ENGINE_THREADS)")
    assert lines["data_dir"].endswith(f"{home}/x  (command line)")
    assert lines["relay.serve"].endswith("true  (default)")
    assert json.loads(swarmd("config", "show", "--json").out)["engine.threads"] == 3
    assert json.loads(swarmd("config", "show", "--origin", "--json").out)["settings"]["engine.slots"] == {
        "value": 4,
        "origin": "default",
    }
    assert swarmd("config", "validate") == (0, "", "the configuration is valid\n")
    monkeypatch.setenv("SWARMD_LISTEN", "nowhere")
    refused = swarmd("config", "validate")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "swarmd: listen (environment SWARMD_LISTEN): 'nowhere' is not a multiaddr: unknown protocol: nowhere\n"


def test_the_socket_follows_from_the_data_folder(swarmd: Call, home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    mine, usual = swarmd("status", "--data-dir", "mine").err, swarmd("status").err
    assert f"answers on {home}/swarmd/api.sock;" in usual
    assert f"answers on {home}/swarmd/" in mine
    assert mine != usual
    assert swarmd("--data-dir", home / "mine", "status").err.partition(";")[0] == mine.partition(";")[0]


NET = {
    "udp": True, "ipv4": True, "ipv6": None, "seen_as": ["/ip4/203.0.113.9/tcp/4711"], "mapping_tcp": "port_preserving",
    "mapping_udp": None, "reachable": False, "reachable_port": None, "reachable_age_s": 61.0, "reachable_asked": 2,
    "relays": [{"peer_id": PEER, "address": "/ip4/192.0.2.7/tcp/4711", "held": True, "rtt_ms": 40.0, "expires_s": 3600}],
    "relaying": {"serving": False}, "failing_leg": None, "advice": "nothing to do",
}  # fmt: skip


def test_netcheck_for_people_prints_unknown_as_unknown(ask_daemon: Call, server: Any) -> None:
    server.answers["GET", "/swarmd/v1/netcheck"] = NET
    ran = ask_daemon("netcheck")
    assert ran.code == 0
    facts = ("UDP             works", "IPv6            unknown", "UDP mapping     unknown", "TCP mapping     port preserving")
    assert [fact for fact in facts if fact not in ran.out] == []
    assert "no: none of 2 that tried came in; 1m ago" in ran.out
    assert "/ip4/192.0.2.7/tcp/4711 40.0 ms, for 1h more" in ran.out
    server.answers["GET", "/swarmd/v1/netcheck"] = {}
    assert "unknown: nobody was asked yet" in ask_daemon("netcheck").out


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ({"state": "off"}, "off (nat.port_mapping)"),
        ({"state": "idle"}, "not needed, as far as is known"),
        ({"state": "none", "reason": "pcp: no answer"}, "the gateway grants none (pcp: no answer); UPnP was not tried"),
        ({"state": "double_nat"}, "another NAT follows"),
        ({"state": "unproved", "method": "nat_pmp", "tcp_port": 4711}, "TCP 4711 by NAT-PMP, no end known; no peer came in"),
        (
            {"state": "active", "method": "upnp", "tcp_port": 1, "udp_port": 2, "proved": ["tcp"], "ends_s": 60},
            "TCP 1, UDP 2 by UPnP",
        ),
        ({"state": "of a later version"}, "unknown"),
    ],
)
def test_netcheck_says_where_port_mapping_stands(ask_daemon: Call, server: Any, known: dict[str, Any], line: str) -> None:
    server.answers["GET", "/swarmd/v1/netcheck"] = NET | {"port_mapping": known}
    (shown,) = [row for row in ask_daemon("netcheck").out.splitlines() if row.startswith("port mapping")]
    assert line in shown


def test_netcheck_exits_with_4_where_something_is_in_the_way(ask_daemon: Call, server: Any) -> None:
    server.answers["GET", "/swarmd/v1/netcheck"] = NET | {"failing_leg": "no peer is connected"}
    assert ask_daemon("netcheck").code == 4
    assert json.loads(ask_daemon("netcheck", "--json").out)["failing_leg"] == "no peer is connected"


def ping_reply(kind: str) -> dict[str, Any]:
    path = {"kind": kind, "transport": "tcp", "address": "/x", "rtt_ms": 40.0, "age_s": 1, "relayed_ms": 231.0}
    return {"peer_id": PEER, "rtt_ms": 41.5, "path": path}


def test_ping_until_direct(ask_daemon: Call, server: Any) -> None:
    server.answers["GET", "/swarmd/v1/peers"] = {"peers": [{"peer_id": PEER}, {"peer_id": "12D3KooWother"}]}
    server.answers["POST", f"/swarmd/v1/ping/{PEER}"] = ping_reply("relayed")
    ran = ask_daemon("ping", PEER[-8:], "-c", "2", "-i", "0.01", "--until-direct")
    assert (ran.code, ran.out.count("41.5 ms")) == (4, 2)
    server.answers["POST", f"/swarmd/v1/ping/{PEER}"] = ping_reply("punched")
    ran = ask_daemon("ping", PEER, "-c", "9", "--until-direct")
    assert (ran.code, ran.out.count("41.5 ms")) == (0, 1)
    assert "direct after 231 ms" in ran.out
    unknown = ask_daemon("ping", "12D3KooW")
    assert (unknown.code, "give more of the id" in unknown.err) == (1, True)


LOOKED_UP = {
    "key": "/swarmd/model/tiny", "verdict": "found", "reason": "", "providers": [PEER], "ms": 12.5, "paths": 4, "agreeing": 4,
    "asked": 9, "failed": 1, "hops": 2, "region_scanned": False, "mesh_estimate": 312, "table": 80,
    "steps": [{"path": 0, "hop": 1, "peer_id": PEER, "bits": 5, "outcome": "answered", "useful": True, "ms": 1.5}],
}  # fmt: skip


@pytest.mark.parametrize(("verdict", "code"), [("found", 0), ("absent", 4), ("failed", 1)])
def test_lookup_shows_its_paths_and_exits_by_its_verdict(ask_daemon: Call, server: Any, verdict: str, code: int) -> None:
    server.answers["GET", "/swarmd/v1/lookup/acme/tiny"] = LOOKED_UP | {"verdict": verdict}
    ran = ask_daemon("lookup", "acme/tiny")
    assert ran.code == code
    assert PEER[-8:] in ran.out
    assert "4 of 4 end at the same peers, 2 hops away" in ran.out
    assert "about 312 peers" in ran.out
    assert json.loads(ask_daemon("lookup", "acme/tiny", "--json").out)["verdict"] == verdict


@pytest.mark.parametrize(
    ("arguments", "code", "name"),
    [
        (["status", "--json"], 3, "no_daemon"),
        (["ask", "--json", "--foo", "x"], 2, "usage"),
        (["config", "show", "--json", "--config", "nowhere"], 2, "configuration"),
        (["models", "pull", "--json", "zz"], 2, "usage"),
    ],
)
def test_a_failure_is_json_where_json_was_asked_for(swarmd: Call, arguments: list[str], code: int, name: str) -> None:
    result = swarmd(*arguments)
    error = json.loads(result.out)["error"]
    assert (result.code, error["code"], error["exit_code"]) == (code, name, code)
    assert error["message"] in result.err
    assert swarmd(*(word for word in arguments if word != "--json"), "--", "--json").out == ""


def test_the_api_code_of_a_refusal_is_in_its_json(ask_daemon: Call, server: Any) -> None:
    refusal = {"error": {"message": "'max_tokens': expected int <= 4096", "code": "invalid_value"}}
    server.answers[("POST", "/swarmd/v1/ask")] = (400, refusal)
    result = ask_daemon("ask", "x", "--json")
    assert (result.code, json.loads(result.out)["error"]["code"]) == (2, "invalid_value")


def test_who_names_another_daemon_is_told_how_to_start_that_one(swarmd: Call) -> None:
    assert swarmd("status", "--mesh", "home").err.endswith("start one with: swarmd start --mesh home\n")
    assert swarmd("--data-dir", "my data", "peers").err.endswith("start one with: swarmd start --data-dir 'my data'\n")


@pytest.mark.parametrize("redirected", [">/dev/full", ">&-", "2>/dev/full", ">&- 2>&-"])
def test_output_that_cannot_be_written_gives_no_traceback(redirected: str) -> None:
    command = f"{sys.executable} -P -m swarmd version {redirected}"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    full = redirected == ">/dev/full"
    assert ended.returncode == int(full)
    assert ended.stderr == ("swarmd: the output cannot be written: No space left on device\n" if full else "")


def test_an_engine_that_never_was_ready_has_no_name_and_no_slots(ask_daemon: Call, server: Any) -> None:
    engine = {"state": "restarting", "reason": "nothing listens", "model": None, "engine": None, "slots": 0, "busy": 0}
    server.answers["GET", "/swarmd/v1/status"] = STATUS | {"state": "degraded", "engine": engine}
    lines = {line.split()[0]: line.split()[1:] for line in ask_daemon("status").out.splitlines()}
    assert (lines["model"], lines["engine"]) == (["-"], ["restarting"])
