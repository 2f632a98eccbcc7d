"""Registers what the parts count for themselves, so that /metrics shows it. Reads; changes nothing."""

from collections import Counter
from collections.abc import Mapping
from statistics import median

from daemon.backend import Parts
from daemon.calls import Calls
from daemon.engine.interface import EngineState
from daemon.metrics import Metrics
from daemon.rounds import Rounds


def register_gauges(metrics: Metrics, parts: Parts, calls: Calls, rounds: Rounds) -> None:
    """Register every reading once. Labels are words of our own, never a peer's."""

    def peers() -> dict[str, float]:
        return _floats(Counter(str(view.standing) for view in parts.membership.peers()))

    def engine() -> dict[str, float]:
        current = parts.serving.engine
        return {str(state): float(current is not None and current.state is state) for state in EngineState}

    def outcomes() -> dict[str, float]:
        return {f"{side}/{method}/{outcome}": float(count) for (side, method, outcome), count in calls.outcomes.items()}

    def breaches() -> dict[str, float]:
        return _floats(calls.breaches)

    def faults() -> dict[str, float]:
        return _floats(rounds.faults)

    def claim_faults() -> dict[str, float]:
        return _floats(parts.reputation.faults)

    def presence_refused() -> dict[str, float]:
        return _floats(parts.membership.refused)

    def probes() -> dict[str, float]:
        return {} if parts.probing is None else _floats(parts.probing.outcomes)

    def checks() -> dict[str, float]:
        return {} if parts.asking.verification is None else _floats(parts.asking.verification.outcomes)

    metrics.read_counter("swarmd_probes", "Probes of ours, by what came of them", "outcome", probes)
    metrics.read_counter("swarmd_output_checks", "Answers that another engine weighed, by verdict", "verdict", checks)
    _register_paths(metrics, parts)
    metrics.read_gauge("swarmd_mesh_peers", "Known peers by state", "state", peers)
    metrics.read_gauge("swarmd_engine_state", "1 for the state the engine is in", "state", engine)
    metrics.read_gauge("swarmd_serving_busy", "Requests running or waiting", "kind", lambda: {"all": float(parts.serving.busy)})
    metrics.read_gauge("swarmd_rounds_open", "Rounds not closed yet", "kind", lambda: {"all": float(rounds.open_rounds)})
    metrics.read_counter("swarmd_rpc_calls", "Calls between peers by side/method/outcome", "call", outcomes)
    metrics.read_counter("swarmd_rpc_breaches", "Links dropped because a peer broke the contract", "reason", breaches)
    metrics.read_counter("swarmd_round_faults", "Round messages that broke the protocol", "reason", faults)
    metrics.read_counter("swarmd_claim_faults", "Answers about claims that broke the protocol", "reason", claim_faults)
    metrics.read_counter("swarmd_presence_refused", "Heartbeats that were not believed", "reason", presence_refused)


def _register_paths(metrics: Metrics, parts: Parts) -> None:
    """How peers are reached: by kind of path, and what punching and relaying came to."""

    def paths() -> dict[str, float]:
        return _floats(Counter(str(path.kind) for path in parts.transport.paths().values()))

    def round_trips() -> dict[str, float]:
        measured: dict[str, list[float]] = {}
        for path in parts.transport.paths().values():
            if path.rtt is not None:
                measured.setdefault(str(path.kind), []).append(path.rtt)
        return {kind: median(seconds) for kind, seconds in measured.items()}

    def service(name: str) -> dict[str, float]:
        counted: Mapping[str, Mapping[str, int]] = getattr(parts.transport, "service_counters", dict)()
        return _floats(counted.get(name, {}))

    metrics.read_gauge("swarmd_mesh_connections", "Connected peers by kind of path", "kind", paths)
    metrics.read_gauge("swarmd_mesh_rtt_seconds", "Median round trip by kind of path", "kind", round_trips)
    metrics.read_counter("swarmd_mesh_paths", "Connections since start by kind of path", "kind", lambda: service("paths"))
    metrics.read_counter("swarmd_punch", "Upgrades of relayed paths, and UDP punches", "outcome", lambda: service("punch"))
    metrics.read_counter("swarmd_relay", "Relayed for others: places, circuits, bytes", "what", lambda: service("relay"))


def _floats(counts: Mapping[str, int]) -> dict[str, float]:
    return {name: float(count) for name, count in counts.items()}
