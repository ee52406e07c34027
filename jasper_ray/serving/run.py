"""A server in a Ray of its own, or in the one that runs, until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import ray
from ray import serve

from jasper_ray.config import ConfigError, config_message
from jasper_ray.ray_runtime import cannot_join
from jasper_ray.serving.deployment import build_app, check_room
from jasper_ray.serving.flags import set_flags
from jasper_ray.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

APP = "jasper_ray"


def run_server(settings: ServeSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, then let what is being answered be answered.

    Raises:
        ConfigError: the address is taken, the cluster too small, or the model does not load.
    """
    check_free(host, port)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until it is up, both end it at once
    with joined_ray(settings):
        check_room(settings)
        start(settings, host, port)
        wait_for_signal(settings, host, port)
        serve.delete(APP)


def wait_for_signal(settings: ServeSettings, host: str, port: int) -> None:
    """Say where it answers, and return when it is told to stop."""
    stopping = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopping.set())
    logger.info("%s answers at %s; try it in a browser there", settings.served_name, shown(host, port))
    stopping.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # twice: at once
    logger.info("stopping")


@contextmanager
def joined_ray(settings: ServeSettings) -> Iterator[None]:
    """The Ray that RAY_ADDRESS names, or one for this process alone.

    Raises:
        ConfigError: there is no Ray at RAY_ADDRESS, or Serve runs there already, at an address of its own; `serve
            deploy` is what updates it.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    folder = tempfile.TemporaryDirectory(prefix="jr-", dir="/tmp")  # a socket lies in it, whose path must be short
    if address := os.environ.get("RAY_ADDRESS"):
        logger.info("joining Ray at %s", address)
        try:
            ray.init(address, **quiet)
        except Exception as error:
            raise cannot_join(address, error) from error
    else:
        logger.info("starting a local Ray")
        set_flags(folder.name)
        copies = settings.copies
        cpus = max(os.cpu_count() or 1, round(copies.max * copies.cpus + 1))
        ray.init("local", num_cpus=cpus, include_dashboard=False, **quiet)
    taken = bool(address and serve.status().proxies)
    try:
        if taken:
            raise ConfigError(f"Ray Serve runs at {address} already; deploy to it: serve deploy cluster/serve.yaml")
        yield
    finally:
        with redirect_stdout(None):  # where Ray says that the controller died when it was told to
            if not taken:
                serve.shutdown()  # else HAProxy, which is no process of Ray's, would keep the port
            ray.shutdown()
        folder.cleanup()


def start(settings: ServeSettings, host: str, port: int) -> None:
    """Bring the application up, and wait until it answers."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(http_options={"host": host, "port": port}, logging_config={"enable_access_log": False})
    try:
        serve.run(build_app(settings), name=APP, route_prefix="/")
    except Exception as error:
        told = config_message(error) or why_not(APP)
        raise ConfigError(told) from error


def why_not(app: str) -> str:
    """The last line of what Serve says of an application that did not start."""
    found = serve.status().applications.get(app)
    messages = [one.message for one in found.deployments.values() if one.message] if found else []
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    faults = [line for line in lines if "ConfigError" in line]
    return (faults or lines or ["the server did not start"])[-1].rpartition("ConfigError: ")[2]


def check_free(host: str, port: int) -> None:
    """Refuse an address that is taken, or is none of this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}); choose another --port or --host") from error


def shown(host: str, port: int) -> str:
    """The address as a browser takes it."""
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
