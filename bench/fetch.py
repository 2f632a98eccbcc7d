"""A model file from one, two and four peers on loopback, beside Lattica's bitswap in one run. Decides what is compared.

    python -m bench.fetch [--mib 256] [--rounds 3] [--holders N ...] [--no-faults] [--json] [--check]

Both sides have four holders of the same bytes, each a process; the fetcher is connected to those that take part. Ours checks
every chunk and writes a file; Lattica's checks every block and keeps it in its store. Rounds alternate; a rate is the median.
Then, ours alone: a holder is killed (-9) when a third has come, and a holder that sends false bytes takes part.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any

import click

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.daemons import ROOT, Daemon, Processes, StartError
from bench.rivals import RIVALS, environment
from swarmd import Client

MIB = 1 << 20
HOLDERS = (1, 2, 4)
BLOCK_BYTES = 256 << 10
"""Of Lattica: at 256 KiB it was twice as fast as at 1 MiB."""
WORKERS = 16
"""Blocks that Lattica is asked for at once."""
TARGET = 2.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Row:
    """One number of holders. Rates in MB/s, CPU in milliseconds per MB of all processes of that side together."""

    holders: int
    ours: float
    theirs: float
    our_cpu: float
    their_cpu: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


@click.command()
@click.option("--mib", type=click.IntRange(8, 4096), default=256, show_default=True, help="Size of the file.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds whose median counts.")
@click.option(
    "--holders", type=click.IntRange(1, max(HOLDERS)), multiple=True, default=HOLDERS, help="From how many; may be repeated."
)
@click.option("--faults/--no-faults", default=True, help="Whether to kill a holder and let one lie, too.")
@click.option("--json", "json_wanted", is_flag=True, help="Print the figures as JSON instead of the table.")
@click.option("--check", is_flag=True, help="Exit 1, naming each figure, where one is short of its target.")
def main(mib: int, rounds: int, holders: tuple[int, ...], faults: bool, json_wanted: bool, check: bool) -> None:
    """Measure fetching a file from several peers."""
    try:
        with tempfile.TemporaryDirectory(prefix="bench-fetch-") as folder:
            model = Path(folder) / "model.gguf"
            write_model(model, mib)
            rows = compare(model, rounds, sorted(set(holders)))
            faulty = {"killed": killed(model), "lying": lying(model)} if faults else {}
    except StartError as error:
        raise click.ClickException(str(error)) from None
    if json_wanted:
        shape = [{**{name: getattr(row, name) for name in Row.__slots__}, "ratio": row.ratio} for row in rows]
        click.echo(json.dumps({"mib": mib, "rounds": rounds, "rows": shape, "faults": faulty}, indent=1))
    else:
        click.echo(table(rows, faulty, mib, rounds))
    short = [row for row in rows if row.ratio < TARGET]
    missed = [f"short: {row.holders} holders: {row.ratio:.2f} times Lattica, target {TARGET:g}" for row in short]
    missed += [f"short: {name}: the file is not the one that was shared" for name, fault in faulty.items() if not fault["whole"]]
    for line in missed if check else ():
        click.echo(line, err=True)
    if check and missed:
        sys.exit(1)


def write_model(path: Path, mib: int) -> None:
    """A GGUF file with one tensor of random bytes."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    values = (mib * MIB) // 4 - 64
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head += text("w") + struct.pack("<IQIQ", 1, values, 0, 0)
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for _ in range(mib):
            file.write(os.urandom(MIB))


