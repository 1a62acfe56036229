"""What this process counts about its requests, in a Prometheus registry of the app's own."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.registry import Collector

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Instruments:
    """Told by the middleware of each request; names are listed in docs/observing.md."""

    def __init__(self) -> None:
        # Else each counter has a second line, which nobody asks for.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ("method", "route")
        self._requests = Counter(
            "stoplab_http_requests", "Requests answered.", (*labels, "status"), registry=registry
        )
        self._seconds = Histogram(
            "stoplab_http_request_duration_seconds", "Until the last byte of the answer.",
            labels, buckets=BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._replays = Counter(
            "stoplab_idempotent_replays", "Submits answered with an earlier job.", registry=registry
        )
        self._streams = Gauge(
            "stoplab_event_streams_open", "Server-sent event streams.", registry=registry
        )
        Info("stoplab_build", "This server.", registry=registry).info(
            {"version": version("stoplab"), "python": platform.python_version()}
        )

    @contextmanager
    def watching(self, collector: Collector) -> Iterator[None]:
        """While the block lasts, a scrape asks this collector too."""
        self.registry.register(collector)
        try:
            yield
        finally:
            self.registry.unregister(collector)

    def stream_opened(self) -> None:
        """An answer has begun that is a stream of events."""
        self._streams.inc()

    def stream_closed(self) -> None:
        """It has ended."""
        self._streams.dec()

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """A request has its answer; ``seconds`` is None for streams, which last as they like."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, status).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)

    def replayed(self) -> None:
        """A submit was answered with an earlier job."""
        self._replays.inc()
