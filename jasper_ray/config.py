"""The base of every setting: frozen, closed to unknown keys, explained field by field; and how its faults are told."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

Fault = Any
"""One entry of `ValidationError.errors()`: `type`, `loc`, `msg`, `input`, and `ctx` for some types."""


class ConfigError(ValueError):
    """Something the user wrote or gave is wrong.

    The message is one sentence: what was found, what was expected, where to change it.
    """


def for_the_user(error: BaseException | None) -> str | None:
    """What the `ConfigError` inside an exception says, through the wrappers that Ray puts around it; None without one.

    Ray raises an error of a worker as an object that is a `ConfigError` too, but whose text is a whole traceback; what
    was said stands in its `cause`.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        inner = getattr(error, "cause", None)
        if isinstance(error, ConfigError) and inner is None:
            return str(error).splitlines()[0]
        error = inner or error.__cause__
    return None


class Settings(BaseModel):
    """A frozen pydantic model that refuses unknown keys; the docstring under a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def fingerprint(value: Any) -> str:
    """Twelve hex digits that name a JSON-like value: equal values, equal names; used for folders and for resume.

    `value` may be a `Settings`, or dicts and lists of plain values; key order does not matter.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def setting_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What was written otherwise in nested settings, one entry a value, such as `seed was 0 and is now 1`."""
    was, now = flat(old), flat(new)
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [f"{name} was {was.get(name)!r} and is now {now.get(name)!r}" for name in names]


def flat(value: object, name: str = "") -> dict[str, object]:
    """Nested dicts and lists as one dict, its keys like `corpus.sources.0.path`."""
    if not isinstance(value, (dict, list)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for part, child in items for key, leaf in flat(child, f"{name}.{part}".lstrip(".")).items()}


def first_fault(error: ValidationError, value: dict[str, Any], kind: type[Settings]) -> str:
    """The first fault found when `value` was read as a `kind`: place, what was found, what was expected."""
    faults = [fault for fault in error.errors() if not is_echo(fault)]
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    fault = (unknown or faults)[0]  # a misspelt key also makes the right one missing, which tells less
    place = ".".join(map(str, written_place(fault["loc"], value, fault["type"] == "missing")))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "value_error":
        said = str(fault["ctx"]["error"])
        placed = not place or said.startswith(("stage ", place.split(".")[0]))
        return f"{said}{more}" if placed else f"{place}: {said}{more}"
    return f"{place}: {expectation(fault, kind)}{more}"


def is_echo(fault: Fault) -> bool:
    """Whether pydantic calls a list too short only because entries of it are faulty themselves."""
    return fault["type"] == "too_short" and bool(fault["input"])


PLAINER = {
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "tuple_type": "expected a list",
    "too_short": "expected at least one entry",
}
"""Where pydantic speaks of Python's types, what the writer of a YAML file calls them; by the type of the fault."""


def expectation(fault: Fault, kind: type[Settings]) -> str:
    """What is wrong at a fault's place, without the place."""
    if fault["type"] == "extra_forbidden":
        return f"unknown key{suggestion(fault['loc'], kind)}"
    if fault["type"] == "missing":
        return "this key is required and missing"
    if fault["type"] == "union_tag_invalid":
        context = fault["ctx"]
        return f"type {context['tag']!r} is unknown; expected one of {context['expected_tags']}"
    if fault["type"] == "union_tag_not_found":
        return "the key type is required and missing"
    found = repr(fault["input"])
    said = PLAINER.get(fault["type"], f"{fault['msg'][0].lower()}{fault['msg'][1:]}")
    return f"{said}; found {found if len(found) <= 80 else found[:77] + '...'}"


def written_place(location: tuple[int | str, ...], value: Any, missing: bool) -> list[int | str]:
    """`location` without the parts that pydantic adds to tell which member of a union it tried."""
    place: list[int | str] = []
    for part in location[: len(location) - missing]:
        parts = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(parts, dict) and part in parts:
            value = parts[part]
            place.append(part)
    return [*place, location[-1]] if missing else place


def suggestion(location: tuple[int | str, ...], kind: type[Settings]) -> str:
    """`; did you mean …?` when a key of that place is close to the unknown one, else the keys of that place."""
    known = known_keys(location[:-1], kind)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here are {', '.join(known)}"


def known_keys(location: tuple[int | str, ...], kind: type[Settings]) -> list[str]:
    """The keys that may stand at a place of a `kind`."""
    kinds = [kind]
    for part in location:
        fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        variant = [kind for kind in kinds if part in get_args(annotation_of(kind, "type"))]
        kinds = [found for field in fields for found in settings_in(field.annotation)] or variant or kinds
    return sorted({name for kind in kinds for name in kind.model_fields})


def annotation_of(kind: type[Settings], name: str) -> Any:
    return kind.model_fields[name].annotation if name in kind.model_fields else None


def settings_in(annotation: Any) -> list[type[Settings]]:
    """The settings classes that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for part in get_args(annotation) for found in settings_in(part)]
