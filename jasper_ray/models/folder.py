"""A student folder: a plain sentence-transformers model, with one dense module per head.

    config.json  model.safetensors  tokenizer…     the body
    1_Pooling/                                     the pooling of tokens to one vector
    2_Dense_<dim>/                                 one folder per head; modules.json names the default one
    vision/                                        the vision encoder, if any; sentence-transformers ignores it
    modules.json  sentence_bert_config.json  config_sentence_transformers.json

Module types have their oldest names, which every version of sentence-transformers reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jasper_ray.atomic import atomic_folder
from jasper_ray.config import ConfigError, Settings
from jasper_ray.models.loading import load_module, load_tokenizer, load_weights, read_json, save_module, write_json
from jasper_ray.models.student import Pooling, Student
from jasper_ray.models.vision import load_vision, save_vision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VISION = "vision"
POOLING_KEYS: dict[str, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "lasttoken": "pooling_mode_lasttoken",
}


class StudentCard(Settings):
    """Settings that a student folder holds beside its weights."""

    max_length: int
    """Longest text, in tokens; longer texts are truncated."""
    prompts: dict[str, str]
    """Text put before a text, by name."""
    default_head: int
    """Head that plain sentence-transformers loads."""


def save_student(student: Student, tokenizer: PreTrainedTokenizerBase, card: StudentCard, folder: Path) -> None:
    """Write the student to `folder`, which appears when all of its files are complete."""
    with atomic_folder(folder) as staging:
        student.body.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for dim in student.dims:
            write_head(student, dim, staging / f"2_Dense_{dim}")
        if student.vision is not None:
            save_vision(student.vision, staging / VISION)
        modes = {key: name == student.pooling for name, key in POOLING_KEYS.items()}
        pooling = {"word_embedding_dimension": student.body.config.hidden_size, **modes, "include_prompt": True}
        write_json(staging / "1_Pooling" / "config.json", pooling)
        write_json(staging / "modules.json", module_list(card.default_head))
        write_json(staging / "sentence_bert_config.json", {"max_seq_length": card.max_length, "do_lower_case": False})
        usage = {"prompts": card.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
        write_json(staging / "config_sentence_transformers.json", usage)


def load_student_folder(
    folder: str | Path, vision: bool = True
) -> tuple[Student, PreTrainedTokenizerBase, StudentCard]:
    """Load the student that `save_student` wrote, with its heads in the order of `head_dims`.

    Without `vision` the vision encoder is not loaded: a stage on texts needs no memory for it.

    Raises:
        ConfigError: the folder is not a student.
    """
    path = Path(folder)
    dims = head_dims(path)
    body = load_weights(str(path))
    tower = load_vision(path / VISION, body.config.hidden_size) if vision and (path / VISION).is_dir() else None
    student = Student(body, dims, read_pooling(path), tower)
    for dim in dims:
        head = path / f"2_Dense_{dim}" / "model.safetensors"
        load_module(student.heads[str(dim)], head, f"head of size {dim}", "linear.")
    return student, load_tokenizer(str(path)), read_card(path)


def head_dims(folder: Path) -> tuple[int, ...]:
    """List the sizes of the heads in a student folder, largest first."""
    dims = [int(path.name.rpartition("_")[2]) for path in folder.glob("2_Dense_*") if path.name[8:].isdigit()]
    if not dims:
        raise ConfigError(
            f"{str(folder)!r} is not a student folder: it has no 2_Dense_<dim>/; give a folder that distil wrote"
        )
    return tuple(sorted(dims, reverse=True))


def write_head(student: Student, dim: int, folder: Path) -> None:
    head = student.heads[str(dim)]
    assert isinstance(head, torch.nn.Linear)
    config = {
        "in_features": head.in_features,
        "out_features": head.out_features,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write_json(folder / "config.json", config)
    save_module(head, folder / "model.safetensors", "linear.")


def read_pooling(folder: Path) -> Pooling:
    """Read the pooling of a student folder."""
    config = read_json(folder / "1_Pooling" / "config.json")
    for name, key in POOLING_KEYS.items():
        if config.get(key):
            return name  # type: ignore[return-value]
    raise ConfigError(f"{str(folder / '1_Pooling')!r} names none of the poolings {', '.join(POOLING_KEYS)}")


def module_list(default_head: int) -> list[dict[str, Any]]:
    """List the modules that sentence-transformers loads, in order."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", f"2_Dense_{default_head}")]
    return [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(modules)
    ]


def read_card(folder: Path) -> StudentCard:
    """Read the card of a student folder."""
    modules = read_json(folder / "modules.json")
    default = next((module["path"] for module in modules if module["path"].startswith("2_Dense_")), None)
    if default is None:
        raise ConfigError(f"{str(folder / 'modules.json')!r} names no 2_Dense_<dim>; name one of the folders beside it")
    return StudentCard(
        max_length=read_json(folder / "sentence_bert_config.json")["max_seq_length"],
        prompts=read_json(folder / "config_sentence_transformers.json").get("prompts", {}),
        default_head=int(default.rpartition("_")[2]),
    )
