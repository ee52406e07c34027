"""The training loop of every worker, the same for every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from ray.train.torch import get_device
from torch import Tensor

from jasper_ray.losses.objective import LossTerms, Objective
from jasper_ray.models.folder import StudentCard, load_student_folder, save_student
from jasper_ray.models.student import Student
from jasper_ray.training.batches import MicroBatch, Rows
from jasper_ray.training.engine import (
    Engine,
    build_engine,
    restore_checkpoint,
    save_checkpoint,
    trained_weights,
    update,
)
from jasper_ray.training.job import StageJob, StageStopped
from jasper_ray.training.metrics import MetricsLog, StepClock
from jasper_ray.training.stage import prefetch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train(job: StageJob, rows: Iterator[Rows]) -> None:
    """Train one stage on this worker, from its last checkpoint to its end, and write the student.

    `rows` are this worker's labelled rows from that checkpoint on, a micro-batch at a time.
    """
    torch.set_num_threads(job.stage.torch_threads)
    torch.manual_seed(job.seed)
    device = get_device()
    choose_attention(device)
    student, tokenizer, card = load_student_folder(job.start, vision=job.stage.kind.needs_vision)
    worker = Worker(job, start_engine(student, job, device), device)
    first_step = restore_checkpoint(worker.engine, job.folder.checkpoints)
    if first_step < job.total_steps:
        worker.run(first_step, micro_batches(job, tokenizer, card, rows))
    export(worker.engine, job)


class Worker:
    """One rank's engine and objective."""

    def __init__(self, job: StageJob, engine: Engine, device: torch.device) -> None:
        self.job = job
        self.engine = engine
        self.device = device
        self.objective = Objective(job.stage.losses, job.stage.scope, job.stage.reduction)

    def run(self, first_step: int, stream: Iterator[MicroBatch]) -> None:
        """Train from `first_step` to the end; rank 0 writes metrics, all write checkpoints."""
        job, engine = self.job, self.engine
        engine.train()
        with ExitStack() as stack:
            log = stack.enter_context(MetricsLog(job.folder.metrics, first_step)) if dist.get_rank() == 0 else None
            for step in range(first_step, job.total_steps):
                record = self.step(step, stream)
                if log:
                    log.write({"step": step, "total_steps": job.total_steps, **record})
                done = step + 1
                if done % job.stage.checkpoint_every == 0 or done == job.total_steps:
                    save_checkpoint(engine, job.folder.checkpoints, done)

    def step(self, step: int, stream: Iterator[MicroBatch]) -> dict[str, float]:
        """Do one optimiser step: forward and backward over its micro-batches, then the update. Returns its metrics."""
        clock = StepClock()
        terms: list[dict[str, float]] = []
        ids: list[str] = []
        norm: float | None = None
        learning_rate = self.engine.get_lr()[0]
        for turn in range(self.job.stage.accumulation):
            waiting = time.perf_counter()
            micro = next(stream)
            waited = time.perf_counter() - waiting
            check_place(micro, step * self.job.stage.accumulation + turn, self.job.stage.micro_rows)
            losses = self.forward(micro)
            self.engine.backward(losses.total)
            norm = update(self.engine)
            ids += micro.ids
            terms.append(average_over_workers(losses.terms))
            clock.count(micro.rows, waited, micro.teacher_seconds, micro.decode_seconds)
        means = {name: sum(term[name] for term in terms) / len(terms) for name in terms[0]}
        assert norm is not None, "the last micro-batch of a step completes its batch"
        stop_if_not_finite(torch.tensor(norm, device=self.device), "the norm of the gradients", ids)
        return {**means, "lr": learning_rate, "grad_norm": norm, **clock.read(dist.get_world_size())}

    def forward(self, micro: MicroBatch) -> LossTerms:
        """Compute the objective over one micro-batch; if it is not finite, the stage stops before anything learns."""
        groups = [group.to(self.device) for group in micro.groups]
        dims = tuple(self.job.stage.losses)
        vectors = dict(zip(dims, self.engine(groups, dims), strict=True))
        losses = self.objective(vectors, on_device(micro.targets, self.device))
        stop_if_not_finite(losses.total, "the loss", micro.ids)
        return losses


