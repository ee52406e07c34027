"""The Ray Serve application: replicas with web server, tokenizers and model, and one small actor for what they share.

Serve's own proxy costs several times what a short text costs in the model. With the flags of `ray_serve.py`, HAProxy
passes requests straight to the replicas instead.
"""

# No `from __future__ import annotations` here: Serve reads the class of `build_app`'s parameter.

import asyncio
import logging
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from jasper_ray.serving.gateway import build_gateway
from jasper_ray.serving.inputs import TextInput
from jasper_ray.serving.keys import Ledger
from jasper_ray.serving.load import open_service
from jasper_ray.serving.ray_serve import BUSY, QUEUED, REPLICA_FLAGS, autoscaling
from jasper_ray.serving.settings import ServeSettings

logger = logging.getLogger(__name__)

MAX_REQUESTS = 10_000
"""Open requests of a replica; the budget of tokens refuses long before."""
LEDGER_TIMEOUT_S = 1.0
"""Seconds to wait for the ledger; a replica answers without it."""


class RemoteLedger(Ledger):
    """The ledger of all replicas, in an actor. While the actor does not respond, no key is limited."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self.handle = handle

    async def take(self, key: str, tokens: int, per_minute: int) -> float:
        try:
            return float(await asyncio.wait_for(self.handle.take.remote(key, tokens, per_minute), LEDGER_TIMEOUT_S))
        except Exception as error:
            logger.warning("ledger not responding (%s); not limiting key %s", type(error).__name__, key)
            return 0.0

    async def exchange(self, replica: str, metrics: str) -> dict[str, str]:
        try:
            pages: dict[str, str]
            pages = await asyncio.wait_for(self.handle.exchange.remote(replica, metrics), LEDGER_TIMEOUT_S)
            return pages
        except Exception as error:
            logger.warning("ledger not responding (%s); /metrics lacks other replicas", type(error).__name__)
            return {replica: metrics}


@serve.ingress()
class Server:
    """A replica: the model, and the surfaces over it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: dict[str, Any], ledger: DeploymentHandle | None
    ) -> None:
        log_with(logging.getLogger("ray.serve"))
        replica = serve.get_replica_context().replica_id.unique_id
        shared = RemoteLedger(ledger) if ledger else Ledger()
        parsed = ServeSettings.model_validate(settings)
        self.service = await asyncio.to_thread(open_service, parsed, shared, replica)
        self.service.engine.start()
        self.service.preparer.prepared([TextInput("a first text, so that this thread has its tokenizer")])
        self.sharing = asyncio.create_task(self.share_metrics())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return build_gateway(self.service)

    async def share_metrics(self) -> None:
        """Send this replica's metrics to the ledger, so that any replica can show all of them."""
        while True:
            await self.service.ledger.exchange(self.service.replica, self.service.metrics_page())
            await asyncio.sleep(2.0)

    async def check_health(self) -> None:
        """Raise if the model is dead; Serve then replaces the replica."""
        if self.service.engine.model.dead:
            raise RuntimeError(self.service.engine.model.dead)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return the metrics that `ray_serve.QueuedWork` reads."""
        engine = self.service.engine
        return {QUEUED: engine.queue.wait_s, BUSY: engine.busy_share()}

    async def __del__(self) -> None:
        self.sharing.cancel()
        await asyncio.to_thread(self.service.engine.close)
        self.service.preparer.close()


def log_with(served: logging.Logger) -> None:
    """Write our log lines to the replica's log file, with Serve's: logs/serve/replica_… in Ray's folder."""
    own = logging.getLogger("jasper_ray")
    own.setLevel(logging.INFO)
    own.handlers, own.propagate = list(served.handlers), False


def build_app(settings: ServeSettings) -> serve.Application:
    """Build the application, for `serve.run` and for `serve deploy`.

    >>> serve.run(build_app(ServeSettings(model="runs/quickstart/student", open=True)))    # doctest: +SKIP
    """
    copies = settings.copies
    ledger = None
    if copies.max > 1 or settings.keys_file or settings.keys:
        ledger = serve.deployment(Ledger, name="Ledger", ray_actor_options={"num_cpus": 0}).bind()
    scale: dict[str, Any] = {"num_replicas": copies.min}
    if copies.max > copies.min:
        scale = {"autoscaling_config": autoscaling(copies)}
    server = serve.deployment(
        Server,
        name="Server",
        max_ongoing_requests=MAX_REQUESTS,
        max_surge_percent=copies.surge_percent,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        graceful_shutdown_wait_loop_s=1.0,
        graceful_shutdown_timeout_s=30.0,
        logging_config={"enable_access_log": False},  # ours says more, and nothing private
        ray_actor_options={
            "num_cpus": copies.cpus,
            "num_gpus": copies.gpus,
            "runtime_env": {"env_vars": REPLICA_FLAGS},
        },
        **scale,
    )
    return server.bind(settings.model_dump(mode="json"), ledger)
