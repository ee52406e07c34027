"""Images of known classes: accuracy of the class whose texts are nearest."""

# Shape legend: N images, C classes, T texts of a class, K classes times texts, D size of the vectors.

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from jasper_ray.config import ConfigError
from jasper_ray.evaluation.base import ImageRequest, ImageSet, SetData, Style, TextRequest
from jasper_ray.vectors import normalise

ClassName = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]


class ZeroShotSet(ImageSet):
    """Images of known classes: accuracy of taking the class whose texts' mean is the nearest to the image, x100.

    The caption column of `images` holds the class.
    """

    METRICS: ClassVar = {"accuracy": Style()}

    type: Literal["zero_shot"]
    templates: tuple[str, ...] = Field(min_length=1)
    """Texts about an image, with {} in place of the class: "a photo of a {}"."""
    classes: dict[ClassName, ClassName] | None = None
    """The words for each class in the templates, or a list of classes that are their own words. Classes without an
    image compete too, and classes of the same words are one. Default: the classes of the images."""

    @field_validator("templates")
    @classmethod
    def _templates_have_a_place_for_the_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{}" not in template:
                raise ConfigError(f"the template {template!r} has no {{}}; write it in place of the class")
        return templates

    @field_validator("classes", mode="before")
    @classmethod
    def _listed_classes_are_their_own_words(cls, value: Any) -> Any:
        return {str(name): name for name in value} if isinstance(value, list | tuple) else value

    def read(self) -> SetData:
        images, labels = self.pairs()
        words = self.classes or {label: label for label in sorted(set(labels))}
        self._check_classes(words, labels)
        classes = tuple(dict.fromkeys(words.values()))
        texts = tuple(template.replace("{}", name) for name in classes for template in self.templates)
        requests = (ImageRequest(images), TextRequest(texts, self.prompt))
        positions = [classes.index(words[label]) for label in labels]
        return SetData(self, requests, {"classes": classes, "labels": positions})

    def score(self, data: SetData, images_ND: np.ndarray, texts_KD: np.ndarray) -> dict[str, float]:
        texts_CTD = texts_KD.reshape(len(data.judgements["classes"]), -1, texts_KD.shape[1])
        return {"accuracy": 100 * zero_shot_accuracy(images_ND, texts_CTD, data.judgements["labels"])}

    def _check_classes(self, words: dict[str, str], labels: Collection[str]) -> None:
        unknown = sorted(set(labels) - set(words))
        if unknown:
            raise ConfigError(
                f"evaluation set {self.name!r}: {self.images.path} holds the class {unknown[0]!r}, "
                f"which is not among the {len(words)} of `classes`; add it there"
            )
        if len(set(words.values())) < 2:
            raise ConfigError(
                f"evaluation set {self.name!r} has the class {next(iter(words.values()))!r} alone; "
                "expected at least two classes"
            )


def zero_shot_accuracy(images_ND: np.ndarray, texts_CTD: np.ndarray, classes_N: Sequence[int]) -> float:
    """Return the share of images whose own class is the nearest: the normalised mean of its texts' unit vectors.

    Among classes of equal cosine the earlier one is taken.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.4
    """
    classes_CD = normalise(texts_CTD.mean(axis=1))
    return float(np.mean(np.argmax(images_ND @ classes_CD.T, axis=1) == np.asarray(classes_N)))
