"""The usual way, with sentence-transformers alone: encode every text with each teacher, then train on the vectors.

It is written as its users would: one `encode` call a teacher, which sorts all texts by length, and
`SentenceTransformerTrainer` with `EmbedDistillLoss`. Weights, precision, batch size and optimiser are ours.
"""

# Shape legend: N texts, E size of the target.

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.distill_workload import Workload
from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.teachers import SentenceTransformerTeacher, Teacher

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformerTrainingArguments


def check_installed() -> None:
    """Check that the trainer of sentence-transformers can run.

    Raises:
        ConfigError: a package that it needs is missing.
    """
    missing = [name for name in ("accelerate", "datasets") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the usual way needs {' and '.join(missing)}, which cannot be found; "
            "install them with: pip install 'jasper-ray[benchmark]'"
        )


def encode_and_train(workload: Workload, rows: int, passes: int) -> dict[str, float]:
    """Encode with all teachers, then train; the vectors stay for `train_again`."""
    set_up(workload.threads)
    texts = workload.texts(rows)
    seconds: dict[str, float] = {}
    columns = [encode(teacher, texts, seconds) for teacher in workload.recipe.teachers]
    target_NE = np.concatenate(columns, axis=1) / np.sqrt(len(columns))
    np.save(stored(workload, rows), target_NE)
    return {**seconds, **fit(workload, texts, target_NE, passes)}


def train_again(workload: Workload, rows: int, passes: int) -> dict[str, float]:
    """Train on the stored vectors."""
    set_up(workload.threads)
    return fit(workload, workload.texts(rows), np.load(stored(workload, rows)), passes)


def stored(workload: Workload, rows: int) -> Path:
    """Return the file of the vectors."""
    return workload.folder / f"usual-{rows}.npy"


def set_up(threads: int) -> None:
    """Set torch's threads and hide progress bars."""
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()


def encode(teacher: Teacher, texts: list[str], seconds: dict[str, float]) -> np.ndarray:
    """Encode with a teacher as a user of sentence-transformers does, and add the seconds to `seconds`."""
    from sentence_transformers import SentenceTransformer

    if not isinstance(teacher, SentenceTransformerTeacher):
        raise ConfigError(
            f"teacher {teacher.name!r} is no sentence-transformers model, expected one: the usual way has no other"
        )
    dtype = getattr(torch, teacher.dtype)
    model = SentenceTransformer(locate(teacher.model, teacher.revision), device="cpu", model_kwargs={"dtype": dtype})
    if teacher.max_length:
        model.max_seq_length = teacher.max_length
    began = time.perf_counter()
    vectors_ND = model.encode(
        texts, batch_size=teacher.batch_size, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True
    )
    seconds[f"encoding_s/{teacher.name}"] = time.perf_counter() - began
    return np.asarray(vectors_ND, np.float32)


def fit(workload: Workload, texts: list[str], target_NE: np.ndarray, passes: int) -> dict[str, float]:
    """Train the student and save it; time the training."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss

    student = SentenceTransformer(str(workload.start), device="cpu")
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):  # our stage trains without it
            module.p = 0.0
    trainer = SentenceTransformerTrainer(
        model=student,
        args=arguments(workload, passes),
        train_dataset=Dataset.from_dict({"sentence": texts, "label": target_NE.tolist()}),
        loss=EmbedDistillLoss(student, distance_metric="cosine"),
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    student.save_pretrained(str(workload.folder / "usual-student"), create_model_card=False)
    return {"training_s": seconds, "mean_loss": trainer.state.log_history[-1]["train_loss"]}


def arguments(workload: Workload, passes: int) -> SentenceTransformerTrainingArguments:
    """Write our stage as the trainer's arguments, without evaluation, checkpoints and reports."""
    from sentence_transformers import SentenceTransformerTrainingArguments

    stage = workload.stage
    quiet: dict[str, Any] = {
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return SentenceTransformerTrainingArguments(
        output_dir=str(workload.folder / "usual-trainer"),
        use_cpu=True,
        bf16=stage.precision == "bf16",
        num_train_epochs=passes,
        per_device_train_batch_size=stage.batch_size,
        learning_rate=stage.learning_rate,
        weight_decay=stage.weight_decay,
        max_grad_norm=stage.gradient_clipping or 0.0,
        optim="adamw_torch_fused",
        seed=workload.recipe.seed,
        **quiet,
    )
