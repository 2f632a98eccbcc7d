"""docs/api.md lists every metric as it is exported: its name, its labels and what its help says."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from daemon.gauges import register_gauges
from daemon.metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "api.md"


class Listed(Metrics):
    """Notes what is registered instead of reading it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[str] = []
        for collector in (self.http_requests, self.asks, self.ask_seconds, self.first_token_seconds, self.served, self.rounds):
            suffix = "_total" if isinstance(collector, Counter) else ""
            self.note(f"{collector._name}{suffix}", collector._labelnames, collector._documentation)

    def note(self, name: str, labels: tuple[str, ...], text: str) -> None:
        self.rows.append(f"| `{name}` | {', '.join(f'`{label}`' for label in labels)} | {text} |")

    def read_gauge(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self.note(name, (label,), text)

    def read_counter(self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self.note(f"{name}_total", (label,), text)


def test_every_metric_is_documented_as_it_is_exported() -> None:
    listed, nothing = Listed(), Any
    register_gauges(listed, nothing, nothing, nothing)  # type: ignore[arg-type]  # read at scrape time alone
    table = PAGE.read_text().partition("## Metrics\n")[2].partition("\n## ")[0]
    assert [line for line in table.splitlines() if line.startswith("| `")] == sorted(listed.rows)
