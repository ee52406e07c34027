"""A service from its settings: the model loaded, its precision chosen, its speed known before the first request."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Sequence

import numpy as np
import torch

from jasper_ray.config import ConfigError
from jasper_ray.embedding.folder import OutputFolder
from jasper_ray.embedding.store import open_store
from jasper_ray.encoders import StudentEncoder, TokenEncoder, load_encoder
from jasper_ray.encoders.base import prompt_text
from jasper_ray.encoders.precision import agreement, precise
from jasper_ray.encoders.token_budget import USUAL_TOKENS, TokenBudget
from jasper_ray.models.identity import revision_in, weights_identity
from jasper_ray.serving.engine import Engine
from jasper_ray.serving.keys import Keys, Ledger
from jasper_ray.serving.metrics import Metrics
from jasper_ray.serving.model import Model
from jasper_ray.serving.prepare import Preparer
from jasper_ray.serving.queue import TokenQueue
from jasper_ray.serving.service import Service
from jasper_ray.serving.settings import Copies, Limits, ServeSettings
from jasper_ray.vectors import Dtype

logger = logging.getLogger(__name__)

FILLED = 0.7
"""Of the seconds that work may wait, what is filled: a flood also costs time before it is refused."""
WARM_LENGTHS = (8, 32, 128)
"""Tokens of the rows that the model warms up with."""


def open_service(settings: ServeSettings, ledger: Ledger, replica: str = "0") -> Service:
    """Everything a replica needs, loaded and warm; `service.engine.start()` is what is left to do.

    Raises:
        ConfigError: the model, its precision, prompt, length, ranges, or the keys are not to be had.
    """
    identity = weights_identity(settings.model, settings.revision)
    keys = Keys(settings.keys_file, settings.keys, settings.open)
    encoder, precision = open_encoder(settings, revision_in(identity))
    prompt = encoder.default_prompt if settings.prompt is None else settings.prompt or None
    prompt_text(encoder.prompts, prompt)
    preparer = Preparer(encoder, settings.limits, settings.tokenizers)
    metrics = Metrics()
    budget = TokenBudget(settings.batch_tokens or USUAL_TOKENS["cuda" if settings.copies.gpus else "cpu"])
    threads = settings.threads or (2 if settings.copies.gpus else max(1, round(settings.copies.cpus)))
    rate = warm_up(encoder, budget, preparer.max_length) * (1 if settings.copies.gpus else threads)
    queue = TokenQueue(FILLED * settings.limits.queue_s, settings.limits.queue_tokens, rate)
    logger.info("%s answers in %s, %d tokens/s", settings.served_name, precision, rate)
    wait_s = settings.batch_wait_ms / 1000
    return Service(
        settings=settings,
        encoder=encoder,
        preparer=preparer,
        engine=Engine(Model(encoder, budget), queue, wait_s, metrics, threads),
        keys=keys,
        ledger=ledger,
        metrics=metrics,
        identity=identity.rpartition(":")[2][:16],
        precision=precision,
        ranges=ranges_in(settings.ranges, identity),
        default_prompt=prompt,
        replica=replica,
    )


def open_encoder(settings: ServeSettings, revision: str | None) -> tuple[TokenEncoder, Dtype]:
    """The model in the precision that was asked for, or in the device's fast one where that agrees with float32.

    Raises:
        ConfigError: it does not load, or the precision agrees too little.
    """
    on_gpu = bool(settings.copies.gpus)
    torch.set_num_threads(1)  # batches side by side take the other processors
    wanted = precise(settings.precision, "cuda" if on_gpu else "cpu")
    exact = None
    if wanted != "float32":
        exact = sample_vectors(load(settings, revision, "float32"))
        gc.collect()  # there may be room for one of the two
        if on_gpu:
            torch.cuda.empty_cache()
    encoder = load(settings, revision, wanted)
    if exact is None:
        return encoder, wanted
    if agreement(exact, sample_vectors(encoder), wanted, asked=settings.precision != "auto") is None:
        return load(settings, revision, "float32"), "float32"
    return encoder, wanted


def load(settings: ServeSettings, revision: str | None, dtype: Dtype) -> TokenEncoder:
    """The model on the device that a replica has; one that reserves no GPU stays off it, whether or not it sees one."""
    device = None if settings.copies.gpus else "cpu"
    encoder = load_encoder(settings.model, device, dtype, revision=revision, max_length=settings.max_length)
    if isinstance(encoder, StudentEncoder):
        encoder.pixel_limit = settings.limits.pixels
    return encoder


def sample_vectors(encoder: TokenEncoder) -> dict[int, np.ndarray]:
    """Vectors of the sentences with which these settings explain themselves."""
    kinds = (ServeSettings, Limits, Copies)
    sentences = [field.description or "" for kind in kinds for field in kind.model_fields.values()]
    return encoder.encode_heads([sentence for sentence in sentences if sentence])


def warm_up(encoder: TokenEncoder, budget: TokenBudget, max_length: int) -> float:
    """Tokens a second in full batches, after the lengths that will come have been seen once.

    Raises:
        ConfigError: the model cannot read texts of `max_length` tokens.
    """
    for length in (*WARM_LENGTHS, max_length):
        embed_rows(encoder, budget, 1, min(length, max_length))
    length = min(WARM_LENGTHS[1], max_length)
    rows = budget.batch_rows(length)
    embed_rows(encoder, budget, rows, length)
    began = time.perf_counter()
    embed_rows(encoder, budget, rows, length)
    return rows * length / (time.perf_counter() - began)


def embed_rows(encoder: TokenEncoder, budget: TokenBudget, rows: int, length: int) -> None:
    """Push rows of one length through the model; which tokens they are takes no part in its speed."""
    ids: Sequence[np.ndarray] = [np.ones(length, np.int32)] * rows
    try:
        budget.encode(lambda some: encoder.encode_tokens(some, encoder.dims[:1]), ids)
    except (IndexError, RuntimeError) as error:
        raise ConfigError(
            f"the model cannot read {length} tokens ({type(error).__name__}); lower max_length"
        ) from error


def ranges_in(folder: str | None, identity: str) -> dict[int, np.ndarray]:
    """What the int8 columns of an embedded corpus are stretched over, float32 `[2, D]`, by size.

    Raises:
        ConfigError: the folder has no such column, or another model made it.
    """
    if folder is None:
        return {}
    output = OutputFolder(open_store(folder, write=False))
    job = output.job()
    dims = {column.dim for column in job.resolved.vectors if column.dtype == "int8"} if job else set()
    if not dims:
        raise ConfigError(f"{folder!r} is no output folder of jobs/embed.py with an int8 column; give one, or none")
    assert job
    if job.weights != identity:
        raise ConfigError(f"the vectors in {folder!r} were made with another model ({job.weights}, not {identity})")
    return output.ranges(dims)
