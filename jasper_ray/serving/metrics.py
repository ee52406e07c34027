"""Metrics for Prometheus: any replica shows one page for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
PHASES = ("prepare", "queue", "model", "total")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one replica."""

    def __init__(self) -> None:
        disable_created_metrics()  # or each counter has a second sample
        self.registry = own = CollectorRegistry()
        self.requests = Counter("jasper_ray_requests", "Requests answered", ["route", "status", "key"], registry=own)
        self.tokens = Counter("jasper_ray_tokens", "Tokens embedded per key", ["key"], registry=own)
        self.inputs = Counter("jasper_ray_inputs", "Texts and images embedded per key", ["key"], registry=own)
        self.phases = Histogram(
            "jasper_ray_phase_seconds",
            "Seconds of a request in a phase: prepare, queue, model, total",
            ["phase"],
            buckets=SECONDS,
            registry=own,
        )
        self.batch_rows = Histogram("jasper_ray_batch_rows", "Rows of a batch", buckets=SIZES, registry=own)
        self.batch_seconds = Histogram("jasper_ray_batch_seconds", "Seconds of a batch", buckets=SECONDS, registry=own)
        self.useful = Counter("jasper_ray_batch_tokens", "Tokens computed, without padding", registry=own)
        self.computed = Counter("jasper_ray_computed_tokens", "Tokens computed, with padding", registry=own)
        self.queue_tokens = Gauge("jasper_ray_queue_tokens", "Tokens admitted and not yet embedded", registry=own)
        self.queue_seconds = Gauge("jasper_ray_queue_seconds", "Seconds until those are embedded", registry=own)
        self.rate = Gauge("jasper_ray_drain_tokens_per_second", "Tokens per second of a busy model", registry=own)
        self._phases = {name: self.phases.labels(name) for name in PHASES}

    def batch(self, rows: int, tokens: int, computed: int, seconds: float) -> None:
        """Count a batch of the model."""
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)
        self.useful.inc(tokens)
        self.computed.inc(computed)

    def phase(self, name: str, seconds: float) -> None:
        """Count the time of a request in one of its phases."""
        self._phases[name].observe(max(seconds, 0.0))

    def text(self) -> str:
        """Render the page for Prometheus."""
        return generate_latest(self.registry).decode()


class Merged(Collector):
    """The metrics of several replicas, each sample labelled with its replica."""

    def __init__(self, pages: Mapping[str, str]) -> None:
        self.pages = pages

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, page in self.pages.items():
            for read in text_string_to_metric_families(page):
                family = families.setdefault(read.name, Metric(read.name, read.documentation, read.type))
                for sample in read.samples:
                    family.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
        return families.values()


def merged(pages: Mapping[str, str]) -> str:
    """Merge the pages of several replicas, by name, into one."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Merged(pages))
    return generate_latest(registry).decode()