def table(rows: list[Row], faults: dict[str, dict[str, Any]], mib: int, rounds: int) -> str:
    """The figures for people."""
    names = ("holders", "swarmd MB/s", "Lattica MB/s", "ratio", "target", "CPU swarmd", "CPU Lattica")
    lines = [
        f"A file of {mib} MiB on loopback, medians of {rounds} alternating rounds; {os.cpu_count()} CPUs, "
        f"load {os.getloadavg()[0]:.1f}. CPU: ms per MB, all processes of a side.",
        "  ".join(name.rjust(width) for name, width in zip(names, (7, 11, 12, 5, 10, 10, 11), strict=True)),
    ]
    for row in rows:
        verdict = f">= {TARGET:g} {'ok' if row.ratio >= TARGET else 'SHORT'}"
        lines.append(
            f"{row.holders:>7}  {row.ours:>11.0f}  {row.theirs:>12.0f}  {row.ratio:>5.2f}  {verdict:>10}  "
            f"{row.our_cpu:>10.1f}  {row.their_cpu:>11.1f}"
        )
    if faults:
        killed, lying = faults["killed"], faults["lying"]
        lines.append(f"a holder killed (-9) in mid-fetch: whole {killed['whole']}, {killed['seconds']:.1f} s")
        lines.append(f"a lying holder: whole {lying['whole']}, {lying['seconds']:.1f} s, dropped {lying['dropped']}")
    return "\n".join(lines)


def compare(model: Path, rounds: int, counts: Sequence[int]) -> list[Row]:
    """Both sides, alternating."""
    with ExitStack() as stack:
        processes = stack.enter_context(Processes())
        ours = _Ours(processes, model)
        theirs = stack.enter_context(_Theirs(model))
        rows = []
        for holders in counts:
            ours.share(holders)
            fetcher = theirs.fetcher(holders)
            samples = [(*ours.fetch(), *fetcher.fetch()) for _ in range(rounds)]
            rate, cpu, their_rate, their_cpu = (median(column) for column in zip(*samples, strict=True))
            rows.append(Row(holders, rate, their_rate, cpu, their_cpu))
            click.echo(f"{holders} holders: {rate:.0f} MB/s, Lattica {their_rate:.0f} MB/s", err=True)
        return rows


class _Ours:
    """Four daemons that may share the file, and one that fetches it."""

    def __init__(self, processes: Processes, model: Path) -> None:
        free = ("--no-model", "--set", "content.upload_kib_s=0")
        first = processes.daemon("holder0", *free)
        self.holders = [first, *(processes.daemon(f"holder{n}", *free, "--join", first.address) for n in range(1, max(HOLDERS)))]
        self.fetcher = processes.daemon("fetcher", *free, "--join", first.address)
        self.model = model
        self.client = Client(self.fetcher.socket, timeout=60)
        self.address = ""
        until(lambda: len(self.client.peers()) >= len(self.holders), "the daemons do not see each other")

    def share(self, count: int) -> None:
        """Let `count` daemons share the file."""
        for holder in self.holders[:count]:
            self.address = Client(holder.socket, timeout=60).seed(self.model)["address"]

    def fetch(self) -> tuple[float, float]:
        """MB/s, and CPU ms per MB."""
        pids = [self.fetcher.pid, *(holder.pid for holder in self.holders)]
        before = cpu_seconds(pids)
        result = pull(self.client, self.address)
        megabytes = result["size"] / 1e6
        sample = megabytes / result["elapsed_s"], (cpu_seconds(pids) - before) * 1000 / megabytes
        self.client.unshare(self.address)
        return sample


class _Theirs:
    """Lattica's holders."""

    def __init__(self, model: Path) -> None:
        self._python = environment(RIVALS["lattica"])
        self._model = model
        self._children: list[_Program] = []
        self.cids: list[str] = []

    def __enter__(self) -> "_Theirs":
        for _ in range(max(HOLDERS)):
            self._children.append(_Program(self._python, "hold", str(self._model), str(BLOCK_BYTES)))
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()

    def fetcher(self, count: int) -> "_TheirFetcher":
        """A fresh fetcher that is connected to `count` holders."""
        holders = self._children[:count]
        addresses = [child.first["address"] for child in holders]
        return _TheirFetcher(lambda: _Program(self._python, "fetch", *addresses), holders)


