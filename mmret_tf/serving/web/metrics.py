"""What Prometheus reads: requests, how long they took, batches and the gallery."""

import time

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one service.

    Attributes:
        requests: Number of requests by path and status.
        seconds: How long they took, by path.
        batches: Sizes of the batches of queries.
        items: Number of items in the gallery.
    """

    def __init__(self):
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "mmret_requests", "Requests answered.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "mmret_request_seconds", "Time to answer.", ["path"], buckets=SECONDS, registry=registry
        )
        self.batches = Histogram(
            "mmret_batch_size", "Queries answered at once.", buckets=SIZES, registry=registry
        )
        self.items = Gauge("mmret_gallery_items", "Items in the gallery.", registry=registry)

    def text(self) -> bytes:
        """All figures in the text format of Prometheus."""
        return generate_latest(self._registry)


class Counted:
    """An application whose requests are counted, by the path of the route and not by ids.

    Args:
        app: Answers the requests.
        metrics: Is told of each.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = time.perf_counter(), 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            if scope["type"] == "http":
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(path, status).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
