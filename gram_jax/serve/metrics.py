"""What /metrics reports."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gram_jax.scoring.request_batcher import RequestBatcher


class ServerMetrics:
    """The counters of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "gram_requests", "Answered requests", ("path", "status"), registry=registry
        )
        self.seconds = Histogram(
            "gram_request_seconds", "From first byte to last", ("path",), registry=registry
        )
        self.uncompared = Counter(
            "gram_uncompared", "Rewards of responses compared with no other", registry=registry
        )
        self._waiting = Gauge("gram_sequences_waiting", "Queued or being scored", registry=registry)
        self._scored = Gauge("gram_sequences_scored", "Since the start", registry=registry)
        self._batches = Gauge("gram_batches", "Calls of the judge since start", registry=registry)
        self._speed = Gauge("gram_sequences_per_second", "Moving average", registry=registry)

    def render(self, batcher: RequestBatcher) -> bytes:
        """In Prometheus' text format."""
        self._waiting.set(batcher.waiting)
        self._scored.set(batcher.scored)
        self._batches.set(batcher.batches)
        self._speed.set(batcher.speed)
        return generate_latest(self.registry)
