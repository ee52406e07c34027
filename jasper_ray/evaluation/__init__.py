"""How good vectors are: agreement with the target, and scores on sentence pairs, retrieval and classification sets."""

from __future__ import annotations

from jasper_ray.evaluation.agreement import Agreement, agreement
from jasper_ray.evaluation.reading import SetData, read_sets
from jasper_ray.evaluation.report import render
from jasper_ray.evaluation.scoreboard import Scoreboard
from jasper_ray.evaluation.scores import MetricName, Record, Score, label, load, save
from jasper_ray.evaluation.scoring import check, check_prompts, evaluate
from jasper_ray.evaluation.sets import EvaluationSet, load_sets, resolve_paths

__all__ = [
    "Agreement",
    "EvaluationSet",
    "MetricName",
    "Record",
    "Score",
    "Scoreboard",
    "SetData",
    "agreement",
    "check",
    "check_prompts",
    "evaluate",
    "label",
    "load",
    "load_sets",
    "read_sets",
    "render",
    "resolve_paths",
    "save",
]
