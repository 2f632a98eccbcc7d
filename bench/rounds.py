"""What a round costs beside the models' own time: seconds, messages and bytes.

    python -m bench.rounds [--rounds 9] [--only far|near|paused] [--json] [--check]

21 members over links of 80 ms each way, under a virtual clock: the machines are the project's own, the models take exactly one
second to answer and half a second to judge, and what is above that is coordination (processor time is not in it). Then seven real
daemons with the shipped models on loopback: the phases until the verdict in which no model works, and the whole round with them.
Then the same seven, of which some are stopped (SIGSTOP) while they judge: with a quorum left there is a verdict, else none.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from daemon.cli.demo import MODELS
from daemon.cli.demo_mesh import Mesh
from protocol.round import events as ev
from protocol.round.messages import QUORUM_MILLI, quorum
from protocol.round.transcript import replay
from swarmd import ClientError
from tests.sim.round_network import Behaviour, RoundNetwork, Weather

LINK_S = 0.08
ANSWER_S, JUDGE_S = 1.0, 0.5
FAR_LIMIT_MS, NEAR_LIMIT_MS = 1000.0, 150.0
IDLE_PHASES = ("join", "reveal", "ballot")
"""Phases before the verdict in which members send what they have: no engine works. In the others messages are not told apart from
work, so the whole cost is a little more than these."""

PAUSED = (2, 4)
"""Of seven: with two judges stopped there is a quorum of two thirds, with four there is none."""

PAUSED_JUDGE_MS = 8_000
"""How long judging may take there: a stopped process keeps its connections, so nothing else ends a round without a quorum."""

QUESTION, RIGHT = "add 47 38", "85"
ASK_SECONDS = 60.0


def far(members: int, link_s: float) -> dict[str, Any]:
    """One round under a virtual clock; `ms` is until the requester knows the verdict, less the models' time."""
    behaviour = Behaviour(
        answer=lambda number: f"answer {number % 3}",
        judge=lambda number, question: 1500,
        answer_s=(ANSWER_S, ANSWER_S),
        judge_s=(JUDGE_S, JUDGE_S),
    )
    network = RoundNetwork(1, members, Weather(latency=(link_s, link_s)), behaviour)
    network.run(network.header())
    closed = network.closed[(network.requester, "requester")]
    if not isinstance(closed.outcome, ev.Decided) or network.folded_at is None:
        raise click.ClickException("the simulated round came to no verdict")
    return {
        "members": members,
        "link_ms": link_s * 1000,
        "ms": round((network.folded_at - ANSWER_S - JUDGE_S) * 1000, 1),
        "closed_ms": round((network.closed_at[(network.requester, "requester")] - ANSWER_S - JUDGE_S) * 1000, 1),
        "messages": network.sent,
        "bytes": network.bytes,
        "transcript_messages": replay(closed.transcript).messages,
        "transcript_bytes": len(closed.transcript),
    }


def near(rounds: int) -> dict[str, Any]:
    """Rounds of seven daemons on loopback, medians. The first, in which connections are made, is left out."""
    rows: list[dict[str, Any]] = []
    with Mesh(list(MODELS), keep=False) as mesh:
        _form(mesh)
        client = mesh.nodes[0].client(ASK_SECONDS)
        for _ in range(rounds + 1):
            events = client.ask(QUESTION, strategy="rank", committee=len(mesh.nodes), timeout_s=ASK_SECONDS, max_tokens=16)
            rows.append([event.fields for event in events if event.name == "result"][-1]["round"])
    kept = rows[1:]
    idle = [sum(row["timings_ms"].get(phase, 0) for phase in IDLE_PHASES) for row in kept]
    return {
        "members": median(len(row["members"]) for row in kept),
        "rounds": len(kept),
        "without_models_ms": median(idle),
        "whole_ms": median(sum(row["timings_ms"].values()) for row in kept),
        "phases_ms": {name: median(row["timings_ms"].get(name, 0) for row in kept) for name in kept[0]["timings_ms"]},
        "transcript_messages": median(row["messages"] for row in kept),
        "transcript_bytes": median(row["bytes"] for row in kept),
    }


def paused(models: Sequence[str] = MODELS, stopped: Sequence[int] = PAUSED) -> list[dict[str, Any]]:
    """Rounds of daemons on loopback in which some processes are stopped (SIGSTOP) once judging has begun: a row for each."""
    with Mesh(list(models), keep=False, settings={"round.judge_timeout_ms": PAUSED_JUDGE_MS}) as mesh:
        _form(mesh)
        return [_paused_round(mesh, count) for count in stopped]


