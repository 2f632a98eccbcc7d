"""Every metric of the daemon, named once. Labels are bounded words: never a peer id, a prompt or a user."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Reading = Mapping[str, float]

_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters that code increments; `registry` also reads the gauges and counters that other parts keep for themselves."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http_requests = Counter(
            "swarmd_http_requests", "Requests to the local API", ["route", "status"], registry=self.registry
        )
        self.asks = Counter("swarmd_asks", "Questions of the local user", ["strategy", "outcome"], registry=self.registry)
        self.ask_seconds = Histogram(
            "swarmd_ask_seconds", "From question to last word", ["strategy"], buckets=_SECONDS, registry=self.registry
        )
        self.first_token_seconds = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a peer's request to our first token",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.served = Counter("swarmd_serving_calls", "Completions served to peers", ["outcome"], registry=self.registry)
        self.rounds = Counter("swarmd_rounds", "Rounds by how they closed", ["role", "outcome"], registry=self.registry)

    def read_gauge(self, name: str, text: str, label: str, read: Callable[[], Reading]) -> None:
        """Register a gauge family read at scrape time: `read()` gives a value per (bounded) label."""
        self.registry.register(_Reader(name, text, label, read, GaugeMetricFamily))

    def read_counter(self, name: str, text: str, label: str, read: Callable[[], Reading]) -> None:
        """Register a counter family kept elsewhere and read at scrape time."""
        self.registry.register(_Reader(name, text, label, read, CounterMetricFamily))


class _Reader(Collector):
    def __init__(
        self,
        name: str,
        text: str,
        label: str,
        read: Callable[[], Reading],
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    ) -> None:
        self._name = name
        self._text = text
        self._label = label
        self._read = read
        self._family = family

    def collect(self) -> Iterable[Metric]:
        family = self._family(self._name, self._text, labels=[self._label])
        for label, value in self._read().items():
            family.add_metric([label], value)
        yield family