def micro_batches(
    job: StageJob, tokenizer: PreTrainedTokenizerBase, card: StudentCard, rows: Iterator[Rows]
) -> Iterator[MicroBatch]:
    """Collate the rows into micro-batches, one ahead in a thread."""
    heads = list(job.stage.losses)
    return prefetch(job.feed.micro_batch(batch, tokenizer, card, job.stage.group_rows, heads) for batch in rows)


def on_device(targets: Mapping[int, Tensor], device: torch.device) -> dict[int, Tensor]:
    """Move the targets to the device; a tensor that serves several heads is moved once."""
    moved = {id(target_BE): target_BE.to(device) for target_BE in targets.values()}
    return {dim: moved[id(target_BE)] for dim, target_BE in targets.items()}


def choose_attention(device: torch.device) -> None:
    """Turn off fused attention on processors, where its backward pass is several times slower."""
    if device.type == "cpu":
        torch.backends.cuda.enable_flash_sdp(False)  # despite its name it governs the processor's kernel too


def start_engine(student: Student, job: StageJob, device: torch.device) -> Engine:
    """Set the parameters that learn, dropout and gradient checkpointing, and build the student's engine."""
    student.freeze_all_but(job.stage.train)
    student.set_dropout(job.dropout)
    if job.stage.gradient_checkpointing:
        for part in (student.body, *([student.vision.tower] if student.vision else [])):
            part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return build_engine(student.to(device), job.stage, job.total_steps, device)


def check_place(micro: MicroBatch, round_: int, rows: int) -> None:
    """Stop at a row that is repeated, lost or out of order: the workers' blocks come in turn."""
    expected = (round_ * dist.get_world_size() + dist.get_rank()) * rows
    if micro.rows != rows or micro.position != expected:
        raise AssertionError(
            f"worker {dist.get_rank()} expected {rows} rows from position {expected}, "
            f"but the stream gave {micro.rows} from {micro.position}"
        )


def stop_if_not_finite(value: torch.Tensor, what: str, ids: list[str]) -> None:
    """Stop all workers together if a scalar of any is not finite, and name the rows of its batch.

    Raises:
        StageStopped: it is not finite.
    """
    bad = (~torch.isfinite(value.detach())).to(torch.int32).clone()
    dist.all_reduce(bad, op=dist.ReduceOp.MAX)
    if bad.item():
        rows_of_workers: list[list[str] | None] = [None] * dist.get_world_size()
        dist.all_gather_object(rows_of_workers, ids if not torch.isfinite(value) else [])
        rows = [row for part in rows_of_workers for row in part or []]
        raise StageStopped(
            f"{what} is not finite for the batch of rows {', '.join(rows)}; the last checkpoint is kept: "
            "lower learning_rate, set precision fp32, or remove these rows from the data"
        )


def average_over_workers(terms: dict[str, torch.Tensor]) -> dict[str, float]:
    values = torch.stack([value.float() for value in terms.values()])
    dist.all_reduce(values)
    return dict(zip(terms, (values / dist.get_world_size()).tolist(), strict=True))


def export(engine: Engine, job: StageJob) -> None:
    """Write the student: trained parameters from the engine's fp32 weights, all others unchanged to the bit."""
    trained = trained_weights(engine)
    if dist.get_rank() == 0:
        student, tokenizer, card = load_student_folder(job.start)
        unknown = student.load_state_dict(dict(trained), strict=False).unexpected_keys
        assert not unknown, f"the engine trained {unknown}, which the student does not have"
        save_student(student, tokenizer, card, job.folder.student)
    dist.barrier()
