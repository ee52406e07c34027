"""The table of evaluation sets: listed in YAML, read once, and scored for every head from one pass through the body.

`jasper-ray evaluate --help` shows an entry of each kind. Relative paths count from the folder of the YAML file.
"""

# Shape legend: N texts or images, D size of the vectors.

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias, Union

import numpy as np
import yaml
from pydantic import Field, ValidationError, create_model

from jasper_ray.config import ConfigError, Settings, fingerprint, first_fault
from jasper_ray.encoders.base import Encoder, image_encoder, known_dim
from jasper_ray.evaluation.base import ImageRequest, Score, SetData, SetSettings, Style, TextRequest, as_scores
from jasper_ray.evaluation.classification import ClassificationSet
from jasper_ray.evaluation.geometry import GEOMETRY
from jasper_ray.evaluation.image_captions import ImageCaptionSet
from jasper_ray.evaluation.pairs import PairSet
from jasper_ray.evaluation.retrieval import RetrievalSet
from jasper_ray.evaluation.zero_shot import ZeroShotSet

EVALUATION_SETS: dict[str, type[SetSettings]] = {
    "pairs": PairSet,
    "retrieval": RetrievalSet,
    "classification": ClassificationSet,
    "image_captions": ImageCaptionSet,
    "zero_shot": ZeroShotSet,
}
"""Every kind of evaluation set, by its `type`. A new kind is one file and one row here."""


def union_of_sets() -> Any:
    """Return the type of any entry of the table, selected by `type`."""
    return Annotated[Union[tuple(EVALUATION_SETS.values())], Field(discriminator="type")]  # noqa: UP007


if TYPE_CHECKING:
    EvaluationSet: TypeAlias = SetSettings
else:
    EvaluationSet = union_of_sets()


def metric_styles() -> dict[str, Style]:
    """Return the style of every metric that can be measured."""
    return {**GEOMETRY, **{name: style for kind in EVALUATION_SETS.values() for name, style in kind.METRICS.items()}}


# Listing and reading


