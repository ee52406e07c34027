from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement

from jasper_ray.commands import options
from jasper_ray.config import ConfigError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {"distill": "distil", "embed": "embed", "serve": "serve", "evaluate": "embed"}
"""Command → the extra that it needs. Any may also fetch an asset, with [samples]."""


def test_imports_keep_to_their_floors() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    answer = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert answer.returncode == 0, answer.stdout


def test_every_imported_package_is_declared() -> None:
    owners = packages_distributions()
    for file in [*ROOT.glob("jasper_ray/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        allowed = declared("all", *(["benchmark"] if file.parent.name == "benchmarks" else []))
        for package in imported(file) - sys.stdlib_module_names - {"jasper_ray", "benchmarks"}:
            assert allowed & {normal(owner) for owner in owners[package]}, f"{file} imports {package}, not declared"


@pytest.mark.parametrize("command", EXTRAS)
def test_a_command_imports_nothing_that_its_extra_does_not_install(command: str) -> None:
    graph = grimp.build_graph("jasper_ray", include_external_packages=True, cache_dir=None)
    reached = graph.find_upstream_modules(f"jasper_ray.commands.{command}")
    packages = {name for name in reached if not name.startswith("jasper_ray")} - sys.stdlib_module_names
    owners = packages_distributions()
    allowed = declared(EXTRAS[command], "samples")
    assert [package for package in packages if not allowed & {normal(owner) for owner in owners[package]}] == []


@pytest.mark.parametrize("words", [[], *([command] for command in EXTRAS)], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom jasper_ray.commands import main\n"
        f"sys.argv = ['jasper-ray', *{words}, '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*{'torch', 'transformers', 'ray', 'deepspeed', 'pyarrow'} & sys.modules.keys(), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert answer.stdout.startswith("usage: " + " ".join(["jasper-ray", *words]))
    assert answer.stderr.split() == []


def test_a_command_without_its_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {
        "jasper-ray": ["numpy>=1", "ray[data]>=2; extra == 'embed'", "numpy; extra == 'serve'"],
        "ray": ["no-such-package>=1; extra == 'data'", "nor-this; sys_platform == 'win32' and extra == 'data'"],
    }
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines.get(name) or (version(name) and []))
    options.require("serve")
    with pytest.raises(ConfigError, match=r"no-such-package is not installed.*: pip install 'jasper-ray\[embed\]'"):
        options.require("embed")


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'ray', 'deepspeed', 'pyarrow'}"
    code = f"import sys, jasper_ray, jasper_ray.config; print(*{heavy} & sys.modules.keys())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    import jasper_ray

    with pytest.raises(AttributeError, match="has no attribute 'teach'"):
        _ = jasper_ray.teach


def declared(*extras: str) -> set[str]:
    """Names of the packages that an installation with these extras brings."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    found = [Requirement(line) for line in lines]
    inner = [extra for each in found if each.name == PROJECT["name"] for extra in each.extras]
    return {normal(each.name) for each in found} | (declared(*inner) if inner else set())


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
