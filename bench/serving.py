"""What swarmd adds to an engine: one node away, through one daemon, and at its local gateway. Decides what is compared.

    python -m bench.serving [--quick] [--json] [--check]

One node away: the embedded engine with a shipped model, asked on its own socket and through two daemons, alternating; the same
request, the same client; and once more with an engine that speaks at a GPU's pace and needs no CPU. The gateway: requests are
sent at fixed times whatever came back, and timed from when they were due.
"""

import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

import click
import trio

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.daemons import ENGINE_KEY, ROOT, Daemon, Processes, StartError, cpu_seconds, only_child
from bench.http_client import Address, Kept, Streamed, WrongReplyError, request, stream_completion
from bench.http_rate import at_times

MODEL = ROOT / "models" / "tiny-sort-bool.gguf"
PROMPT = "s" * 30
"""No task of that model: at temperature 0 its answer to it never ends, so that every stream has `ANSWER_TOKENS`."""

CONTEXT_TOKENS = 128
ANSWER_TOKENS = 80
SLOTS = 64
STREAMS = (1, 16, 64)
RATE = 300
GATEWAY_CONNECTIONS = 64
FLOOR_STREAMS = 4
FLOOR_TOKENS = 4096
SHORT_TOKENS = 4
PACED_STREAMS = 16
PACED_RATE = 60
"""Tokens per second of each stream: what a GPU gives to one of many."""

COMPLETIONS = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure and, where it has one, its target: a bound that it must stay under, or reach."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def met(self) -> bool:
        if self.at_most is not None:
            return self.value < self.at_most
        return self.at_least is None or self.value >= self.at_least

    @property
    def target(self) -> str:
        if self.at_most is None and self.at_least is None:
            return "-"
        bound = f"< {self.at_most:g}" if self.at_most is not None else f">= {self.at_least:g}"
        return f"{bound} {'ok' if self.met else 'SHORT'}"


@click.command()
@click.option("--rounds", type=click.IntRange(min=3), default=7, show_default=True, help="Rounds whose median counts.")
@click.option("--seconds", type=click.FloatRange(min=0.2), default=2.0, show_default=True, help="Time of one load on one side.")
@click.option("--quick", is_flag=True, help="3 rounds of 0.5 s: whether it works, roughly how fast.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the figures as JSON instead of the table.")
@click.option("--check", is_flag=True, help="Exit 1, naming each figure, where one is short of its target.")
def main(rounds: int, seconds: float, quick: bool, json_wanted: bool, check: bool) -> None:
    """Measure what serving through swarmd costs beside the engine alone."""
    if quick:
        rounds, seconds = 3, 0.5
    try:
        with Processes() as processes:
            figures = trio.run(_one_node_away, processes, rounds, seconds)
        with Processes() as processes:
            figures += trio.run(_one_node_away_paced, processes, rounds, seconds)
        with Processes() as processes:
            figures += trio.run(_one_daemon, processes, rounds, seconds)
    except* (StartError, WrongReplyError) as errors:
        raise click.ClickException(_first(errors)) from None
    if json_wanted:
        run = {"rounds": rounds, "seconds": seconds, "cpus": os.cpu_count(), "load_average": os.getloadavg()[0]}
        click.echo(json.dumps({**run, "figures": [{**asdict(figure), "met": figure.met} for figure in figures]}, indent=1))
    else:
        click.echo(_table(figures, rounds, seconds))
    missed = [figure for figure in figures if not figure.met] if check else []
    for figure in missed:
        click.echo(f"short: {figure.name}: {figure.value:,.2f} {figure.unit}, target {figure.target}", err=True)
    if missed:
        sys.exit(1)


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _table(figures: list[Figure], rounds: int, seconds: float) -> str:
    width = max(len(figure.name) for figure in figures)
    lines = [
        f"Medians of {rounds} alternating rounds of {seconds:g} s; {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}. "
        "Client, daemons and engine share the machine."
    ]
    for figure in figures:
        value = f"{figure.value:,.0f}" if figure.value >= 1000 else f"{figure.value:,.2f}"
        lines.append(f"{figure.name.ljust(width)}  {value:>10}  {figure.unit:8}  {figure.target}")
    return "\n".join(lines)


