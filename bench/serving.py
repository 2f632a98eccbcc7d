"""What swarmd adds to an engine: one node away, through one daemon, and at its local gateway. Decides what is compared.

    python -m bench.serving [--quick] [--json] [--check]
    python -m bench.serving --engine-url http://127.0.0.1:8000/v1       before an engine that runs already, such as a vLLM

One node away: the embedded engine with a shipped model, asked on its own socket and through two daemons, alternating; the same
request, the same client; and once more with an engine that speaks at a GPU's pace and needs no CPU. The gateway: requests are
sent at fixed times whatever came back, and timed from when they were due.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles

import click
import trio

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.daemons import ENGINE_KEY, ROOT, Processes, StartError, only_child
from bench.http_client import Kept, WrongReplyError, request
from bench.http_rate import at_times
from bench.one_away import (
    COMPLETIONS,
    NO_GOLD,
    ROOM,
    SLOTS,
    Engine,
    Figure,
    Sides,
    asked_stream,
    served_model,
    stream_for,
)
from daemon.engine.interface import EngineError
from daemon.engine.url_engine import checked_url, read_key

MODEL = ROOT / "models" / "tiny-sort-bool.gguf"
PROMPT = "s" * 30
"""No task of that model: at temperature 0 its answer to it never ends, so that every stream has `ANSWER_TOKENS`."""

LONG_ANSWER = "Count from one to one thousand, in words, and leave nothing out."
"""What an engine of somebody's own is asked: any chat model answers it with more than `ANSWER_TOKENS`."""

CONTEXT_TOKENS = 128
ANSWER_TOKENS = 80
STREAMS = (1, 16, 64)
RATE = 300
GATEWAY_CONNECTIONS = 64
FLOOR_STREAMS = 4
FLOOR_TOKENS = 4096
SHORT_TOKENS = 4
PACED_STREAMS = 16
PACED_RATE = 60
"""Tokens per second of each stream: what a GPU gives to one of many."""


