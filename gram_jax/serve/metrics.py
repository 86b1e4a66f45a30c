"""What /metrics reports."""

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gram_jax.scoring.request_batcher import RequestBatcher

GAUGES = {  # name: description and attribute of the batcher
    "gram_tokens_waiting": ("Queued or being scored", "waiting"),
    "gram_sequences_scored": ("Since the start", "scored"),
    "gram_batches": ("Calls of the judge since the start", "batches"),
    "gram_tokens_per_second": ("Moving average", "speed"),
}


class ServerMetrics:
    """The counters of one server."""

    def __init__(self, batcher: RequestBatcher) -> None:
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
        self.surrogates = Counter(
            "gram_surrogates", "Lone surrogates in texts, replaced by U+FFFD", registry=registry
        )
        self.notes = Counter(
            "gram_not_shown",
            "What was read and not shown to the judge",
            ("what",),
            registry=registry,
        )
        for name, (description, attribute) in GAUGES.items():
            gauge = Gauge(name, description, registry=registry)
            gauge.set_function(partial(getattr, batcher, attribute))

    def render(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
