"""Quality of vectors: geometry against the target, recall between images and captions, scores on evaluation sets."""

from __future__ import annotations

from jasper_ray.evaluation.base import Score, SetData, as_scores
from jasper_ray.evaluation.geometry import geometry_scores
from jasper_ray.evaluation.image_captions import recalls
from jasper_ray.evaluation.report import Scoreboard, ScoreRow, read_scores, render, with_moment, write_scores
from jasper_ray.evaluation.sets import (
    EVALUATION_SETS,
    EvaluationSet,
    check_prompts,
    evaluate,
    load_sets,
    read_sets,
    resolve_paths,
    skipped_sets,
    text_sets,
)

__all__ = [
    "EVALUATION_SETS",
    "EvaluationSet",
    "Score",
    "ScoreRow",
    "Scoreboard",
    "SetData",
    "as_scores",
    "check_prompts",
    "evaluate",
    "geometry_scores",
    "load_sets",
    "read_scores",
    "read_sets",
    "recalls",
    "render",
    "resolve_paths",
    "skipped_sets",
    "text_sets",
    "with_moment",
    "write_scores",
]