@click.command()
@click.option("--rounds", type=click.IntRange(min=3), default=7, show_default=True, help="Rounds whose median counts.")
@click.option("--seconds", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Time of one load on one side.")
@click.option("--quick", is_flag=True, help="3 rounds of 0.5 s: whether it works, roughly how fast.")
@click.option("--engine-url", metavar="URL", help="Measure before this OpenAI-compatible server instead, which runs already.")
@click.option("--engine-key-file", type=click.Path(path_type=Path), help="File (mode 0600) with the key that it asks for.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the figures as JSON instead of the table.")
@click.option("--check", is_flag=True, help="Exit 1, naming each figure, where one is short of its target.")
def main(  # noqa: PLR0913 - the command's options
    rounds: int,
    seconds: float,
    quick: bool,
    engine_url: str | None,
    engine_key_file: Path | None,
    json_wanted: bool,
    check: bool,
) -> None:
    """Measure what serving through swarmd costs beside the engine alone."""
    if quick:
        rounds, seconds = 3, 0.5
    if engine_key_file is not None and engine_url is None:
        raise click.UsageError("--engine-key-file goes with --engine-url")
    try:
        figures = _own_engines(rounds, seconds) if engine_url is None else _before(engine_url, engine_key_file, rounds, seconds)
    except* (StartError, WrongReplyError, EngineError, OSError) as errors:
        raise click.ClickException(_first(errors)) from None
    if json_wanted:
        run = {"rounds": rounds, "seconds": seconds, "cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}
        click.echo(json.dumps({**run, "figures": [{**asdict(figure), "met": figure.met} for figure in figures]}, indent=1))
    else:
        click.echo(_table(figures, rounds, seconds, engine_url))
    missed = [figure for figure in figures if not figure.met] if check else []
    for figure in missed:
        click.echo(f"short: {figure.name}: {figure.value:,.2f} {figure.unit}, target {figure.target}", err=True)
    if missed:
        sys.exit(1)


def _own_engines(rounds: int, seconds: float) -> list[Figure]:
    figures = []
    for measure in (_one_node_away, _one_node_away_paced, _one_daemon):
        with Processes() as processes:
            figures += trio.run(measure, processes, rounds, seconds)
    return figures


def _before(url: str, key_file: Path | None, rounds: int, seconds: float) -> list[Figure]:
    with Processes() as processes:
        return trio.run(_one_node_away_before, processes, (url, key_file), rounds, seconds)


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _table(figures: list[Figure], rounds: int, seconds: float, engine_url: str | None) -> str:
    width = max(len(figure.name) for figure in figures)
    shared = "Client, daemons and engine" if engine_url is None else "Client and daemons"
    lines = [
        f"Medians of {rounds} alternating rounds of {seconds:g} s; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}. "
        f"{shared} share the machine."
    ]
    for figure in figures:
        value = f"{figure.value:,.0f}" if figure.value >= 1000 else f"{figure.value:,.2f}"
        lines.append(f"{figure.name.ljust(width)}  {value:>10}  {figure.unit:8}  {figure.target}")
    return "\n".join(lines)


# One node away.


async def _one_node_away(processes: Processes, rounds: int, seconds: float) -> list[Figure]:
    engine_pid, engine = processes.engine(MODEL, SLOTS, CONTEXT_TOKENS)
    server = processes.daemon("server", "--model", str(MODEL), *ROOM, *NO_GOLD)
    caller = processes.daemon("caller", "--no-model", "--join", server.address, *ROOM, *NO_GOLD)
    model = await served_model(caller)
    pids = {"engine": engine_pid, "its engine": only_child(server.pid), "serving daemon": server.pid, "asking daemon": caller.pid}
    sides = Sides(Engine(engine, model, ENGINE_KEY), caller, model, asked_stream(PROMPT, ANSWER_TOKENS), pids)
    figures = []
    for streams in STREAMS:
        await sides.measure(streams, rounds, seconds)
        figures += sides.figures(streams)
        figures += sides.cpu_figures(streams, "engine", ("engine", "client"))
        figures += sides.cpu_figures(streams, "swarmd", ("its engine", "serving daemon", "asking daemon", "client"))
    return figures


async def _one_node_away_before(
    processes: Processes, where: tuple[str, Path | None], rounds: int, seconds: float
) -> list[Figure]:
    """The engine of somebody's own, by URL and key file: its process is not ours to look into."""
    url, key_file = where
    at = checked_url(url, "" if key_file is None else read_key(key_file))
    if at.tls:
        raise EngineError("the engine's URL begins with http:// here: this client speaks no TLS")
    async with await Kept.connect((at.host, at.port)) as connection:
        listed = await connection.ask(request("GET", f"{at.prefix}/v1/models", key=at.key, keep=True))
    try:
        model = str(json.loads(listed)["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise EngineError("the engine lists no model under /v1/models") from None
    engine = Engine((at.host, at.port), model, at.key, at.prefix)
    key = () if key_file is None else ("--set", f"engine.key_file={key_file.resolve()}")
    server = processes.daemon("server", "--engine-url", url, *key, *ROOM, *NO_GOLD)
    caller = processes.daemon("caller", "--no-model", "--join", server.address, *ROOM, *NO_GOLD)
    pids = {"serving daemon": server.pid, "asking daemon": caller.pid}
    sides = Sides(engine, caller, await served_model(caller), asked_stream(LONG_ANSWER, ANSWER_TOKENS), pids)
    figures = []
    for streams in STREAMS:
        await sides.measure(streams, rounds, seconds)
        figures += sides.figures(streams) + sides.cpu_figures(streams, "swarmd", (*pids, "client"))
    return figures


async def _one_node_away_paced(processes: Processes, rounds: int, seconds: float) -> list[Figure]:
    """The overhead without the contest for the CPUs: the engine takes next to none, as one on a GPU does."""
    url = processes.program("bench.peers.instant_engine", str(PACED_RATE))
    host, _, port = url.removeprefix("http://").removesuffix("/v1").rpartition(":")
    server = processes.daemon("server", "--engine-url", url, *ROOM, *NO_GOLD)
    caller = processes.daemon("caller", "--no-model", "--join", server.address, *ROOM, *NO_GOLD)
    model = await served_model(caller)
    pids = {"serving daemon": server.pid, "asking daemon": caller.pid}
    sides = Sides(Engine((host, int(port)), model), caller, model, asked_stream(PROMPT, ANSWER_TOKENS), pids)
    await sides.measure(PACED_STREAMS, rounds, seconds)
    many = f"{PACED_STREAMS} streams of {PACED_RATE}/s, engine without CPU"
    return [
        Figure(f"{many}: added to the first token", sides.added, "ms"),
        Figure(f"{many}: one node away", sides.rate["swarmd"], "tokens/s"),
        Figure(f"{many}: throughput kept", sides.kept, "%"),
        *(Figure(f"{many}: CPU, {name}", sides.cpu["swarmd"][name], "us/token") for name in pids),
    ]


# One daemon before an engine that answers at once.


async def _one_daemon(processes: Processes, rounds: int, seconds: float) -> list[Figure]:
    url = processes.program("bench.peers.instant_engine")
    daemon = processes.daemon("gateway", "--engine-url", url, "--set", f"engine.slots={SLOTS}", *NO_GOLD)
    model = await served_model(daemon)
    turns = [{"role": "user", "content": "hello"}]
    short = json.dumps({"model": model, "messages": turns, "max_tokens": SHORT_TOKENS}).encode()
    stream = {"max_tokens": FLOOR_TOKENS, "stream": True, "stream_options": {"include_usage": True}}
    long = {"model": model, "messages": turns, **stream}
    floor = request("POST", COMPLETIONS, json.dumps(long).encode())
    loads = [await stream_for(daemon.socket, floor, FLOOR_STREAMS, seconds) for _ in range(rounds)]
    rate = median(load.rate for load in loads)
    figures = [Figure(f"one daemon, instant engine, {FLOOR_STREAMS} streams", rate, "tokens/s", at_least=20_000)]
    asked = {
        "/health": request("GET", "/health", keep=True),
        "chat completion, instant engine": request("POST", COMPLETIONS, short, keep=True),
    }
    for name, wanted in asked.items():
        await _at_rate(daemon.socket, wanted, 0.5)
        taken = await _at_rate(daemon.socket, wanted, seconds * rounds)
        figures += [
            Figure(f"gateway at {RATE}/s: {name}, median", median(taken) * 1000, "ms", at_most=2.0),
            Figure(f"gateway at {RATE}/s: {name}, p95", quantiles(taken, n=20)[-1] * 1000, "ms", at_most=8.0),
        ]
    return figures


async def _at_rate(socket: Path, wanted: bytes, seconds: float) -> list[float]:
    """Seconds that each request took from when it was due; a request waits for a connection where all are in use."""
    due = [number / RATE for number in range(int(RATE * seconds))]
    return await trio.to_thread.run_sync(at_times, str(socket), wanted, due, GATEWAY_CONNECTIONS)


if __name__ == "__main__":
    main()
