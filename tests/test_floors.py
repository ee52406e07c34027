from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
EXTRAS = {"dinov2.py": "dinov2"}
"""Files that import what only an extra brings."""


def test_imports_keep_to_their_floors() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    answer = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_every_imported_package_is_declared() -> None:
    owners = packages_distributions()
    for file in [*ROOT.glob("jasper_ray/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        allowed = declared("benchmark" if file.parent.name == "benchmarks" else EXTRAS.get(file.name))
        for package in imported(file) - sys.stdlib_module_names - {"jasper_ray", "benchmarks"}:
            assert allowed & {normal(owner) for owner in owners[package]}, f"{file} imports {package}, not declared"


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'ray', 'deepspeed', 'pyarrow'}"
    code = f"import sys, jasper_ray, jasper_ray.config; print(*{heavy} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    import jasper_ray

    with pytest.raises(AttributeError, match="has no attribute 'teach'"):
        _ = jasper_ray.teach


def declared(extra: str | None) -> set[str]:
    """Names of the packages that an installation brings, with `extra` when given."""
    found = [Requirement(line) for line in requires("jasper-ray") or ()]
    return {normal(each.name) for each in found if each.marker is None or each.marker.evaluate({"extra": extra or ""})}


def imported(file: Path) -> set[str]:
    """Top-level names that `file` imports, wherever in it."""
    return {name.partition(".")[0] for node in ast.walk(ast.parse(file.read_text("utf-8"))) for name in names(node)}


def names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        yield node.module


def normal(name: str) -> str:
    return name.lower().replace("_", "-")
