"""Evaluation sets in memory: what they want encoded, and what they make of the vectors."""

# Shape legend: P pairs, C documents, Q queries, N training rows or images, M test rows, K classes times T templates,
# D size of the vectors.

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from jasper_ray.config import fingerprint
from jasper_ray.evaluation.metrics import accuracy, ndcg, spearman, zero_shot_accuracy
from jasper_ray.evaluation.recall import recalls
from jasper_ray.evaluation.scores import MetricName


@dataclass(frozen=True)
class TextRequest:
    """Texts whose vectors a set needs, and the name of their prompt."""

    texts: tuple[str, ...]
    prompt: str | None


@dataclass(frozen=True)
class ImageRequest:
    """Images whose vectors a set needs, as the bytes of their files."""

    images: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class PairData:
    """Sentence pairs and their scores."""

    name: str
    requests: tuple[TextRequest, TextRequest]
    scores: np.ndarray
    """One a pair, in float64."""

    def score(self, left_PD: np.ndarray, right_PD: np.ndarray) -> dict[MetricName, float]:
        """Spearman x100; the arrays are the vectors of `requests`."""
        return {"spearman": 100 * spearman(left_PD, right_PD, self.scores)}


@dataclass(frozen=True, eq=False)
class RetrievalData:
    """Documents, the queries that have a relevant one, and for each query the relevant rows' grades."""

    name: str
    requests: tuple[TextRequest, TextRequest]
    grades: tuple[Mapping[int, float], ...]

    def score(self, documents_CD: np.ndarray, queries_QD: np.ndarray) -> dict[MetricName, float]:
        """nDCG@10 x100; the arrays are the vectors of `requests`."""
        return {"ndcg@10": 100 * ndcg(documents_CD, queries_QD, self.grades)}


@dataclass(frozen=True, eq=False)
class ClassificationData:
    """Training and test texts and their classes."""

    name: str
    requests: tuple[TextRequest, TextRequest]
    labels: tuple[tuple[str, ...], tuple[str, ...]]

    def score(self, train_ND: np.ndarray, test_MD: np.ndarray) -> dict[MetricName, float]:
        """Accuracy x100; the arrays are the vectors of `requests`."""
        return {"accuracy": 100 * accuracy(train_ND, self.labels[0], test_MD, self.labels[1])}


@dataclass(frozen=True, eq=False)
class ImageCaptionData:
    """Images and, row by row, their captions."""

    name: str
    requests: tuple[ImageRequest, TextRequest]

    def score(self, images_ND: np.ndarray, captions_ND: np.ndarray) -> dict[MetricName, float]:
        """Recalls x100; the arrays are the vectors of `requests`."""
        images, captions = self.requests
        return recalls(images_ND, captions_ND, captions.texts, images.images)


@dataclass(frozen=True, eq=False)
class ZeroShotData:
    """Images, every class in every template, and the images' classes."""

    name: str
    requests: tuple[ImageRequest, TextRequest]
    """The texts stand class by class."""
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    """Of each image, the position of its class."""

    def score(self, images_ND: np.ndarray, texts_KD: np.ndarray) -> dict[MetricName, float]:
        """Accuracy x100; the arrays are the vectors of `requests`."""
        texts_CTD = texts_KD.reshape(len(self.classes), -1, texts_KD.shape[1])
        return {"accuracy": 100 * zero_shot_accuracy(images_ND, texts_CTD, self.labels)}


SetData = PairData | RetrievalData | ClassificationData | ImageCaptionData | ZeroShotData


def needs_vision(data: SetData) -> bool:
    """Whether the set has images; an encoder that does not see gets no score on it."""
    return any(isinstance(request, ImageRequest) for request in data.requests)


def contents(sets: Sequence[SetData]) -> str:
    """Twelve hex digits that name what the sets hold: texts, images, prompts and judgements."""
    return fingerprint(json.loads(json.dumps([asdict(data) for data in sets], default=_plain)))


def _plain(value: Any) -> Any:
    """What JSON has no form for, in one: an array as a list, an image as its hash."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value.tolist()


def of_texts(sets: Sequence[SetData]) -> list[SetData]:
    """The sets that an encoder without vision can be measured on."""
    return [data for data in sets if not needs_vision(data)]