def _paused_round(mesh: Mesh, count: int) -> dict[str, Any]:
    victims = mesh.nodes[-count:]
    begun, shown, reason, frozen = time.monotonic(), None, "", False
    try:
        question = (
            mesh.nodes[0]
            .client(ASK_SECONDS)
            .ask(QUESTION, strategy="rank", committee=len(mesh.nodes), timeout_s=ASK_SECONDS, max_tokens=16)
        )
        for event in question:
            if event.name == "progress" and event.fields["phase"] == "judge" and not frozen:
                frozen = True
                for node in victims:
                    node.child.send_signal(signal.SIGSTOP)
            elif event.name == "result":
                shown = event.fields["round"]
    except ClientError as error:
        reason = str(error)
    finally:
        seconds = round(time.monotonic() - begun, 1)
        for node in victims:
            node.child.send_signal(signal.SIGCONT)
    judged = sum(row["judged"] for row in shown["members"]) if shown is not None else None
    _await_all(mesh)
    return {
        "members": len(mesh.nodes),
        "wanted": count,
        "stopped": count if frozen else 0,
        "verdict": shown is not None,
        "answer": shown["winner"] if shown is not None else None,
        "judged": judged,
        "quorum": quorum(len(mesh.nodes), QUORUM_MILLI),
        "seconds": seconds,
        "reason": reason,
    }


def _form(mesh: Mesh) -> None:
    mesh.start_bootstrap()
    mesh.start_others(lambda: None)
    _await_all(mesh)


def _await_all(mesh: Mesh) -> None:
    deadline = time.monotonic() + ASK_SECONDS
    while any(mesh.peers_known(node) < len(mesh.nodes) - 1 for node in mesh.nodes):
        if time.monotonic() > deadline:
            raise click.ClickException("the mesh did not form in time")
        time.sleep(0.2)


@click.command(help=__doc__)
@click.option("--rounds", default=9, type=click.IntRange(1, 100), help="Rounds on loopback.")
@click.option("--only", type=click.Choice(["far", "near", "paused"]), help="One part alone.")
@click.option("--json", "json_", is_flag=True, help="Print every figure.")
@click.option("--check", is_flag=True, help="Exit 1 with a line for each figure that misses its target.")
def main(rounds: int, only: str | None, json_: bool, check: bool) -> None:
    report: dict[str, Any] = {}
    if only in (None, "far"):
        report["far"] = far(21, LINK_S)
    if only in (None, "near"):
        report["near"] = near(rounds)
    if only in (None, "paused"):
        report |= {f"paused {row['wanted']}": row for row in paused()}
    short = shortfalls(report)
    if json_:
        click.echo(json.dumps(report | {"short": short}, indent=1))
    else:
        for name, figures in report.items():
            click.echo(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    for line in short:
        click.echo(line, err=True)
    if check and short:
        sys.exit(1)


def shortfalls(report: dict[str, Any]) -> list[str]:
    """A line for each figure that misses its limit."""
    short = []
    if "far" in report and report["far"]["ms"] >= FAR_LIMIT_MS:
        short.append(f"21 members over 80 ms: {report['far']['ms']} ms of coordination where {FAR_LIMIT_MS} are allowed")
    if "near" in report and report["near"]["without_models_ms"] >= NEAR_LIMIT_MS:
        near_ms = report["near"]["without_models_ms"]
        short.append(f"7 daemons on loopback: {near_ms} ms in phases without a model's work where {NEAR_LIMIT_MS} are allowed")
    for name, row in report.items():
        if not name.startswith("paused"):
            continue
        wanted = row["members"] - row["stopped"] >= row["quorum"]
        if row["verdict"] and ((row["judged"] or 0) < row["quorum"] or row["answer"] != RIGHT):
            short.append(f"{name}: a verdict of {row['judged']} judges for {row['answer']} where {row['quorum']} are needed")
        if wanted and not row["verdict"]:
            short.append(f"{name}: no verdict though {row['members'] - row['stopped']} members went on: {row['reason']}")
        if not row["stopped"]:
            short.append(f"{name}: nobody was stopped, as the round was not judged")
    return short


if __name__ == "__main__":
    main()
