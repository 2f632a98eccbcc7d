"""Decides when an engine is started, probed, killed, started again or given up. Must not touch a process, a socket or a clock."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from random import Random
from typing import assert_never

from daemon.engine.interface import EngineState

# --- events -----------------------------------------------------------------------------------------------------------------
# `generation` counts the children, so that what is said about a child that has gone changes nothing.


@dataclass(frozen=True, slots=True)
class Spawned:
    generation: int


@dataclass(frozen=True, slots=True)
class HealthOk:
    generation: int


@dataclass(frozen=True, slots=True)
class ModelListed:
    generation: int


@dataclass(frozen=True, slots=True)
class WarmedUp:
    generation: int


@dataclass(frozen=True, slots=True)
class HealthFailed:
    """The probe of any stage failed; `reason` is a sentence for the box's owner."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Exited:
    """The child is gone with its whole process group. `code` is negative for a signal, None where no child could be started."""

    generation: int
    code: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A time asked for with WakeAt has come."""


Event = Spawned | HealthOk | ModelListed | WarmedUp | HealthFailed | Exited | Tick

# --- effects ----------------------------------------------------------------------------------------------------------------


class Stage(Enum):
    """What a probe asks. Ready is who passed all three in this order: vLLM is healthy long before it serves."""

    HEALTH = auto()
    MODELS = auto()
    WARM_UP = auto()


@dataclass(frozen=True, slots=True)
class Spawn:
    generation: int


@dataclass(frozen=True, slots=True)
class Probe:
    generation: int
    stage: Stage


@dataclass(frozen=True, slots=True)
class Kill:
    generation: int


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Replaces any earlier one. Seconds on the clock of `now`."""

    time: float


@dataclass(frozen=True, slots=True)
class StateChanged:
    state: EngineState
    reason: str


Effect = Spawn | Probe | Kill | WakeAt | StateChanged

# --- config -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LifecycleConfig:
    """Times in seconds."""

    starting_interval: float = 0.05
    """Between probes until ready."""
    ready_interval: float = 1.0
    """Between health probes once ready."""
    failures_allowed: int = 1
    """Consecutive failed health probes of a ready engine that are forgiven; the next one kills it."""
    start_timeout: float = 60.0
    """From spawn to ready; then the child is killed and counted as a failed start."""
    backoff_base: float = 0.2
    backoff_cap: float = 30.0
    """Full jitter: the wait before start n is uniform in 0..min(cap, base * 2^n) (AWS, "Exponential backoff and jitter")."""
    settled_after: float = 60.0
    """An engine that was ready for so long starts again with the shortest wait."""
    hopeless_codes: frozenset[int | None] = frozenset({None})
    """Exit codes that no restart will mend."""


# --- state ------------------------------------------------------------------------------------------------------------------


class _Phase(Enum):
    IDLE = auto()
    SPAWNING = auto()
    STARTING = auto()
    READY = auto()
    STOPPING = auto()
    WAITING = auto()
    FAILED = auto()


_NEXT = {Stage.HEALTH: Stage.MODELS, Stage.MODELS: Stage.WARM_UP}


