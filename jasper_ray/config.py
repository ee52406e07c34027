"""The base of all settings: frozen, closed to unknown keys, with help per field and readable errors; fingerprints."""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

Fault = Any
"""One entry of `ValidationError.errors()`: `type`, `loc`, `msg`, `input`, and `ctx` for some types."""


class ConfigError(ValueError):
    """An error that the user can fix. Its message is one sentence: found, expected, where to change it."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, since libraries append advice, or its class if the text is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip()


def config_message(error: BaseException | None) -> str | None:
    """Return the message of the `ConfigError` inside an exception that Ray may have wrapped; None without one.

    Ray raises an error of a worker as an object that is a `ConfigError` too, but whose text is a whole traceback; the
    original is its `cause`.
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
    """Make twelve hex digits, equal for equal values, which name folders and decide whether a run resumes.

    `value` may be a `Settings`, or dicts and lists of plain values; key order does not matter.
    """
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def setting_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the values that differ in nested settings, such as `seed was 0 and is now 1`."""
    was, now = flat(old), flat(new)
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    return [f"{name} was {was.get(name)!r} and is now {now.get(name)!r}" for name in names]


def flat(value: object, name: str = "") -> dict[str, object]:
    """Nested dicts and lists as one dict with keys like `corpus.sources.0.path`."""
    if not isinstance(value, (dict, list)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {key: leaf for part, child in items for key, leaf in flat(child, f"{name}.{part}".lstrip(".")).items()}


def first_fault(error: ValidationError, value: dict[str, Any], kind: type[Settings]) -> str:
    """Return the first fault in `value`, read as a `kind`: place, found, expected."""
    faults = [fault for fault in error.errors() if not is_echo(fault)]
    unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]
    fault = (unknown or faults)[0]  # a misspelt key also makes the right one missing, which says less
    place = ".".join(map(str, written_place(fault["loc"], value, fault["type"] == "missing")))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        placed = not place or message.startswith(("stage ", place.split(".")[0]))
        return f"{message}{more}" if placed else f"{place}: {message}{more}"
    return f"{place}: {expectation(fault, kind)}{more}"


def is_echo(fault: Fault) -> bool:
    """Return true if pydantic calls a list too short only because its entries are faulty."""
    return fault["type"] == "too_short" and bool(fault["input"])


PLAINER = {
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
    "dict_type": "expected a mapping",
    "tuple_type": "expected a list",
    "too_short": "expected at least one entry",
}
"""Type of a pydantic fault → its text in the words of YAML instead of Python's types."""


def expectation(fault: Fault, kind: type[Settings]) -> str:
    """Return the text of a fault without its place."""
    if fault["type"] == "extra_forbidden":
        return f"unknown key{suggestion(fault['loc'], kind)}"
    if fault["type"] == "missing":
        return "this key is required and missing"
    if fault["type"] == "union_tag_invalid":
        context = fault["ctx"]
        return f"type {context['tag']!r} is unknown; expected one of {context['expected_tags']}"
    if fault["type"] == "union_tag_not_found":
        return "the key type is required and missing"
    expected = PLAINER.get(fault["type"], f"{fault['msg'][0].lower()}{fault['msg'][1:]}")
    found = repr(fault["input"])
    return f"{expected}; found {found if len(found) <= 80 else found[:77] + '...'}"


def written_place(location: tuple[int | str, ...], value: Any, missing: bool) -> list[int | str]:
    """Return `location` without the parts that pydantic adds for the members of a union."""
    place: list[int | str] = []
    for part in location[: len(location) - missing]:
        parts = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(parts, dict) and part in parts:
            value = parts[part]
            place.append(part)
    return [*place, location[-1]] if missing else place


def suggestion(location: tuple[int | str, ...], kind: type[Settings]) -> str:
    """Return `; did you mean …?` if a key of that place is similar to the unknown one, else all keys there."""
    known = known_keys(location[:-1], kind)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known here are {', '.join(known)}"


def known_keys(location: tuple[int | str, ...], kind: type[Settings]) -> list[str]:
    """Return the valid keys at a place of a `kind`."""
    kinds = [kind]
    for part in location:
        fields = [kind.model_fields[part] for kind in kinds if part in kind.model_fields]
        tagged = [kind for kind in kinds if "type" in kind.model_fields]
        variant = [kind for kind in tagged if part in get_args(kind.model_fields["type"].annotation)]
        kinds = [inner for field in fields for inner in settings_in(field.annotation)] or variant or kinds
    return sorted({name for kind in kinds for name in kind.model_fields})


def settings_in(annotation: Any) -> list[type[Settings]]:
    """Return the settings classes in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [inner for part in get_args(annotation) for inner in settings_in(part)]
