"""How good vectors are: agreement with the target, recall between images and captions, and scores on evaluation sets of
sentence pairs, retrieval, labelled texts and images."""

from __future__ import annotations

from jasper_ray.evaluation.agreement import Agreement, agreement
from jasper_ray.evaluation.listing import load_sets, resolve_paths
from jasper_ray.evaluation.reading import read_sets
from jasper_ray.evaluation.recall import recalls
from jasper_ray.evaluation.report import Scoreboard, render
from jasper_ray.evaluation.scores import MetricName, Record, Score, as_scores, label, load, save
from jasper_ray.evaluation.scoring import check, check_prompts, evaluate, unseen
from jasper_ray.evaluation.set_data import SetData, needs_vision, of_texts
from jasper_ray.evaluation.sets import EvaluationSet

__all__ = [
    "Agreement",
    "EvaluationSet",
    "MetricName",
    "Record",
    "Score",
    "Scoreboard",
    "SetData",
    "agreement",
    "as_scores",
    "check",
    "check_prompts",
    "evaluate",
    "label",
    "load",
    "load_sets",
    "needs_vision",
    "of_texts",
    "read_sets",
    "recalls",
    "render",
    "resolve_paths",
    "save",
    "unseen",
]