class _TheirFetcher:
    """Each fetch is a fresh process's: what a fetcher has it does not fetch again."""

    def __init__(self, start: "Callable[[], _Program]", holders: "list[_Program]") -> None:
        self._start = start
        self._holders = holders

    def fetch(self) -> tuple[float, float]:
        """MB/s, and CPU ms per MB."""
        program = self._start()
        pids = [program.pid, *(holder.pid for holder in self._holders)]
        before = cpu_seconds(pids)
        said = program.order(cids=self._holders[0].first["cids"], workers=WORKERS)
        spent = cpu_seconds(pids) - before
        program.end()
        megabytes = said["bytes"] / 1e6
        return megabytes / said["seconds"], spent * 1000 / megabytes


class _Program:
    """One Lattica process; `first` is what it said when it was ready."""

    def __init__(self, python: str, *arguments: str) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        command = [python, "-m", "bench.peers.lattica_blocks", *arguments]
        self._child = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.first = self._line()

    @property
    def pid(self) -> int:
        return self._child.pid

    def order(self, **fields: object) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(fields).encode() + b"\n")
        self._child.stdin.flush()
        return self._line()

    def end(self) -> None:
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def _line(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise StartError(f"Lattica ended: {self._errors.read()[-1500:].decode('utf-8', 'replace')}")
        said: dict[str, Any] = json.loads(line)
        return said


def killed(model: Path) -> dict[str, Any]:
    """Two holders, one of them killed when a third of the file has come."""
    with Processes() as processes:
        first = processes.daemon("holder0", "--no-model", "--set", "content.upload_kib_s=20480")
        second = processes.daemon("holder1", "--no-model", "--set", "content.upload_kib_s=20480", "--join", first.address)
        return _faulty(processes, model, [first, second], first, lambda: os.kill(second.pid, signal.SIGKILL))


def lying(model: Path) -> dict[str, Any]:
    """An honest holder and one that sends false bytes."""
    with Processes() as processes:
        first = processes.daemon("holder0", "--no-model", "--set", "content.upload_kib_s=0")
        address = Client(first.socket, timeout=60).seed(model)["address"]
        liar = processes.program("bench.peers.liar", str(model), first.address)
        fetcher = processes.daemon("fetcher", "--no-model", "--join", first.address, "--join", liar)
        client = Client(fetcher.socket, timeout=60)
        until(lambda: len(client.peers()) >= 2, "the fetcher does not see both holders")
        result = pull(client, address)
        return outcome(same(model, Path(result["path"])), result)


def _faulty(processes: Processes, model: Path, holders: list[Daemon], first: Daemon, fault: Callable[[], None]) -> dict[str, Any]:
    for holder in holders:
        address = Client(holder.socket, timeout=60).seed(model)["address"]
    fetcher = processes.daemon("fetcher", "--no-model", "--join", first.address)
    client = Client(fetcher.socket, timeout=60)
    until(lambda: len(client.peers()) >= len(holders), "the fetcher does not see all holders")
    done = False
    result: dict[str, Any] = {}
    for event in client.pull(address):
        if event.name == "progress" and not done and event.fields["done"] * 3 > event.fields["size"]:
            done = True
            fault()
        if event.name == "result":
            result = event.fields
    return outcome(done and same(model, Path(result["path"])), result)


def outcome(whole: bool, result: dict[str, Any]) -> dict[str, Any]:
    """What a fetch with a fault came to."""
    return {"whole": whole, "seconds": result["elapsed_s"], "dropped": list(result["dropped"].values())}


def pull(client: Client, address: str) -> dict[str, Any]:
    """Fetch and give what the result says."""
    return next(event.fields for event in client.pull(address) if event.name == "result")


def same(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    return subprocess.run(["cmp", "-s", one, other], check=False).returncode == 0


def until(condition: Callable[[], bool], complaint: str) -> None:
    """Wait for `condition`, a minute at most."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise StartError(complaint)
        time.sleep(0.1)


def cpu_seconds(pids: list[int]) -> float:
    """CPU that these processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


if __name__ == "__main__":
    main()