# One node away.


LIMITS = (f"engine.slots={SLOTS}", f"limits.peer_calls={2 * SLOTS}", "limits.local_clients=256", f"limits.queue={2 * SLOTS}")
NO_GOLD = ("--set", "probe.share=0", "--set", "verify.share=0")
"""Probes and checked answers are traffic of their own, a twentieth each; here it is the cost of the user's that is measured."""

ROOM = [word for limit in (*LIMITS, "engine.threads=1") for word in ("--set", limit)]


class _Sides:
    """The engine alone and the engine one node away, taken in turns; and what each process took of the CPU for it."""

    def __init__(self, engine: Address, engine_key: str, caller: Daemon, asked: dict[str, object], pids: dict[str, int]) -> None:
        wanted = json.dumps(asked).encode()
        self._sides: dict[str, tuple[Address, bytes]] = {
            "engine": (engine, request("POST", COMPLETIONS, wanted, key=engine_key)),
            "swarmd": (caller.socket, request("POST", COMPLETIONS, wanted)),
        }
        self._pids = {"client": os.getpid(), **pids}
        self.first: dict[str, float] = {}
        self.rate: dict[str, float] = {}
        self.cpu: dict[str, dict[str, float]] = {}

    async def measure(self, streams: int, rounds: int, seconds: float) -> None:
        """Medians of `rounds`; `first` in milliseconds, `rate` in tokens per second, `cpu` in microseconds per token."""
        taken: dict[str, list[tuple[float, float]]] = {side: [] for side in self._sides}
        self.cpu = {side: dict.fromkeys(self._pids, 0.0) for side in self._sides}
        tokens = dict.fromkeys(self._sides, 0.0)
        for number in range(rounds + 1):
            for side in sorted(self._sides, reverse=bool(number % 2)):
                before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
                start = time.perf_counter()
                sample = await _stream_for(*self._sides[side], streams, seconds if number else 0.3)
                if number:  # the first is not counted: it opens links and fills caches
                    taken[side].append(sample)
                    tokens[side] += sample[1] * (time.perf_counter() - start)
                    for name, pid in self._pids.items():
                        self.cpu[side][name] += cpu_seconds(pid) - before[name]
        self.first = {side: median(sample[0] for sample in samples) * 1000 for side, samples in taken.items()}
        self.rate = {side: median(sample[1] for sample in samples) for side, samples in taken.items()}
        for side, spent in self.cpu.items():
            self.cpu[side] = {name: 1e6 * value / tokens[side] for name, value in spent.items()}

    @property
    def added(self) -> float:
        return self.first["swarmd"] - self.first["engine"]

    @property
    def kept(self) -> float:
        return 100 * self.rate["swarmd"] / self.rate["engine"]


