"""The objective of a stage: which losses each head pays, how much each weighs, and which rows are compared.

The relational losses see pairs of rows, texts or images. With `scope="worker"` these are the pairs of one worker's
batch, as in the published code; with `scope="global"` the batches of all workers are gathered first, and each row is
compared with all.
"""

# Shape legend: B rows (texts or images), D dimensions of a head's vectors, E of its target.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor

from jasper_ray.config import ConfigError, Settings
from jasper_ray.losses.cosine import cosine_loss
from jasper_ray.losses.relative_similarity import relative_similarity_loss
from jasper_ray.losses.similarity import similarity_loss

Scope = Literal["worker", "global"]
Reduction = Literal["sum", "mean"]


class HeadLosses(Settings):
    """The weights of one head's losses; 0 leaves a loss out, and it is not computed. The paper's are 10, 200 and 20."""

    cosine: float = Field(0.0, ge=0)
    """Weight of the cosine loss, for a head with as many dimensions as the target."""
    similarity: float = Field(0.0, ge=0)
    """Weight of the similarity loss."""
    relative_similarity: float = Field(0.0, ge=0)
    """Weight of the relative similarity loss."""
    margin: float = Field(0.015, ge=0)
    """Margin of the relative similarity loss, as a difference of cosines."""

    @model_validator(mode="after")
    def _weighs_something(self) -> HeadLosses:
        if not (self.cosine or self.similarity or self.relative_similarity):
            raise ConfigError(
                "All loss weights of a head are 0; give cosine, similarity or relative_similarity a weight above 0, "
                "or take the head out of the stage's losses."
            )
        return self


@dataclass(frozen=True)
class LossTerms:
    """What one batch costs."""

    total: Tensor
    """The scalar to backpropagate through an engine that averages gradients over workers."""
    terms: dict[str, Tensor]
    """What to report, detached: each loss unweighted, as "cosine/1024" (loss, head), and the weighted "total"."""


@dataclass(frozen=True)
class Objective:
    """Weighs the losses of all heads of a batch, each against its target; raises `ConfigError` without any head."""

    losses: Mapping[int, HeadLosses]
    """What each head pays, by the head's dimension."""
    scope: Scope = "worker"
    """The rows a row is compared with: its worker's batch, or the batches of all workers."""
    reduction: Reduction = "sum"
    """How the heads' weighted losses become one: summed, or averaged as the paper does in its stage 4."""

    def __post_init__(self) -> None:
        if not self.losses:
            raise ConfigError("The objective has no heads; name at least one under the stage's losses.")

    def __call__(self, vectors: Mapping[int, Tensor], targets: Mapping[int, Tensor]) -> LossTerms:
        """The losses of one batch: `vectors` maps a head's dimension D to its student_BD, `targets` to its constant
        target_BE, which may be the same tensor for all.

        Heads of `vectors` that have no losses are left alone. With scope "global" every worker must call this with
        equally many rows.
        Raises `ConfigError` for a head without vectors or a cosine loss between unequal sizes, and `ValueError` for
        rows that do not match or are too few.
        """
        self._check_heads(vectors, targets)
        vectors = {head: vectors[head] for head in self.losses}
        targets = {head: targets[head] for head in self.losses}
        workers = _workers() if self.scope == "global" else 1
        if workers > 1:
            _check_equal_rows(next(iter(targets.values())))
            vectors = {head: _gather_rows(student_BD) for head, student_BD in vectors.items()}
            gathered = {id(target_BE): _gather_rows(target_BE) for target_BE in distinct(targets.values())}
            targets = {head: gathered[id(target_BE)] for head, target_BE in targets.items()}
        total, terms = self._weigh(vectors, targets)
        # All workers compute the same total, but each gives gradient to its own rows only, so the whole gradient is the
        # sum of theirs. The engine (DeepSpeed, as DDP) averages gradients over workers; hence times their number.
        return LossTerms(total=total * workers, terms=terms)

    def _check_heads(self, vectors: Mapping[int, Tensor], targets: Mapping[int, Tensor]) -> None:
        for head, losses in self.losses.items():
            if head not in vectors:
                raise ConfigError(
                    f"The losses name head {head}, but the student returned heads {sorted(vectors)}; "
                    "add the head to the student or take it out of the stage's losses."
                )
            if vectors[head].shape[-1] != head:
                shape = tuple(vectors[head].shape)
                raise ValueError(f"The vectors of head {head} have shape {shape}; expected [B, {head}].")
            size = targets[head].shape[-1]
            if losses.cosine and head != size:
                raise ConfigError(
                    f"Head {head} has a cosine loss, but the target has {size} dimensions; the cosine loss needs equal "
                    f"sizes: set this head's cosine weight to 0, or make the head {size} wide."
                )

    def _weigh(self, vectors: Mapping[int, Tensor], targets: Mapping[int, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        weighted: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for head, losses in self.losses.items():
            for name, loss in _head_terms(losses, vectors[head], targets[head]).items():
                weighted.append(getattr(losses, name) * loss)
                terms[f"{name}/{head}"] = loss.detach()
        total = torch.stack(weighted).sum()
        if self.reduction == "mean":
            total = total / len(self.losses)
        return total, {**terms, "total": total.detach()}


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each tensor once, however often it is named, in the same order on every worker."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def _head_terms(losses: HeadLosses, student_BD: Tensor, target_BE: Tensor) -> dict[str, Tensor]:
    """One head's unweighted losses, by the name of the field that weighs them; only those with a weight."""
    terms: dict[str, Tensor] = {}
    if losses.cosine:
        terms["cosine"] = cosine_loss(student_BD, target_BE)
    if losses.similarity:
        terms["similarity"] = similarity_loss(student_BD, target_BE)
    if losses.relative_similarity:
        terms["relative_similarity"] = relative_similarity_loss(student_BD, target_BE, losses.margin)
    return terms


def _workers() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _check_equal_rows(target_BE: Tensor) -> None:
    """Raise `ValueError`, on every worker alike, unless all of them hold equally many rows, which a gather needs."""
    rows = torch.cat(_all_gather(torch.tensor([len(target_BE)], device=target_BE.device))).tolist()
    if len(set(rows)) > 1:
        raise ValueError(
            f"The workers hold batches of {rows} rows; scope 'global' needs equal ones. "
            "Drop the last incomplete batch, or use scope 'worker'."
        )


def _gather_rows(local_BD: Tensor) -> Tensor:
    """The rows of all workers in rank order, [workers * B, D]; those of other workers are constants."""
    rows = _all_gather(local_BD.detach().contiguous())
    rows[dist.get_rank()] = local_BD
    return torch.cat(rows)


def _all_gather(local: Tensor) -> list[Tensor]:
    pieces = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, local)
    return pieces
