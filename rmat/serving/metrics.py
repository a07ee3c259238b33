"""What a server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "tokens_read": "tokens of prompts that the model has read",
    "tokens_written": "tokens that the model has written",
    "cache_hits": "prompts of which a beginning was found in the prefix cache",
    "cache_tokens": "tokens of prompts that the prefix cache saved reading",
}
_GAUGES = {
    "rows": "answers being written",
    "reading": "prompts being read",
    "waiting": "requests that wait for a row",
    "cache_bytes": "bytes that the prefix cache holds",
}
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Metrics of one app, in a registry of its own.

    Args:
        stats: gives the engine's numbers, read whenever the metrics are asked for.
    """

    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rmat_requests",
            "Requests by address and HTTP status (499: cut by the client)",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "rmat_request_seconds",
            "Seconds from a request's arrival to the end of its answer",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_EngineCollector(stats))

    def note(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """Count a request that has been answered; addresses count by their pattern, unknown ones as one."""
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(scope["method"] if route != "other" else "any", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Metric]:
        """The engine's numbers of this moment."""
        stats = self._stats()
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"rmat_{name}", text.capitalize(), value=float(stats[name]))
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"rmat_{name}", text.capitalize(), value=float(stats[name]))