class Lifecycle:
    """One engine's life. Starts with the first Tick; ends only in FAILED."""

    def __init__(self, config: LifecycleConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._phase = _Phase.IDLE
        self._stage = Stage.HEALTH
        self._generation = 0
        self._failed_starts = 0
        self._failed_probes = 0
        self._probing = False
        self._probe_at = math.inf
        self._wake_at = math.inf
        self._ready_since = math.inf
        self._complaint = ""

    def handle(self, event: Event, now: float) -> list[Effect]:
        """The effects of `event`, in order. An event about an earlier child has none."""
        if isinstance(event, Tick):
            return self._on_tick(now)
        if event.generation != self._generation or self._phase is _Phase.FAILED:
            return []
        match event:
            case Spawned():
                return self._on_spawned(now)
            case HealthOk():
                return self._on_stage_passed(Stage.HEALTH, now)
            case ModelListed():
                return self._on_stage_passed(Stage.MODELS, now)
            case WarmedUp():
                return self._on_stage_passed(Stage.WARM_UP, now)
            case HealthFailed(reason=reason):
                return self._on_probe_failed(reason, now)
            case Exited(code=code, reason=reason):
                return self._on_exited(code, reason, now)
            case _:
                assert_never(event)

    def _on_tick(self, now: float) -> list[Effect]:
        match self._phase:
            case _Phase.IDLE | _Phase.WAITING if now >= self._wake_at or self._phase is _Phase.IDLE:
                self._generation += 1
                self._phase = _Phase.SPAWNING
                return [Spawn(self._generation)]
            case _Phase.STARTING if now >= self._wake_at:
                late = f"the engine was not ready within {self._config.start_timeout:g} s"
                return self._kill(f"{late}: {self._complaint}" if self._complaint else late)
            case _Phase.STARTING | _Phase.READY:
                return self._probe_if_due(now)
            case _Phase.WAITING:
                return [WakeAt(self._wake_at)]
            case _:
                return []

    def _on_spawned(self, now: float) -> list[Effect]:
        self._phase = _Phase.STARTING
        self._stage = Stage.HEALTH
        self._probing = False
        self._complaint = ""
        self._wake_at = now + self._config.start_timeout
        self._probe_at = now
        return self._probe_if_due(now)

    def _on_stage_passed(self, stage: Stage, now: float) -> list[Effect]:
        if stage is not self._stage or self._phase not in (_Phase.STARTING, _Phase.READY):
            return []
        self._probing = False
        self._failed_probes = 0
        if self._phase is _Phase.STARTING and stage in _NEXT:
            self._stage = _NEXT[stage]
            self._probe_at = now
            return self._probe_if_due(now)
        changes: list[Effect] = []
        if self._phase is _Phase.STARTING:
            self._phase = _Phase.READY
            self._stage = Stage.HEALTH
            self._ready_since = now
            self._wake_at = math.inf
            changes = [StateChanged(EngineState.READY, "")]
        self._probe_at = now + self._config.ready_interval
        return [*changes, *self._probe_if_due(now)]

    def _on_probe_failed(self, reason: str, now: float) -> list[Effect]:
        if self._phase not in (_Phase.STARTING, _Phase.READY):
            return []
        self._probing = False
        self._complaint = reason
        if self._phase is _Phase.STARTING:
            self._probe_at = now + self._config.starting_interval
            return self._probe_if_due(now)
        self._failed_probes += 1
        if self._failed_probes > self._config.failures_allowed:
            return self._kill(reason)
        self._probe_at = now + self._config.starting_interval
        return self._probe_if_due(now)

    def _on_exited(self, code: int | None, reason: str, now: float) -> list[Effect]:
        if self._phase is _Phase.STOPPING:
            reason = self._complaint
        elif code in self._config.hopeless_codes:
            self._phase = _Phase.FAILED
            return [StateChanged(EngineState.FAILED, reason)]
        if now - self._ready_since >= self._config.settled_after:
            self._failed_starts = 0
        ceiling = min(self._config.backoff_cap, self._config.backoff_base * 2.0 ** min(self._failed_starts, 32))
        self._failed_starts += 1
        self._phase = _Phase.WAITING
        self._ready_since = math.inf
        self._wake_at = now + self._rng.uniform(0, ceiling)
        return [StateChanged(EngineState.RESTARTING, reason), WakeAt(self._wake_at)]

    def _kill(self, reason: str) -> list[Effect]:
        was_ready = self._phase is _Phase.READY
        self._phase = _Phase.STOPPING
        self._complaint = reason
        self._failed_probes = 0
        news: list[Effect] = [StateChanged(EngineState.RESTARTING, reason)] if was_ready else []
        return [*news, Kill(self._generation)]

    def _probe_if_due(self, now: float) -> list[Effect]:
        if self._probing:
            return [WakeAt(self._wake_at)]
        if now < self._probe_at:
            return [WakeAt(min(self._probe_at, self._wake_at))]
        self._probing = True
        return [Probe(self._generation, self._stage), WakeAt(self._wake_at)]
