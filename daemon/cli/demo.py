"""`swarmd demo`: a real mesh on this box, one question answered by a ranking round, and a second peer that replays it."""

import time
from dataclasses import dataclass
from typing import Any

import click

from daemon.cli.common import FAILED, CommandFailed, json_option
from daemon.cli.demo_mesh import Mesh, Node
from daemon.cli.demo_view import DemoView
from daemon.cli.show import print_json
from swarmd import ApiError, ClientError

QUESTION = "add 47 38"
"""A sum on which the shipped models disagree, so that there is something to vote on and to judge; anyone can check it."""
MODELS = ("tiny-all", "tiny-add-mod", "tiny-rev-conv", "tiny-sort-bool", "tiny-add-rev", "tiny-mod-sort", "tiny-bool-conv")
"""The shipped models, the bootstrap's first. With more nodes than models they repeat."""

MESH_SECONDS = 45.0
SAME_SECONDS = 20.0
ASK_SECONDS = 45.0
MAX_NODES = 50


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person asked of the demo."""

    nodes: int
    question: str
    kill: int
    keep: bool
    as_json: bool


@click.command()
@click.option("--nodes", type=click.IntRange(2, MAX_NODES), default=len(MODELS), show_default=True, help="Daemons to start.")
@click.option("--ask", "question", default=QUESTION, show_default=True, help="The question for the committee.")
@click.option("--kill", type=click.IntRange(0), default=0, help="Kill this many members in the middle of the round.")
@click.option("--keep", is_flag=True, help="Leave the mesh running and print how to query it.")
@json_option
def demo(as_json: bool, **given: Any) -> int:
    """Start a mesh of real daemons here, ask it a question, and show the round that answers it.

    The shipped models are tiny. They know six skills: "add 47 38", "mod 83 7", "rev abcde", "sort gkcba", "bool (x&y)|!x",
    "conv 12 ft".
    """
    wish = Wish(as_json=as_json, **given)
    if wish.kill >= wish.nodes:
        raise click.UsageError(f"--kill {wish.kill} leaves nobody of {wish.nodes} nodes; the one that asks must live")
    with DemoView(quiet=as_json) as view, Mesh([MODELS[i % len(MODELS)] for i in range(wish.nodes)], wish.keep) as mesh:
        report = _run(wish, mesh, view)
        if as_json:
            print_json(report)
        elif wish.keep:
            _explain_kept(mesh)
        return 0 if report["ok"] else FAILED


def _run(wish: Wish, mesh: Mesh, view: DemoView) -> dict[str, Any]:
    started = time.monotonic()
    view.say(f"starting {wish.nodes} daemons in {mesh.folder}, each with its own key, data folder, engine and model")
    mesh.start_bootstrap()
    view.say(f"node0 is the bootstrap: {mesh.nodes[0].address}")
    mesh.start_others(lambda: view.starting([(node.name, node.model, bool(node.address)) for node in mesh.nodes]))
    view.settle()
    view.name_peers({str(node.client().status()["peer_id"]): node.name for node in mesh.nodes})
    _await_mesh(mesh, view)
    formed = time.monotonic() - started
    view.settle()
    view.say(f"the mesh is formed after {formed:.1f} s; node0 asks a committee of {wish.nodes}: {wish.question}")
    outcome = _ask(wish, mesh, view)
    report: dict[str, Any] = {
        "nodes": wish.nodes,
        "question": wish.question,
        "killed": [node.name for node in mesh.nodes if node.killed],
        "mesh_formed_s": round(formed, 2),
        "answer": outcome.get("answer"),
        "round": outcome.get("round"),
        "error": outcome.get("error"),
        "folder": str(mesh.folder) if wish.keep else None,
    }
    report |= _prove(mesh, view, report["round"])
    report["peak_memory_mib"] = round(mesh.peak_bytes() / 2**20)
    report["elapsed_s"] = round(time.monotonic() - started, 2)
    view.say(f"took {report['elapsed_s']:.1f} s; peak memory of all daemons and engines {report['peak_memory_mib']} MiB")
    # With members killed, an honest "no result" is a right outcome too; a wrong or unproved one never is.
    report["ok"] = bool(report["replayed_same"]) or (wish.kill > 0 and report["error"] is not None)
    return report


def _await_mesh(mesh: Mesh, view: DemoView) -> None:
    deadline = time.monotonic() + MESH_SECONDS
    expected = len(mesh.nodes) - 1
    while True:
        rows = [(node.name, node.model, mesh.peers_known(node), expected) for node in mesh.nodes]
        view.mesh(rows)
        if all(known >= expected for _, _, known, _ in rows):
            return
        if time.monotonic() > deadline:
            raise CommandFailed(f"the mesh did not form within {MESH_SECONDS:.0f} s; the logs are in {mesh.folder}")
        time.sleep(0.2)


def _ask(wish: Wish, mesh: Mesh, view: DemoView) -> dict[str, Any]:
    doomed = mesh.nodes[1 : 1 + wish.kill]
    committee = min(wish.nodes, MAX_NODES)
    events = mesh.nodes[0].client(ASK_SECONDS).ask(wish.question, strategy="rank", committee=committee, timeout_s=ASK_SECONDS)
    result: dict[str, Any] = {}
    try:
        for event in events:
            if event.name == "progress":
                view.round(event.fields)
                if doomed and event.fields.get("phase") not in ("join", "closed"):
                    for node in doomed:
                        mesh.kill(node)
                    view.settle()
                    view.say(f"killed in phase {event.fields.get('phase')}: {', '.join(node.name for node in doomed)}")
                    doomed = []
            elif event.name == "result":
                result = event.fields
    except ApiError as error:
        view.settle()
        view.say(f"no result: {error.message}")
        return {"error": error.message}
    view.ranking(result.get("round") or {})
    view.say(f"winner: {result.get('answer')}")
    return result


def _prove(mesh: Mesh, view: DemoView, shown: dict[str, Any] | None) -> dict[str, Any]:
    """Let a second peer replay the round from its own copy of the transcript, and compare two peers' claims."""
    proof: dict[str, Any] = {"replayed_same": None, "replayed_by": None, "claims_same": None, "claims": None}
    living = mesh.living()
    if shown is not None and len(living) > 1:
        second = living[1]
        view.say(f"verdict {shown['verdict_hash']}, attested by {len(shown['attested_by'])} members")
        replay = _until(lambda: second.client().verify(shown["round_id"]))
        proof["replayed_by"] = second.name
        proof["replayed_same"] = bool(replay and replay["ok"] and replay["replayed_hash"] == shown["verdict_hash"])
        said = "the same bits" if proof["replayed_same"] else f"NOT the same: {replay}"
        view.say(f"{second.name} replayed its own transcript to {said}")
    if len(living) > 1:
        proof |= _same_claims(living[0], living[1])
        view.say(f"{living[0].name} and {living[1].name} hold the same {proof['claims']} claims: {proof['claims_same']}")
    return proof


