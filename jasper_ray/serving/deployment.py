"""The server as a Ray Serve application: one deployment holds web server, tokenizers and model, as many replicas of it
as the load asks for, and one small actor keeps what they share.

Serve's own proxy costs several times what a short text costs in the model. Where the flags of `flags.py` are set when
Ray starts, HAProxy passes requests straight to the replicas instead.
"""

# No `from __future__ import annotations` here: Serve reads the class of `build_app`'s parameter.

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from jasper_ray.config import ConfigError
from jasper_ray.serving.flags import REPLICA_FLAGS
from jasper_ray.serving.gateway import build_gateway
from jasper_ray.serving.inputs import TextInput
from jasper_ray.serving.keys import Book, Ledger
from jasper_ray.serving.load import open_service
from jasper_ray.serving.scaling import BUSY, QUEUED
from jasper_ray.serving.settings import Copies, ServeSettings

logger = logging.getLogger(__name__)

ONGOING = 10_000
"""Requests that a replica has at once, at most: the budget of tokens refuses long before."""
ASK_S = 1.0
"""How long the ledger is waited for; without it a replica answers all the same."""


class RemoteBook:
    """The ledger of all replicas. One that does not answer limits nobody."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def take(self, key: str, tokens: int, per_minute: int) -> float:
        """See `Ledger.take`."""
        try:
            return float(await asyncio.wait_for(self.handle.take.remote(key, tokens, per_minute), ASK_S))
        except Exception as error:
            logger.warning("the ledger does not answer (%s); %s is not limited now", type(error).__name__, key)
            return 0.0

    async def exchange(self, replica: str, metrics: str) -> dict[str, str]:
        """See `Ledger.exchange`."""
        try:
            told: dict[str, str] = await asyncio.wait_for(self.handle.exchange.remote(replica, metrics), ASK_S)
            return told
        except Exception as error:
            logger.warning("the ledger does not answer (%s); the other replicas' metrics are missing", error)
            return {replica: metrics}


@serve.ingress()
class Server:
    """A replica: the model, and the surfaces over it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: dict[str, Any], shared: DeploymentHandle | None
    ) -> None:
        log_with(logging.getLogger("ray.serve"))
        replica = serve.get_replica_context().replica_id.unique_id
        book: Book = RemoteBook(shared) if shared else Ledger()
        parsed = ServeSettings.model_validate(settings)
        self.service = await asyncio.to_thread(open_service, parsed, book, replica)
        self.service.engine.start()
        self.service.preparer.prepared([TextInput("the first request need not wait for this thread's tokenizer")])
        self.telling = asyncio.create_task(self.tell())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_gateway(self.service)

    async def tell(self) -> None:
        """Let the other replicas know this one's metrics, so that each can show all of them."""
        while True:
            await self.service.book.exchange(self.service.replica, self.service.measured())
            await asyncio.sleep(2.0)

    async def check_health(self) -> None:
        """Serve replaces a replica that raises here."""
        if self.service.engine.model.dead:
            raise RuntimeError(self.service.engine.model.dead)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `scaling.QueuedWork` decides by."""
        engine = self.service.engine
        return {QUEUED: engine.queue.wait_s, BUSY: engine.busy_share()}

    async def __del__(self) -> None:
        self.telling.cancel()
        await asyncio.to_thread(self.service.engine.close)
        self.service.preparer.close()


def log_with(served: logging.Logger) -> None:
    """Our lines in the file of the replica, where Serve's own are: logs/serve/replica_… in Ray's folder."""
    own = logging.getLogger("jasper_ray")
    own.setLevel(logging.INFO)
    own.handlers, own.propagate = list(served.handlers), False


def build_app(settings: ServeSettings) -> serve.Application:
    """The application, for `serve.run` and for `serve deploy`.

    >>> serve.run(build_app(ServeSettings(model="runs/quickstart/student", open=True)))    # doctest: +SKIP
    """
    copies = settings.copies
    shared = None
    if copies.max > 1 or settings.keys_file or settings.keys:
        shared = serve.deployment(Ledger, name="Ledger", ray_actor_options={"num_cpus": 0}).bind()
    scale: dict[str, Any] = {"num_replicas": copies.min}
    if copies.max > copies.min:
        scale = {"autoscaling_config": autoscaling(copies)}
    server = serve.deployment(
        Server,
        name="Server",
        max_ongoing_requests=ONGOING,
        max_surge_percent=copies.surge_percent,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=30.0,
        logging_config={"enable_access_log": False},  # ours says more, and no more than it may
        ray_actor_options={
            "num_cpus": copies.cpus,
            "num_gpus": copies.gpus,
            "runtime_env": {"env_vars": REPLICA_FLAGS},
        },
        **scale,
    )
    return server.bind(settings.model_dump(mode="json"), shared)


def autoscaling(copies: Copies) -> dict[str, Any]:
    """Between so many and so many replicas, by queued work."""
    return {
        "min_replicas": copies.min,
        "max_replicas": copies.max,
        "upscale_delay_s": copies.upscale_delay_s,
        "downscale_delay_s": copies.downscale_delay_s,
        "look_back_period_s": min(15.0, copies.downscale_delay_s),
        "policy": {
            "policy_function": "jasper_ray.serving.scaling:QueuedWork",
            "policy_kwargs": {"target_s": copies.target_s},
        },
    }


def check_room(settings: ServeSettings) -> None:
    """Refuse a cluster that can never hold the replicas, which would otherwise be waited for in vain.

    Raises:
        ConfigError: with what it has.
    """
    found, copies = ray.cluster_resources(), settings.copies
    for name, needed in (("CPU", copies.min * copies.cpus), ("GPU", copies.min * copies.gpus)):
        if needed > found.get(name, 0.0) + 1e-6:
            raise ConfigError(
                f"{copies.min} replicas reserve {needed:g} {name}s, but the cluster has {found.get(name, 0.0):g}; "
                "lower --replicas, --cpus or --gpus, or add machines"
            )
