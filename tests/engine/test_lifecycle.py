"""The life of an engine as tables of events and effects, without a process or a clock."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.engine.interface import EngineState
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

NOT_A_MODEL = 65
CONFIG = LifecycleConfig(
    starting_interval=0.5,
    ready_interval=2.0,
    failures_allowed=1,
    start_timeout=10.0,
    backoff_base=1.0,
    backoff_cap=30.0,
    settled_after=60.0,
    hopeless_codes=frozenset({None, NOT_A_MODEL}),
)


class Latest(Random):
    """Draws the top of every range, so that a table can name the wait."""

    def uniform(self, a: float, b: float) -> float:
        return b


def started() -> Lifecycle:
    machine = Lifecycle(CONFIG, Latest())
    assert machine.handle(Tick(), 0.0) == [Spawn(1)]
    return machine


def ready(generation: int = 1, machine: Lifecycle | None = None, now: float = 0.0) -> Lifecycle:
    machine = machine or started()
    for event in (Spawned(generation), HealthOk(generation), ModelListed(generation)):
        machine.handle(event, now)
    assert StateChanged(EngineState.READY, "") in machine.handle(WarmedUp(generation), now)
    return machine


def test_ready_needs_health_then_the_model_then_a_completion() -> None:
    machine = started()
    assert machine.handle(Spawned(1), 0.0) == [Probe(1, Stage.HEALTH), WakeAt(10.0)]
    assert machine.handle(HealthFailed(1, "nothing listens"), 0.1) == [WakeAt(0.6)]
    assert machine.handle(Tick(), 0.6) == [Probe(1, Stage.HEALTH), WakeAt(10.0)]
    assert machine.handle(HealthOk(1), 0.7) == [Probe(1, Stage.MODELS), WakeAt(10.0)]
    assert machine.handle(ModelListed(1), 0.8) == [Probe(1, Stage.WARM_UP), WakeAt(10.0)]
    assert machine.handle(WarmedUp(1), 0.9) == [StateChanged(EngineState.READY, ""), WakeAt(2.9)]
    assert machine.handle(Tick(), 2.9)[0] == Probe(1, Stage.HEALTH)


@pytest.mark.parametrize("event", [ModelListed(1), WarmedUp(1)])
def test_a_later_stage_does_not_pass_for_an_earlier_one(event: Event) -> None:
    machine = started()
    machine.handle(Spawned(1), 0.0)
    assert machine.handle(event, 0.1) == []


def test_a_start_that_takes_too_long_is_killed_and_says_what_it_waited_for() -> None:
    machine = started()
    machine.handle(Spawned(1), 0.0)
    machine.handle(HealthFailed(1, "nothing listens"), 0.1)
    assert machine.handle(Tick(), 10.0) == [Kill(1)]
    assert machine.handle(Exited(1, -15, "by SIGTERM"), 10.5) == [
        StateChanged(EngineState.RESTARTING, "the engine was not ready within 10 s: nothing listens"),
        WakeAt(11.5),
    ]


def test_one_failed_probe_of_a_ready_engine_is_forgiven_and_two_are_not() -> None:
    machine = ready()
    machine.handle(Tick(), 2.0)
    assert machine.handle(HealthFailed(1, "silent"), 3.0) == [WakeAt(3.5)]
    machine.handle(Tick(), 3.5)
    assert machine.handle(HealthOk(1), 3.6) == [WakeAt(5.6)]
    for time in (5.6, 7.0):
        machine.handle(Tick(), time)
        effects = machine.handle(HealthFailed(1, "silent"), time + 1)
    assert effects == [StateChanged(EngineState.RESTARTING, "silent"), Kill(1)]
    assert machine.handle(Exited(1, -9, "by SIGKILL"), 9.0)[0] == StateChanged(EngineState.RESTARTING, "silent")


def test_a_crash_is_answered_by_a_new_start() -> None:
    machine = ready()
    assert machine.handle(Exited(1, -9, "ended by SIGKILL"), 5.0) == [
        StateChanged(EngineState.RESTARTING, "ended by SIGKILL"),
        WakeAt(6.0),
    ]
    assert machine.handle(Tick(), 5.5) == [WakeAt(6.0)]
    assert machine.handle(Tick(), 6.0) == [Spawn(2)]


def test_waits_double_up_to_the_cap_and_shrink_once_an_engine_has_settled() -> None:
    machine = started()
    now, waits = 0.0, []
    for generation in range(1, 9):
        effects = machine.handle(Exited(generation, 1, "crashed"), now)
        assert isinstance(effects[1], WakeAt)
        waits.append(effects[1].time - now)
        now = effects[1].time
        machine.handle(Tick(), now)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
    ready(9, machine, now)
    assert machine.handle(Exited(9, 1, "crashed"), now + 60)[1] == WakeAt(now + 61)


def test_the_jitter_is_full() -> None:
    waits = []
    for seed in range(200):
        machine = Lifecycle(CONFIG, Random(seed))
        machine.handle(Tick(), 0.0)
        effects = machine.handle(Exited(1, 1, "crashed"), 0.0)
        assert isinstance(effects[1], WakeAt)
        waits.append(effects[1].time)
    assert min(waits) < 0.1
    assert 0.9 < max(waits) <= 1.0


@pytest.mark.parametrize("code", [NOT_A_MODEL, None])
def test_what_only_a_person_can_mend_ends_in_failed_for_ever(code: int | None) -> None:
    machine = started()
    assert machine.handle(Exited(1, code, "not a model"), 1.0) == [StateChanged(EngineState.FAILED, "not a model")]
    for event in (Tick(), Spawned(1), HealthOk(1), Exited(1, 0, "")):
        assert machine.handle(event, 1e6) == []


def test_a_child_killed_by_us_is_not_hopeless_whatever_its_status() -> None:
    machine = started()
    machine.handle(Spawned(1), 0.0)
    assert machine.handle(Tick(), 10.0) == [Kill(1)]
    assert isinstance(machine.handle(Exited(1, NOT_A_MODEL, ""), 10.1)[1], WakeAt)


def test_news_of_an_earlier_child_changes_nothing() -> None:
    machine = ready()
    machine.handle(Exited(1, 1, "crashed"), 1.0)
    machine.handle(Tick(), 2.0)
    for event in (Spawned(1), HealthOk(1), ModelListed(1), WarmedUp(1), HealthFailed(1, ""), Exited(1, None, "")):
        assert machine.handle(event, 2.0) == []
    ready(2, machine, 2.0)


EVENTS = st.one_of(
    st.just(Tick()),
    *(st.builds(kind, st.integers(1, 3)) for kind in (Spawned, HealthOk, ModelListed, WarmedUp)),
    st.builds(HealthFailed, st.integers(1, 3), st.just("silent")),
    st.builds(Exited, st.integers(1, 3), st.sampled_from([0, 1, -9]), st.just("crashed")),
)


@given(st.lists(st.tuples(EVENTS, st.floats(0, 20)), max_size=60))
def test_no_order_of_events_starts_two_children_or_probes_twice_at_once(steps: list[tuple[Event, float]]) -> None:
    machine = Lifecycle(CONFIG, Random(1))
    now, alive, probing = 0.0, 0, False
    for event, wait in steps:
        now += wait
        # The driver reports only what happened: an exit of a child that lives, an answer to a probe that was asked.
        generation = getattr(event, "generation", None)
        if isinstance(event, Exited):
            if generation != alive:
                continue
            alive, probing = 0, False
        elif isinstance(event, HealthOk | ModelListed | WarmedUp | HealthFailed):
            if not probing or generation != alive:
                continue
            probing = False
        elif isinstance(event, Spawned) and (generation != alive or probing):
            continue
        for effect in machine.handle(event, now):
            if isinstance(effect, Spawn):
                assert alive == 0
                alive, probing = effect.generation, False
            elif isinstance(effect, Probe):
                assert effect.generation == alive
                assert not probing
                probing = True
            elif isinstance(effect, Kill):
                assert effect.generation == alive
