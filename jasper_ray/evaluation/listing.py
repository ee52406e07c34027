"""The YAML file that lists evaluation sets.

    - {type: pairs, name: stsb, path: stsb.csv, format: csv, header: false, columns: {left: 0, right: 1, score: 2}}
    - {type: retrieval, name: cranfield, format: cranfield, documents: cran.all, queries: cran.qry, qrels: cranqrel}
    - {type: retrieval, name: nfcorpus, format: beir, documents: nfcorpus/corpus.jsonl,
       queries: nfcorpus/queries.jsonl, qrels: nfcorpus/qrels/test.tsv, query_prompt: s2p_query}
    - {type: classification, name: banking77, train: train.csv, test: test.csv, format: csv,
       columns: {text: text, label: category}, train_per_class: 20}
    - {type: image_captions, name: flickr, images: {format: folder, path: flickr30k}}
    - {type: zero_shot, name: digits, images: {format: folder, path: "sklearn:digits/test", caption: label},
       templates: ["a handwritten digit {}", "the number {}, written by hand"]}

Relative paths count from the folder of the YAML file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from jasper_ray.config import ConfigError
from jasper_ray.evaluation.sets import EvaluationSet, ImageCaptionSet, ZeroShotSet

_TYPES = {"pairs", "retrieval", "classification", "image_captions", "zero_shot"}
_VARIANTS = _TYPES | {"parquet", "folder", "webdataset", "constrained-int", "str"}
"""What pydantic adds to a fault's place to say which member of a union it tried."""
_SETS: TypeAdapter[list[EvaluationSet]] = TypeAdapter(list[EvaluationSet])


def load_sets(path: str | Path) -> tuple[EvaluationSet, ...]:
    """The evaluation sets that the YAML file `path` lists, their paths resolved against its folder.

    Raises:
        ConfigError: no such file, not a YAML list, or an unknown type or field.
    """
    path = Path(path)
    entries = _read_yaml(path)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} holds {_shown(entries)} where a YAML list of evaluation sets was expected")
    try:
        sets = _SETS.validate_python(entries)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_fault(error)}") from error
    return resolve_paths(sets, path.parent.absolute())


def resolve_paths(sets: Sequence[EvaluationSet], folder: Path) -> tuple[EvaluationSet, ...]:
    """The same sets with their relative paths counted from `folder`; assets and URIs stay as they are."""
    return tuple(_resolved(one, folder) for one in sets)


def _resolved(one: EvaluationSet, folder: Path) -> EvaluationSet:
    if isinstance(one, ImageCaptionSet | ZeroShotSet):
        images = one.images.model_copy(update={"path": _resolved_source(one.images.path, folder)})
        return one.model_copy(update={"images": images})
    return one.model_copy(update={key: folder / v for key, v in one if isinstance(v, Path)})


def _resolved_source(path: str, folder: Path) -> str:
    """The path of a source; what begins with a scheme (`s3:`, `sklearn:`) names an asset or a URI."""
    return path if re.match(r"[a-z][a-z0-9+.-]+:", path) else str(folder / Path(path).expanduser())


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the list of evaluation sets {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def _first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, as one clause: which set, which field, what was found, what was expected."""
    fault, count = error.errors()[0], error.error_count()
    number, *fields = fault["loc"]
    names = [str(field) for field in fields if field not in _VARIANTS]
    place = f"set {int(number) + 1}" + (f", field {'.'.join(names)}" if names else "")
    more = f" (and {count - 1} more)" if count > 1 else ""
    if fault["type"] == "value_error":
        return f"{place}: {fault['ctx']['error']}{more}"
    found = "" if isinstance(fault["input"], dict) else f"; found {_shown(fault['input'])}"
    return f"{place}: {fault['msg'][0].lower()}{fault['msg'][1:]}{found}{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
