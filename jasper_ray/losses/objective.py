"""The objective of a stage: the losses that apply to each head, their weights, and the rows that are compared.

The relational losses see pairs of rows, texts or images. With `scope="worker"` these are the pairs of one worker's
batch, as in the published code; with `scope="global"` the batches of all workers are gathered first, and each row is
compared with all.
"""

# Shape legend: B rows (texts or images), D dimensions of a head's vectors, E of its target.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field, create_model, model_validator
from torch import Tensor

from jasper_ray.config import ConfigError, Settings
from jasper_ray.losses.distillation import LOSSES, Loss

Scope = Literal["worker", "global"]
Reduction = Literal["sum", "mean"]


def weight_fields() -> dict[str, Any]:
    """Make a settings field for the weight of every loss in LOSSES, then for every option of theirs."""
    weights = {name: (float, Field(0.0, ge=0, description=loss.help)) for name, loss in LOSSES.items()}
    options = {name: option for loss in LOSSES.values() for name, option in loss.options.items()}
    return weights | {name: (float, Field(o.default, ge=0, description=o.help)) for name, o in options.items()}


Weights: Any = create_model("Weights", __base__=Settings, **weight_fields())


class HeadLosses(Weights):
    """The weights of one head's losses; a loss of weight 0 is skipped. The papers' are 10, 200 and 20."""

    @model_validator(mode="after")
    def _weighs_something(self) -> HeadLosses:
        if not self.weighed():
            raise ConfigError(
                f"all loss weights of a head are 0; give {', '.join(LOSSES)} a weight above 0, "
                "or take the head out of the stage's losses"
            )
        return self

    def weighed(self) -> dict[str, Loss]:
        """List the losses with a weight, by name."""
        return {name: loss for name, loss in LOSSES.items() if getattr(self, name)}

    def terms(self, student_BD: Tensor, target_BE: Tensor) -> dict[str, Tensor]:
        """Compute the unweighted losses of this head by name; only those with a weight."""
        return {
            name: loss.function(student_BD, target_BE, **{option: getattr(self, option) for option in loss.options})
            for name, loss in self.weighed().items()
        }


@dataclass(frozen=True)
class LossTerms:
    """The losses of one batch."""

    total: Tensor
    """The scalar to backpropagate through an engine that averages gradients over workers."""
    terms: dict[str, Tensor]
    """Detached, to report: each loss unweighted, as "cosine/1024" (loss, head), and the weighted "total"."""


@dataclass(frozen=True)
class Objective:
    """The weighted losses of all heads of a batch, each against its target.

    Raises:
        ConfigError: there is no head.
    """

    losses: Mapping[int, HeadLosses]
    """The losses of each head, by the head's dimension."""
    scope: Scope = "worker"
    """The rows a row is compared with: its worker's batch, or the batches of all workers."""
    reduction: Reduction = "sum"
    """Sum or mean of the heads' weighted losses; the paper takes the mean in its stage 4."""

    def __post_init__(self) -> None:
        if not self.losses:
            raise ConfigError("the objective has no heads; name at least one under the stage's losses")

    def __call__(self, vectors: Mapping[int, Tensor], targets: Mapping[int, Tensor]) -> LossTerms:
        """Compute the losses of one batch.

        `vectors` maps a head's dimension D to its student_BD, `targets` to its constant target_BE, which may be the
        same tensor for all. Heads of `vectors` without losses are ignored. With scope "global" every worker
        must call this with equally many rows.

        Raises:
            ConfigError: a head has no vectors, or a loss needs equal sizes and gets others.
            ValueError: rows do not match or are too few.
        """
        self.check_heads(vectors, targets)
        vectors = {head: vectors[head] for head in self.losses}
        targets = {head: targets[head] for head in self.losses}
        several = self.scope == "global" and dist.is_available() and dist.is_initialized()
        workers = dist.get_world_size() if several else 1
        if workers > 1:
            check_equal_rows(next(iter(targets.values())))
            vectors = {head: gather_rows(student_BD) for head, student_BD in vectors.items()}
            gathered = {id(target_BE): gather_rows(target_BE) for target_BE in distinct(targets.values())}
            targets = {head: gathered[id(target_BE)] for head, target_BE in targets.items()}
        total, terms = self.weigh(vectors, targets)
        # All workers compute the same total, but each gives gradient to its own rows only, so the whole gradient is the
        # sum of theirs. The engine (DeepSpeed, as DDP) averages gradients over workers; hence times their number.
        return LossTerms(total=total * workers, terms=terms)

    def check_heads(self, vectors: Mapping[int, Tensor], targets: Mapping[int, Tensor]) -> None:
        for head, losses in self.losses.items():
            if head not in vectors:
                raise ConfigError(
                    f"the losses name head {head}, but the student returned heads {sorted(vectors)}; "
                    "add the head to the student or take it out of the stage's losses"
                )
            if vectors[head].shape[-1] != head:
                shape = tuple(vectors[head].shape)
                raise ValueError(f"the vectors of head {head} have shape {shape}; expected [B, {head}]")
            size = targets[head].shape[-1]
            for name, loss in losses.weighed().items():
                if loss.same_size and head != size:
                    raise ConfigError(
                        f"head {head} has a {name} loss, but the target has {size} dimensions; this loss needs equal "
                        f"sizes: set this head's {name} weight to 0, or make the head {size} wide"
                    )

    def weigh(self, vectors: Mapping[int, Tensor], targets: Mapping[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weighted: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for head, losses in self.losses.items():
            for name, loss in losses.terms(vectors[head], targets[head]).items():
                weighted.append(getattr(losses, name) * loss)
                terms[f"{name}/{head}"] = loss.detach()
        total = torch.stack(weighted).sum()
        if self.reduction == "mean":
            total = total / len(self.losses)
        return total, {**terms, "total": total.detach()}


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """List the distinct tensors, in the same order on every worker."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def check_equal_rows(target_BE: Tensor) -> None:
    """Raise `ValueError`, on every worker alike, unless all of them hold equally many rows, which a gather needs."""
    rows = torch.cat(all_gather(torch.tensor([len(target_BE)], device=target_BE.device))).tolist()
    if len(set(rows)) > 1:
        raise ValueError(
            f"the workers hold batches of {rows} rows; scope 'global' needs equal ones: "
            "drop the last incomplete batch, or use scope 'worker'"
        )


def gather_rows(local_BD: Tensor) -> Tensor:
    """Gather the rows of all workers in rank order, [workers * B, D]; those of other workers are constants."""
    rows = all_gather(local_BD.detach().contiguous())
    rows[dist.get_rank()] = local_BD
    return torch.cat(rows)


def all_gather(local: Tensor) -> list[Tensor]:
    pieces = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, local)
    return pieces
