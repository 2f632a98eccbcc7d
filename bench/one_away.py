"""The engine alone and the same engine one node away, taken in turns. Decides how they are asked, timed and told of.

Starts nothing: bench.serving starts the daemons and says what is asked.
"""

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from statistics import median

import trio

from bench.daemons import Daemon, StartError, cpu_seconds
from bench.http_client import Address, Kept, request, stream_completion

COMPLETIONS = "/v1/chat/completions"
SLOTS = 64


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


LIMITS = (f"engine.slots={SLOTS}", f"limits.peer_calls={2 * SLOTS}", "limits.local_clients=256", f"limits.queue={2 * SLOTS}")
NO_GOLD = ("--set", "probe.share=0", "--set", "verify.share=0")
"""Probes and checked answers are traffic of their own, a twentieth each; here it is the cost of the user's that is measured."""

ROOM = [word for limit in (*LIMITS, "engine.threads=1") for word in ("--set", limit)]


@dataclass(frozen=True, slots=True)
class Answer:
    """One streamed answer: when its first token came and when its last, in seconds from the start of the load."""

    waited: float
    first: float
    last: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """Streams kept running for some seconds: the median wait for a first token, tokens per second, all tokens of all answers."""

    first_s: float
    rate: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Engine:
    """Where the engine itself is asked, and the name that it has for its model; `prefix` stands before `/v1` in its paths."""

    address: Address
    model: str
    key: str = ""
    prefix: str = ""


class Sides:
    """The engine alone and the engine one node away, taken in turns; and what each process took of the CPU for it."""

    def __init__(self, engine: Engine, caller: Daemon, model: str, asked: dict[str, object], pids: dict[str, int]) -> None:
        alone = json.dumps({**asked, "model": engine.model}).encode()
        away = json.dumps({**asked, "model": model}).encode()
        self._sides: dict[str, tuple[Address, bytes]] = {
            "engine": (engine.address, request("POST", engine.prefix + COMPLETIONS, alone, key=engine.key)),
            "swarmd": (caller.socket, request("POST", COMPLETIONS, away)),
        }
        self._pids = {"client": os.getpid(), **pids}
        self.first: dict[str, float] = {}
        self.rate: dict[str, float] = {}
        self.cpu: dict[str, dict[str, float]] = {}

    def request_of(self, side: str) -> bytes:
        """The bytes that `side`, "engine" or "swarmd", is asked with."""
        return self._sides[side][1]

    async def measure(self, streams: int, rounds: int, seconds: float) -> None:
        """Medians of `rounds`; `first` in milliseconds, `rate` in tokens per second, `cpu` in microseconds per token."""
        taken: dict[str, list[Load]] = {side: [] for side in self._sides}
        self.cpu = {side: dict.fromkeys(self._pids, 0.0) for side in self._sides}
        for number in range(rounds + 1):
            for side in sorted(self._sides, reverse=bool(number % 2)):
                before = {name: cpu_seconds(pid) for name, pid in self._pids.items()}
                load = await stream_for(*self._sides[side], streams, seconds if number else 0.3)
                if number:  # the first is not counted: it opens links and fills caches
                    taken[side].append(load)
                    for name, pid in self._pids.items():
                        self.cpu[side][name] += cpu_seconds(pid) - before[name]
        self.first = {side: median(load.first_s for load in loads) * 1000 for side, loads in taken.items()}
        self.rate = {side: median(load.rate for load in loads) for side, loads in taken.items()}
        for side, spent in self.cpu.items():
            tokens = sum(load.tokens for load in taken[side])
            self.cpu[side] = {name: 1e6 * value / tokens for name, value in spent.items()}

    def figures(self, streams: int) -> list[Figure]:
        """What was measured last, with the targets of one stream and of 16."""
        many = f"{streams} stream{'s' if streams > 1 else ''}"
        return [
            Figure(f"{many}: first token, engine alone", self.first["engine"], "ms"),
            Figure(f"{many}: added to the first token", self.added, "ms", 3.0 if streams == 1 else None),
            Figure(f"{many}: engine alone", self.rate["engine"], "tokens/s"),
            Figure(f"{many}: one node away", self.rate["swarmd"], "tokens/s"),
            Figure(f"{many}: throughput kept", self.kept, "%", at_least=95.0 if streams == 16 else None),
        ]

    def cpu_figures(self, streams: int, side: str, names: Iterable[str]) -> list[Figure]:
        """CPU time of the named processes while `side`, "engine" or "swarmd", was asked."""
        many = f"{streams} stream{'s' if streams > 1 else ''}"
        where = "engine alone" if side == "engine" else "one node away"
        return [Figure(f"{many}: CPU, {where}, {name}", self.cpu[side][name], "us/token") for name in names]

    @property
    def added(self) -> float:
        return self.first["swarmd"] - self.first["engine"]

    @property
    def kept(self) -> float:
        return 100 * self.rate["swarmd"] / self.rate["engine"]


def asked_stream(prompt: str, tokens: int) -> dict[str, object]:
    """What both sides are asked, but for the model's name."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def served_model(daemon: Daemon) -> str:
    """The first model that another peer serves, once the daemon knows of it."""
    async with await Kept.connect(daemon.socket) as connection:
        with trio.move_on_after(30):
            while True:
                models = json.loads(await connection.ask(request("GET", "/swarmd/v1/models", keep=True)))["models"]
                if models:
                    return str(models[0]["name"])
                await trio.sleep(0.1)
    raise StartError("no daemon announces a model")


async def stream_for(address: Address, wanted: bytes, streams: int, seconds: float) -> Load:
    """Keep `streams` completions running for `seconds`; those that are under way then are read to their end."""
    answers: list[Answer] = []
    start = time.perf_counter()

    async def work() -> None:
        while (asked := time.perf_counter() - start) < seconds:
            one = await stream_completion(address, wanted)
            answers.append(Answer(one.first_s, asked + one.first_s, asked + one.total_s, one.tokens))

    await _together([work] * streams)
    return Load(
        median(answer.waited for answer in answers), tokens_until(seconds, answers) / seconds, sum(one.tokens for one in answers)
    )


def tokens_until(moment: float, answers: Iterable[Answer]) -> float:
    """Tokens that had come by then, each answer's taken to come evenly from its first to its last.

    The load is whole until that moment and fades afterwards, as streams end one by one. A rate up to the last one's end would
    hang on how often an answer fits into the time: it falls by a tenth where half of the streams begin a fifth answer and the
    others do not.
    """
    came = 0.0
    for answer in answers:
        if answer.last <= moment:
            came += answer.tokens
        elif answer.first < moment:
            came += answer.tokens * (moment - answer.first) / (answer.last - answer.first)
    return came


async def _together(tasks: list[Callable[[], Awaitable[None]]]) -> None:
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
