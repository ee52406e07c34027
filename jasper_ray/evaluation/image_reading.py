"""Reading of the evaluation sets that have images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jasper_ray.config import ConfigError
from jasper_ray.evaluation.set_data import ImageCaptionData, ImageRequest, TextRequest, ZeroShotData
from jasper_ray.evaluation.sets import ImageCaptionSet, ZeroShotSet
from jasper_ray.sources.pairs import read_pairs


def read_image_captions(one: ImageCaptionSet) -> ImageCaptionData:
    """Every image of the set with its caption.

    Raises:
        ConfigError: a file, column or image that cannot be read, or captions that leave nothing to choose from.
    """
    images, captions = _read(one)
    for what, different in (("image", set(images)), ("caption", set(captions))):
        if len(different) < 2:
            raise ConfigError(
                f"evaluation set {one.name!r}: {one.images.path} has {len(different)} different {what}; "
                "a ranking needs at least two"
            )
    return ImageCaptionData(one.name, (ImageRequest(images), TextRequest(captions, one.prompt)))


def read_zero_shot(one: ZeroShotSet) -> ZeroShotData:
    """Every image of the set with its class, and the templates filled with every class.

    Raises:
        ConfigError: a file, column or image that cannot be read, a class that `classes` lacks, or fewer than two.
    """
    images, labels = _read(one)
    words = one.classes or {label: label for label in sorted(set(labels))}
    _check_classes(one, words, labels)
    classes = tuple(dict.fromkeys(words.values()))
    texts = tuple(template.replace("{}", name) for name in classes for template in one.templates)
    positions = {name: position for position, name in enumerate(classes)}
    return ZeroShotData(
        one.name,
        (ImageRequest(images), TextRequest(texts, one.prompt)),
        classes,
        tuple(positions[words[label]] for label in labels),
    )


def _read(one: ImageCaptionSet | ZeroShotSet) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """Images and what stands in the caption column."""
    pairs = list(read_pairs(one.images))
    if not pairs:
        raise ConfigError(f"evaluation set {one.name!r}: {one.images.path} has no images with captions")
    return tuple(pair.image for pair in pairs), tuple(pair.caption for pair in pairs)


def _check_classes(one: ZeroShotSet, words: Mapping[str, str], labels: Sequence[str]) -> None:
    unknown = sorted(set(labels) - set(words))
    if unknown:
        raise ConfigError(
            f"evaluation set {one.name!r}: {one.images.path} holds the class {unknown[0]!r}, "
            f"which is not among the {len(words)} of `classes`; add it there"
        )
    if len(set(words.values())) < 2:
        raise ConfigError(
            f"evaluation set {one.name!r} has the class {next(iter(words.values()))!r} alone; "
            "at least two classes were expected"
        )