def _same_claims(first: Node, second: Node) -> dict[str, Any]:
    def compare() -> dict[str, Any] | None:
        ours, theirs = first.client().reputation(), second.client().reputation()
        same = ours["replica_hash"] == theirs["replica_hash"]
        return {"claims_same": True, "claims": ours["claims"]} if same else None

    return _until(compare) or {"claims_same": False, "claims": first.client().reputation()["claims"]}


def _until(ask: "Any") -> Any:
    """What `ask` gives once it gives something; None after SAME_SECONDS."""
    deadline = time.monotonic() + SAME_SECONDS
    while time.monotonic() < deadline:
        try:
            if given := ask():
                return given
        except ClientError:
            pass
        time.sleep(0.1)
    return None


def _explain_kept(mesh: Mesh) -> None:
    socket = mesh.nodes[0].socket
    click.echo(f"the mesh keeps running in {mesh.folder}; ask it with")
    click.echo(f'  swarmd ask --socket {socket} --strategy rank "sort gkcba"')
    click.echo(f"  swarmd status --socket {socket}")
    click.echo(f"  curl --unix-socket {socket} http://x/v1/models")
    click.echo("stop it and remove its files with")
    click.echo(f"  for s in {mesh.folder}/node*/run/api.sock; do swarmd stop --socket $s; done; rm -r {mesh.folder}")
