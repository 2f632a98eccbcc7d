"""Where signatures are checked: in a thread, and in a process beside us while many come. Decides who checks; judges nothing.

Between two signatures a thread needs the interpreter's lock, which a busy event loop gives back only every 5 ms: so it bounds
how late the loop is, and what it does comes on top of all else. A process checks while the loop decodes and inserts. It starts
once some hundred signatures came within seconds, is no more than one, and goes when nothing comes; whatever it does not answer is
checked in a thread.
"""

import contextlib
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
import trio

from crdt_store.sync_events import Verified, Verify, check, signature_jobs, with_verdicts
from daemon.signature_child import LENGTH, READY, pack
from protocol.wire.errors import RemoteError
from protocol.wire.ids import PeerId
from protocol.wire.signature import SignatureJob

log = structlog.get_logger("swarmd.reputation")

PROCESS_FROM = 256
"""Signatures within PROCESS_SECONDS that make a process worth its start (0.1 s of CPU, 20 MiB)."""

PROCESS_SECONDS = 10.0

IDLE_SECONDS = 60.0
"""The process goes after this long without a signature."""

ANSWER_SECONDS = 20.0
"""A chunk takes it 5 ms, on a busy box 50; one that is silent for this long is given up, and a thread does its work."""

RETRY_SECONDS = 60.0
"""The next process after one that died or could not be started."""

DEPTH = 3
"""Chunks of one peer that are checked at once: one under way, one behind it, one being taken in."""

COMMAND = (sys.executable, "-P", "-m", "daemon.signature_child")

Aside = Callable[[Callable[[], Any]], Awaitable[Any]]


class SignatureProcess:
    """One child process and the chunks that it has not answered yet, in order."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._waiting: deque[tuple[int, trio.Event]] = deque()
        self._verdicts: dict[trio.Event, bytes] = {}
        self._sending = trio.Lock()
        self._child: trio.Process | None = None
        self._idle = trio.CancelScope(deadline=trio.current_time() + IDLE_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether it takes work."""
        return self._child is not None

    async def run(self) -> str:
        """Start it and collect its verdicts until it ends; why it failed, "" where it was merely idle."""
        try:
            child = await trio.lowlevel.open_process(
                list(self._command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            return f"it could not be started: {error.strerror}"
        reason = ""
        try:
            with self._idle:
                reason = await self._collect(child)
            return reason
        finally:
            self._child = None
            for _, done in self._waiting:
                done.set()
            self._waiting.clear()
            with trio.CancelScope(shield=True):
                child.kill()
                await child.wait()
                for pipe in (child.stdin, child.stdout):
                    if pipe is not None:
                        await pipe.aclose()

    async def _collect(self, child: trio.Process) -> str:
        if child.stdout is None:
            return "it has no output"
        said = b""
        async for some in child.stdout:
            said += some
            if self._child is None and said:
                if said[:1] != READY:
                    break
                said, self._child = said[1:], child
            while len(said) >= LENGTH.size:
                (count,) = LENGTH.unpack_from(said)
                if not self._waiting or count != self._waiting[0][0]:
                    return "it answered what was not asked"
                end = LENGTH.size + count
                if len(said) < end:
                    break
                _, done = self._waiting.popleft()
                self._verdicts[done], said = said[LENGTH.size : end], said[end:]
                done.set()
        return "it ended"

    async def check(self, jobs: Sequence[SignatureJob]) -> bytes | None:
        """A byte, 1 or 0, for each job; None where it does not answer."""
        child = self._child
        if child is None or child.stdin is None:
            return None
        done = trio.Event()
        self._idle.deadline = trio.current_time() + IDLE_SECONDS
        try:
            with trio.move_on_after(ANSWER_SECONDS), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with self._sending:
                    self._waiting.append((len(jobs), done))
                    await child.stdin.send_all(pack(jobs))
                await done.wait()
        finally:
            verdicts = self._verdicts.pop(done, None)
            if verdicts is None:
                child.kill()  # silent, or cut off within a frame: nothing more can be had from it
        return verdicts


class SignatureChecker:
    """Carries out `Verify`. `aside` runs a function in a thread; with `command` empty no process is ever started."""

    def __init__(self, aside: Aside, command: Sequence[str] = ()) -> None:
        self._aside = aside
        self._command = command
        self._process: SignatureProcess | None = None
        self._since = float("-inf")
        self._came = 0
        self._wanted = trio.Event()
        self._thread = trio.Lock()
        self.by_process = 0
        """Signatures that the process checked."""

    async def run(self) -> None:
        """Keep a process while many signatures come, until cancelled."""
        while True:
            await self._wanted.wait()
            self._process = SignatureProcess(self._command)
            reason = await self._process.run()
            self._process = None
            if reason:
                log.warning("signatures are checked in a thread: the process for them failed", reason=reason)
                await trio.sleep(RETRY_SECONDS)
            self._wanted = trio.Event()

    async def check(self, effect: Verify) -> Verified:
        """The verdicts on a chunk; never raises for what a peer sent."""
        self._count(len(effect.claims))
        process = self._process
        if process is not None and process.ready and effect.claims and not effect.proofs:
            try:
                jobs = signature_jobs(effect)
            except RemoteError:
                jobs = []  # a signer that is no key: the thread says which
            verdicts = await process.check(jobs) if jobs else None
            if verdicts is not None:
                self.by_process += len(verdicts)
                return with_verdicts(effect, verdicts)
        async with self._thread:
            verified: Verified = await self._aside(lambda: check(effect))
            return verified

    def _count(self, signatures: int) -> None:
        now = trio.current_time()
        if now - self._since > PROCESS_SECONDS:
            self._since, self._came = now, 0
        self._came += signatures
        if self._came >= PROCESS_FROM and self._command:
            self._wanted.set()


class Turns:
    """Whose chunks are checked: one peer's at a time, DEPTH of them, then another's, which need not hold the same again."""

    def __init__(self) -> None:
        self._holder: PeerId | None = None
        self._under_way = 0
        self._queue: deque[tuple[PeerId, trio.Event]] = deque()

    async def take(self, peer: PeerId) -> None:
        """Wait until a chunk of `peer` may be looked at; `give` must follow once what it holds is taken in."""
        await trio.lowlevel.checkpoint_if_cancelled()
        ticket = peer, trio.Event()
        self._queue.append(ticket)
        self._admit()
        try:
            await ticket[1].wait()
        except trio.Cancelled:
            if ticket[1].is_set():
                self.give()
            else:
                self._queue.remove(ticket)
                self._admit()
            raise

    def give(self) -> None:
        """A chunk is done with."""
        self._under_way -= 1
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            peer, admitted = self._queue[0]
            if self._under_way and (self._holder != peer or self._under_way >= DEPTH):
                return
            self._queue.popleft()
            self._holder = peer
            self._under_way += 1
            admitted.set()