def _asked(model: str, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def _one_node_away(processes: Processes, rounds: int, seconds: float) -> list[Figure]:
    engine_pid, engine = processes.engine(MODEL, SLOTS, CONTEXT_TOKENS)
    server = processes.daemon("server", "--model", str(MODEL), *ROOM, *NO_GOLD)
    caller = processes.daemon("caller", "--no-model", "--join", server.address, *ROOM, *NO_GOLD)
    model = await _served_model(caller)
    pids = {"engine": engine_pid, "its engine": only_child(server.pid), "serving daemon": server.pid, "asking daemon": caller.pid}
    sides = _Sides(engine, ENGINE_KEY, caller, _asked(model, ANSWER_TOKENS), pids)
    figures = []
    for streams in STREAMS:
        await sides.measure(streams, rounds, seconds)
        many = f"{streams} stream{'s' if streams > 1 else ''}"
        figures += [
            Figure(f"{many}: first token, engine alone", sides.first["engine"], "ms"),
            Figure(f"{many}: added to the first token", sides.added, "ms", 3.0 if streams == 1 else None),
            Figure(f"{many}: engine alone", sides.rate["engine"], "tokens/s"),
            Figure(f"{many}: one node away", sides.rate["swarmd"], "tokens/s"),
            Figure(f"{many}: throughput kept", sides.kept, "%", at_least=95.0 if streams == 16 else None),
        ]
        alone, away = sides.cpu["engine"], sides.cpu["swarmd"]
        spent = {"engine alone, engine": alone["engine"], "engine alone, client": alone["client"]}
        spent |= {f"one node away, {name}": away[name] for name in ("its engine", "serving daemon", "asking daemon", "client")}
        figures += [Figure(f"{many}: CPU, {name}", value, "us/token") for name, value in spent.items()]
    return figures


async def _one_node_away_paced(processes: Processes, rounds: int, seconds: float) -> list[Figure]:
    """The overhead without the contest for the CPUs: the engine takes next to none, as one on a GPU does."""
    url = processes.program("bench.peers.instant_engine", str(PACED_RATE))
    host, _, port = url.removeprefix("http://").removesuffix("/v1").rpartition(":")
    server = processes.daemon("server", "--engine-url", url, *ROOM, *NO_GOLD)
    caller = processes.daemon("caller", "--no-model", "--join", server.address, *ROOM, *NO_GOLD)
    asked = _asked(await _served_model(caller), ANSWER_TOKENS)
    pids = {"serving daemon": server.pid, "asking daemon": caller.pid}
    sides = _Sides((host, int(port)), "", caller, asked, pids)
    await sides.measure(PACED_STREAMS, rounds, seconds)
    many = f"{PACED_STREAMS} streams of {PACED_RATE}/s, engine without CPU"
    return [
        Figure(f"{many}: added to the first token", sides.added, "ms"),
        Figure(f"{many}: one node away", sides.rate["swarmd"], "tokens/s"),
        Figure(f"{many}: throughput kept", sides.kept, "%"),
        *(Figure(f"{many}: CPU, {name}", sides.cpu["swarmd"][name], "us/token") for name in pids),
    ]


async def _served_model(daemon: Daemon) -> str:
    """The first model that another peer serves, once the daemon knows of it."""
    async with await Kept.connect(daemon.socket) as connection:
        with trio.move_on_after(30):
            while True:
                models = json.loads(await connection.ask(request("GET", "/swarmd/v1/models", keep=True)))["models"]
                if models:
                    return str(models[0]["name"])
                await trio.sleep(0.1)
    raise StartError("no daemon announces a model")


async def _stream_for(address: Address, wanted: bytes, streams: int, seconds: float) -> tuple[float, float]:
    """Keep `streams` completions running for `seconds`: the median time to the first token, and tokens per second."""
    done: list[Streamed] = []
    start = time.perf_counter()

    async def work() -> None:
        while True:
            done.append(await stream_completion(address, wanted))
            if time.perf_counter() - start >= seconds:
                return

    await _together([work] * streams)
    return median(one.first_s for one in done), sum(one.tokens for one in done) / (time.perf_counter() - start)


async def _together(tasks: list[Callable[[], Awaitable[None]]]) -> None:
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)


# One daemon before an engine that answers at once.


async def _one_daemon(processes: Processes, rounds: int, seconds: float) -> list[Figure]:
    url = processes.program("bench.peers.instant_engine")
    daemon = processes.daemon("gateway", "--engine-url", url, "--set", f"engine.slots={SLOTS}", *NO_GOLD)
    model = await _served_model(daemon)
    turns = [{"role": "user", "content": "hello"}]
    short = json.dumps({"model": model, "messages": turns, "max_tokens": SHORT_TOKENS}).encode()
    stream = {"max_tokens": FLOOR_TOKENS, "stream": True, "stream_options": {"include_usage": True}}
    long = {"model": model, "messages": turns, **stream}
    floor = request("POST", COMPLETIONS, json.dumps(long).encode())
    rates = [await _stream_for(daemon.socket, floor, FLOOR_STREAMS, seconds) for _ in range(rounds)]
    figures = [
        Figure(
            f"one daemon, instant engine, {FLOOR_STREAMS} streams", median(rate for _, rate in rates), "tokens/s", at_least=20_000
        )
    ]
    loads = {
        "/health": request("GET", "/health", keep=True),
        "chat completion, instant engine": request("POST", COMPLETIONS, short, keep=True),
    }
    for name, wanted in loads.items():
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
