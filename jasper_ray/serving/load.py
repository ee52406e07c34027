"""Open a service: load and warm the model, choose its precision, measure its speed before the first request."""

from __future__ import annotations

import logging
import time

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.folder import OutputFolder
from jasper_ray.embedding.store import open_store
from jasper_ray.encoders import Encoder, image_encoder
from jasper_ray.encoders.inference import OpenModel, check_length, open_for_inference
from jasper_ray.encoders.token_budget import TokenBudget
from jasper_ray.models.identity import revision_in, weights_identity
from jasper_ray.serving.engine import Engine
from jasper_ray.serving.keys import Keys, Ledger
from jasper_ray.serving.metrics import Metrics
from jasper_ray.serving.model import Model
from jasper_ray.serving.prepare import Preparer
from jasper_ray.serving.queue import TokenQueue
from jasper_ray.serving.service import Service
from jasper_ray.serving.settings import Copies, Limits, ServeSettings

logger = logging.getLogger(__name__)

FILLED = 0.7
"""Share of the longest queue that is filled: refusing a flood of requests costs time too."""
WARM_LENGTHS = (8, 32, 128)
"""Lengths of the rows that warm up the model, in tokens."""


def open_service(settings: ServeSettings, ledger: Ledger, replica: str = "0") -> Service:
    """Load and warm everything that a replica needs; the caller starts `service.engine`.

    Raises:
        ConfigError: nothing loads; or the precision, prompt, length, ranges or keys of the settings do not fit.
    """
    identity = weights_identity(settings.model, settings.revision)
    keys = Keys(settings.keys_file, settings.keys, settings.open)
    copies = settings.copies
    torch.set_num_threads(1)  # batches side by side take the other processors
    pinned = settings.model_copy(update={"revision": revision_in(identity)})
    opened = open_for_inference(pinned, copies.replicas.device, sample_vectors, vision=True)
    if opened.encoder.accepts_images:
        image_encoder(opened.encoder).pixel_limit = settings.limits.pixels
    preparer = Preparer(opened.encoder, settings.limits, settings.tokenizers)
    metrics = Metrics()
    threads = settings.threads or (2 if copies.gpus else max(1, round(copies.cpus)))
    rate = warm_up(opened.encoder, opened.budget, preparer.max_length) * (1 if copies.gpus else threads)
    queue = TokenQueue(FILLED * settings.limits.queue_s, settings.limits.queue_tokens, rate)
    logger.info("%s loaded in %s, %d tokens/s", settings.served_name, opened.precision, rate)
    wait_s = settings.batch_wait_ms / 1000
    return Service(
        settings=settings,
        encoder=opened.encoder,
        preparer=preparer,
        engine=Engine(Model(opened.encoder, opened.budget), queue, wait_s, metrics, threads),
        keys=keys,
        ledger=ledger,
        metrics=metrics,
        identity=identity.rpartition(":")[2][:16],
        precision=opened.precision,
        ranges=ranges_in(settings.ranges, identity),
        default_prompt=opened.prompt_name,
        replica=replica,
    )


def sample_vectors(opened: OpenModel) -> dict[int, np.ndarray]:
    """Encode the help texts of the server's settings, as sample sentences."""
    fields = [field for kind in (ServeSettings, Limits, Copies) for field in kind.model_fields.values()]
    return opened.encoder.encode_heads([field.description for field in fields if field.description])


def warm_up(encoder: Encoder, budget: TokenBudget, max_length: int) -> float:
    """Run rows of the expected lengths, then measure tokens per second in full batches.

    Raises:
        ConfigError: the model cannot read texts of `max_length` tokens.
    """

    def embed_rows(rows: int, length: int) -> None:
        ids = [np.ones(length, np.int32)] * rows  # the ids do not change the speed
        budget.encode(lambda batch: encoder.encode_tokens(batch, encoder.dims[:1]), ids)

    check_length(encoder, max_length)
    for length in WARM_LENGTHS:
        embed_rows(1, min(length, max_length))
    length = min(WARM_LENGTHS[1], max_length)
    rows = budget.batch_rows(length)
    embed_rows(rows, length)
    began = time.perf_counter()
    embed_rows(rows, length)
    return rows * length / (time.perf_counter() - began)


def ranges_in(folder: str | None, identity: str) -> dict[int, np.ndarray]:
    """Read the int8 ranges of an embedded corpus, float32 `[2, D]`, by size.

    Raises:
        ConfigError: the folder has no int8 column, or another model made it.
    """
    if folder is None:
        return {}
    output = OutputFolder(open_store(folder, write=False))
    origin = output.provenance()
    dims = {column.dim for column in origin.resolved.vectors if column.dtype == "int8"} if origin else set()
    if not origin or not dims:
        raise ConfigError(
            f"{folder!r} is no output folder of jobs/embed.py with an int8 column; change or remove ranges"
        )
    if origin.weights != identity:
        raise ConfigError(f"the vectors in {folder!r} were made with another model ({origin.weights}, not {identity})")
    return output.ranges(dims)
