"""Command-line options from the fields of settings: an option is written once, its help is the field's docstring.

No library does this without bending the commands. pydantic-settings, tyro and jsonargparse name options after fields
and nest them with dots (`--pool.max-size 8` for `--actors 1:8`); typer and click read signatures, which repeat the
fields. Each of them also replaces the one-sentence errors of `config` by its own.
"""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from typing import Any, Literal, TypeVar, get_args, get_origin

from packaging.requirements import Requirement
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from jasper_ray.config import ConfigError, Settings, first_fault

Group = argparse._ArgumentGroup
Kind = TypeVar("Kind", bound=Settings)


def command_parser(description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Make a parser whose usage and examples (`%(prog)s`) name the command as the user started it."""
    started = sys.argv[0]
    prog = f"python {started}" if started.endswith(".py") else started
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog, description=description, epilog=epilog, formatter_class=form)


def add_fields(group: Group, kind: type[Settings], **metavars: str | None) -> None:
    """Add the options of fields, each with its metavar; None shows the choices or the name."""
    for name, metavar in metavars.items():
        add_field(group, kind, name, metavar)


def add_field(
    group: Group, kind: type[Settings], name: str, metavar: str | None = None, flag: str = "", **changes: Any
) -> None:
    """Add the option of a field. Unset, it is absent from the namespace, so that the field's default applies.

    `flag` replaces `--name`; `changes` are further arguments of `add_argument`.
    """
    field = kind.model_fields[name]
    switch = field.annotation is bool
    given: dict[str, Any] = {
        "dest": name,
        "default": argparse.SUPPRESS,
        "required": field.is_required(),
        "help": f"{field.description}{note(field)}".replace("%", "%%"),
        **({} if switch else {"metavar": metavar}),
        **value_arguments(field.annotation, field.default),
        **changes,
    }
    negated = "no-" if switch and field.default else ""
    group.add_argument(flag or f"--{negated}{name.replace('_', '-')}", **given)


def value_arguments(annotation: Any, default: object) -> dict[str, Any]:
    """Return the arguments of `add_argument` that read values of an annotation."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Literal:
        return {"choices": parts}
    if get_origin(annotation) is tuple:
        return {"action": "append"}
    if parts:
        return value_arguments(parts[0], default)
    if annotation is bool:
        return {"action": "store_false" if default else "store_true"}
    return {"type": annotation}


def note(field: FieldInfo) -> str:
    """Return the end of a help text: the default, unless only the docstring explains it, and if an option repeats."""
    if get_origin(field.annotation) is tuple:
        return " Repeatable."
    if isinstance(field.default, bool) or not isinstance(field.default, (str, int, float)):
        return ""
    return f" Default: {field.default:g}." if isinstance(field.default, float) else f" Default: {field.default}."


def read_settings(kind: type[Kind], values: dict[str, Any]) -> Kind:
    """Settings from options.

    Raises:
        ConfigError: an option's value is wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{first_fault(error, values, kind)}; see --help") from error


def fields_of(options: argparse.Namespace, kind: type[Settings]) -> dict[str, Any]:
    """Return the options that are set and are fields of `kind`."""
    return {name: value for name, value in vars(options).items() if name in kind.model_fields}


def require(extra: str) -> None:
    """Refuse to start without the packages of an extra.

    Raises:
        ConfigError: one of them is not installed.
    """
    package = missing("jasper-ray", extra)
    if package:
        raise ConfigError(f"{package} is not installed, which this command needs: pip install 'jasper-ray[{extra}]'")


def missing(package: str, extra: str) -> str | None:
    """Return the first package of an extra, or of the extras that it names (`ray[data]`), that is not installed."""
    try:
        declared = [Requirement(line) for line in metadata.requires(package) or ()]
    except metadata.PackageNotFoundError:  # jasper-ray itself, if it runs from its sources
        return None if package == "jasper-ray" else package
    for needed in declared:
        if needed.marker and needed.marker.evaluate({"extra": extra}) and not needed.marker.evaluate({"extra": ""}):
            inner = [missing(needed.name, name) for name in ("", *needed.extras)]
            if any(inner):
                return next(filter(None, inner))
    return None
