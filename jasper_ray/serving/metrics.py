"""What Prometheus scrapes: one page for all replicas, from whichever of them is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one replica."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second sample for every counter, of no use here
        self.registry = own = CollectorRegistry()
        self.requests = Counter("jasper_ray_requests", "Requests answered", ["route", "status", "key"], registry=own)
        self.tokens = Counter("jasper_ray_tokens", "Tokens embedded for a key", ["key"], registry=own)
        self.inputs = Counter("jasper_ray_inputs", "Texts and images embedded for a key", ["key"], registry=own)
        self.phases = Histogram(
            "jasper_ray_phase_seconds",
            "Seconds of a request in a phase: prepare, queue, model, total",
            ["phase"],
            buckets=SECONDS,
            registry=own,
        )
        self.batch_rows = Histogram("jasper_ray_batch_rows", "Rows of a batch", buckets=SIZES, registry=own)
        self.batch_seconds = Histogram("jasper_ray_batch_seconds", "Seconds of a batch", buckets=SECONDS, registry=own)
        self.useful = Counter("jasper_ray_batch_tokens", "Tokens that went through the model", registry=own)
        self.computed = Counter(
            "jasper_ray_computed_tokens", "The same with the padding of their batches", registry=own
        )
        self.queue_tokens = Gauge(
            "jasper_ray_queue_tokens", "Tokens that are admitted and not yet embedded", registry=own
        )
        self.queue_seconds = Gauge("jasper_ray_queue_seconds", "Seconds in which they will be", registry=own)
        self.rate = Gauge("jasper_ray_drain_tokens_per_second", "Tokens a second while the model works", registry=own)
        self._phase = {name: self.phases.labels(name) for name in ("prepare", "queue", "model", "total")}

    def batch(self, rows: int, tokens: int, computed: int, seconds: float) -> None:
        """Count a batch of the model."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)
        self.useful.inc(tokens)
        self.computed.inc(computed)

    def phase(self, name: str, seconds: float) -> None:
        """Count the time of a request in one of its phases."""
        self._phase[name].observe(max(seconds, 0.0))

    def text(self) -> str:
        """As Prometheus reads it."""
        return generate_latest(self.registry).decode()


class Merged(Collector):
    """The metrics of several replicas, each sample labelled with its replica."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self.texts.items():
            for found in text_string_to_metric_families(text):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        return families.values()


def merged(texts: Mapping[str, str]) -> str:
    """One page of several replicas' metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Merged(texts))
    return generate_latest(registry).decode()
