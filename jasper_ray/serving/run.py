"""A server in a Ray of its own, or in the one at RAY_ADDRESS, until a signal stops it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from ray import serve

from jasper_ray.config import ConfigError, config_message
from jasper_ray.ray_runtime import check_room, join_or_start, stop_ray
from jasper_ray.serving.deployment import build_app
from jasper_ray.serving.ray_serve import set_flags
from jasper_ray.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

APP = "jasper_ray"


def run_server(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, then answer the open requests and stop.

    Raises:
        ConfigError: the address is taken, the cluster is too small, or the model does not load.
    """
    check_free(host, port)
    with serve_session(settings, port):
        start(settings, host, port)
        wait_for_signal(settings.served_name, host, port)
        serve.delete(APP)


def wait_for_signal(name: str, host: str, port: int) -> None:
    """Log the address, and return at the first signal; a second one stops at once."""
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    shown = f"[{host}]" if ":" in host else host
    logger.info("%s answers at http://%s:%d/; open it in a browser to try it", name, shown, port)
    stopping.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logger.info("stopping")


@contextmanager
def serve_session(settings: ServeSettings, port: int) -> Iterator[None]:
    """Join the Ray at RAY_ADDRESS or start a local one, and end Ray Serve with the block; `port` is kept free.

    Raises:
        ConfigError: there is no Ray at RAY_ADDRESS, it is too small, or Serve runs there already, at its own address.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    address, copies = os.environ.get("RAY_ADDRESS"), settings.copies
    with tempfile.TemporaryDirectory(prefix="jr-", dir="/tmp") as folder:  # holds a socket, whose path must be short
        if not address:
            set_flags(folder, taken=[port])
        join_or_start(copies.max * copies.cpus)
        taken = bool(address and serve.status().proxies)
        try:
            if taken:
                raise ConfigError(f"Ray Serve runs at {address} already; deploy to it: serve deploy cluster/serve.yaml")
            check_room(copies.min * copies.cpus, copies.min * copies.gpus, "--replicas, --cpus or --gpus")
            yield
        finally:
            with redirect_stdout(None):  # Ray prints that the controller died
                if not taken:
                    serve.shutdown()  # or HAProxy, which is not a process of Ray's, would keep the port
                stop_ray()


def start(settings: ServeSettings, host: str, port: int) -> None:
    """Start the application, and wait until it answers."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
    try:
        serve.run(build_app(settings), name=APP, route_prefix="/")
    except Exception as error:
        raise ConfigError(config_message(error) or fault_of(APP)) from error


def fault_of(app: str) -> str:
    """Return the last line of Serve's messages about an application that did not start."""
    status = serve.status().applications.get(app)
    messages = [one.message for one in status.deployments.values() if one.message] if status else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    faults = [line for line in lines if "ConfigError" in line]
    return (faults or lines or ["the server did not start"])[-1].rpartition("ConfigError: ")[2]


def check_free(host: str, port: int) -> None:
    """Refuse an address that is taken or does not belong to this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from error