def load_sets(path: str | Path) -> tuple[EvaluationSet, ...]:
    """Return the evaluation sets that the YAML file `path` lists, their paths resolved against its folder.

    Raises:
        ConfigError: no such file, not a YAML list, or an unknown type or field.
    """
    path = Path(path)
    entries = _read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} holds {str(entries)[:60]!r}, expected a YAML list of evaluation sets")
    listed = create_model("Listed", __base__=Settings, sets=(tuple[union_of_sets(), ...], ...))  # type: ignore[arg-type, misc]
    try:
        sets = listed.model_validate({"sets": entries}).sets  # type: ignore[attr-defined]
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_fault(error, {'sets': entries}, listed)}") from error
    return resolve_paths(sets, path.parent.absolute())


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list of evaluation sets {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def resolve_paths(sets: Sequence[EvaluationSet], folder: Path) -> tuple[EvaluationSet, ...]:
    """Return the sets with their relative paths counted from `folder`; assets and URIs stay as they are."""
    return tuple(settings.resolved(folder) for settings in sets)


def read_sets(sets: Sequence[EvaluationSet]) -> tuple[SetData, ...]:
    """Read and check every set, before any model is loaded.

    Raises:
        ConfigError: a name given twice, a missing file or column, a score that is no number, a judgement of an unknown
            document or query, a class of the test file that the training file lacks, a broken image.
    """
    for name, count in Counter(settings.name for settings in sets).items():
        if count > 1:
            raise ConfigError(f"found {count} evaluation sets of the name {name!r}; give each its own name")
    return tuple(settings.read() for settings in sets)


def contents(sets: Sequence[SetData]) -> str:
    """Return twelve hex digits that name the contents of the sets: texts, images, prompts and judgements."""
    return fingerprint(json.loads(json.dumps([data.contents() for data in sets], default=_plain)))


def _plain(value: Any) -> Any:
    """Return an image as its hash and an array as a list."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else value.tolist()


def text_sets(sets: Sequence[SetData]) -> list[SetData]:
    """Return the sets that need no vision."""
    return [data for data in sets if not data.needs_vision]


# Scoring


class Kind(NamedTuple):
    """A kind of input that is encoded in one call: images, or texts with one prompt."""

    images: bool
    prompt: str | None


def evaluate(encoder: Encoder, sets: Sequence[SetData], dims: Sequence[int] | None = None) -> list[Score]:
    """Return the scores of each set and head, sets in their order and heads in that of `dims` (None: all).

    An encoder without vision skips sets of images; `skipped_sets` names them. Equal texts or images of a set are
    encoded once, and the body runs once for all heads.

    Raises:
        ConfigError: a head or a prompt that the encoder does not have, found before the first text is encoded.
    """
    dims = encoder.dims if dims is None else tuple(dims)
    measured = [data for data in sets if encoder.accepts_images or not data.needs_vision]
    for dim in dims:
        known_dim(encoder.dims, dim)
    check_prompts(encoder.prompts, measured, "the model")
    return [score for data in measured for score in _evaluate_set(encoder, data, dims)]


def skipped_sets(encoder: Encoder, sets: Sequence[SetData]) -> list[str]:
    """Return the names of the sets of images, if the encoder has no vision."""
    return [data.name for data in sets if data.needs_vision and not encoder.accepts_images]


def check_prompts(prompts: Mapping[str, str], sets: Sequence[SetData], owner: str) -> None:
    """Refuse sets that ask for a prompt that `owner` does not have; needs no model.

    Raises:
        ConfigError: names the set and the prompt.
    """
    for data in sets:
        for request in data.requests:
            _kind(prompts, request, data.name, owner)


def _evaluate_set(encoder: Encoder, data: SetData, dims: Sequence[int]) -> list[Score]:
    encoded = _encode(encoder, data, dims)
    values = [data.settings.score(data, *(vectors[dim] for vectors in encoded)) for dim in dims]
    return [score for dim, metrics in zip(dims, values, strict=True) for score in as_scores(data.name, dim, metrics)]


def _encode(encoder: Encoder, data: SetData, dims: Sequence[int]) -> list[dict[int, np.ndarray]]:
    """Return the vectors `[N, D]` of each request by head; each different text or image is encoded once."""
    asked = [
        (_kind(encoder.prompts, r, data.name), r.images if isinstance(r, ImageRequest) else r.texts)
        for r in data.requests
    ]
    rows: dict[Kind, dict[Hashable, int]] = {kind: {} for kind, _ in asked}
    places = [[rows[kind].setdefault(item, len(rows[kind])) for item in items] for kind, items in asked]
    vectors = {kind: _heads(encoder, list(known), kind, dims) for kind, known in rows.items()}
    return [
        {dim: vectors[kind][dim][places_N] for dim in dims} for (kind, _), places_N in zip(asked, places, strict=True)
    ]


def _heads(encoder: Encoder, items: Sequence[Any], kind: Kind, dims: Sequence[int]) -> dict[int, np.ndarray]:
    """Return the vectors by head; of texts, a single head is computed alone."""
    if kind.images:
        vectors = image_encoder(encoder).encode_images(items)
    elif len(dims) == 1:
        vectors = {dims[0]: encoder.encode(items, kind.prompt, dim=dims[0])}
    else:
        vectors = encoder.encode_heads(items, kind.prompt)
    for dim in dims:
        if not np.isfinite(vectors[dim]).all():
            raise FloatingPointError(f"the encoder's {dim}-d vectors hold values that are not finite")
    return vectors


def _kind(prompts: Mapping[str, str], request: TextRequest | ImageRequest, name: str, owner: str = "the model") -> Kind:
    """Return images, or texts with the request's prompt; an encoder that was trained without prompts gets none.

    Some libraries list empty prompts for every model; these count as none.
    """
    named = sorted(key for key, text in prompts.items() if text)
    if isinstance(request, ImageRequest) or request.prompt is None or not named:
        return Kind(images=isinstance(request, ImageRequest), prompt=None)
    if request.prompt not in prompts:
        raise ConfigError(
            f"evaluation set {name!r} asks for the prompt {request.prompt!r}, but {owner} has {', '.join(named)}; "
            "name one of these in the set, or remove its prompt"
        )
    return Kind(images=False, prompt=request.prompt)
