"""Runs what `lifecycle` decides: one child process, its probes and its timer. Decides nothing itself and speaks no HTTP."""

from collections import deque
from collections.abc import Awaitable, Callable
from random import Random

import trio

from daemon.engine.child import TAIL_LINES, Child, ChildCommand
from daemon.engine.interface import EngineError, EngineState
from daemon.engine.lifecycle import (
    Event,
    Exited,
    HealthFailed,
    HealthOk,
    Kill,
    Lifecycle,
    LifecycleConfig,
    ModelListed,
    Probe,
    Spawn,
    Spawned,
    Stage,
    StateChanged,
    Tick,
    WakeAt,
    WarmedUp,
)
from daemon.engine.process_group import clear_orphans, records_beside

_PASSED: dict[Stage, Callable[[int], Event]] = {Stage.HEALTH: HealthOk, Stage.MODELS: ModelListed, Stage.WARM_UP: WarmedUp}


class Supervisor:
    """Keeps one child alive, or, where `command` is None, probes a server that someone else keeps alive."""

    def __init__(
        self,
        command: ChildCommand | None,
        probe: Callable[[Stage], Awaitable[None]],
        changed: Callable[[EngineState, str], None],
        config: LifecycleConfig,
        rng: Random,
    ) -> None:
        """`probe` raises EngineError where the engine does not pass the stage; it bounds its own time."""
        self._command = command
        self._probe = probe
        self._changed = changed
        self._machine = Lifecycle(config, rng)
        self._send, self._receive = trio.open_memory_channel[Event](16)
        self._killed = trio.Event()
        self._child: Child | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        """Last lines that the child wrote, for the owner's error report."""

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is none."""
        return None if self._child is None else self._child.pid

    async def run(self) -> None:
        """Until cancelled; then no process, no socket file and no record is left."""
        if self._command is not None:
            # Every kind's: the engine that crashed may have been of another one.
            for record in records_beside(self._command.record):
                await clear_orphans(record)
            self._command.socket.unlink(missing_ok=True)
        async with trio.open_nursery() as nursery:
            wake_at = self._apply(Tick(), nursery, float("inf"))
            while True:
                event: Event = Tick()
                with trio.move_on_at(wake_at):
                    event = await self._receive.receive()
                wake_at = self._apply(event, nursery, wake_at)

    def _apply(self, event: Event, nursery: trio.Nursery, wake_at: float) -> float:
        if isinstance(event, Tick):
            wake_at = float("inf")
        for effect in self._machine.handle(event, trio.current_time()):
            match effect:
                case WakeAt(time):
                    wake_at = time
                case Spawn(generation):
                    self._killed = trio.Event()
                    nursery.start_soon(self._live, generation, self._killed)
                case Probe(generation, stage):
                    nursery.start_soon(self._ask, generation, stage)
                case Kill():
                    self._killed.set()
                case StateChanged(state, reason):
                    if state is EngineState.READY and self._child is not None:
                        self._child.served = True
                    self._changed(state, reason)
        return wake_at

    async def _ask(self, generation: int, stage: Stage) -> None:
        event: Event = _PASSED[stage](generation)
        try:
            await self._probe(stage)
        except EngineError as error:
            event = HealthFailed(generation, str(error))
        await self._send.send(event)

    async def _live(self, generation: int, killed: trio.Event) -> None:
        """One child from its start until nothing of it is left."""

        async def spawned() -> None:
            await self._send.send(Spawned(generation))

        code: int | None = 0
        reason = "the server does not answer"
        if self._command is None:
            await spawned()
            await killed.wait()
        else:
            self._child = Child(self._command, self.tail, killed)
            code, reason = await self._child.run(spawned)
        await self._send.send(Exited(generation, code, reason))
