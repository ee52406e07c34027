"""Recipes in YAML: find, read strictly, write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jasper_ray.config import ConfigError, first_fault
from jasper_ray.evaluation import EvaluationSet, resolve_paths
from jasper_ray.recipe.schema import Recipe

SHIPPED = Path(__file__).with_name("shipped")


class RecipeLoader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number and a repeated key is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping as it is written, before `<<` merges the keys of another into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise ConfigError(f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice; remove one")
            seen.add((key.tag, str(key.value)))
        return node


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.\d+$"),
    list("-+0123456789."),
)


def load_recipe(name_or_path: str) -> Recipe:
    """Load a shipped recipe by name, or any by path. Paths of evaluation sets are relative to the recipe's folder.

    Raises:
        ConfigError: names the file, the place in it, the value found and the value expected.
    """
    path = recipe_path(name_or_path)
    recipe = parse_recipe(read_yaml(path), str(path))
    sets = resolve_paths(recipe.evaluation.sets, path.parent.absolute())
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"sets": sets})})


def with_sets(recipe: Recipe, sets: tuple[EvaluationSet, ...]) -> Recipe:
    evaluation = recipe.evaluation.model_copy(update={"sets": (*recipe.evaluation.sets, *sets)})
    return recipe.model_copy(update={"evaluation": evaluation})


def recipe_path(name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")):
        if not Path(name_or_path).is_file():
            raise ConfigError(f"there is no recipe file {name_or_path!r}; check the path")
        return Path(name_or_path)
    shipped = SHIPPED / f"{name_or_path}.yaml"
    if not shipped.is_file():
        names = ", ".join(shipped_recipes())
        raise ConfigError(
            f"there is no shipped recipe {name_or_path!r}; there are {names}, or give the path of a .yaml file"
        )
    return shipped


def shipped_recipes() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise ConfigError(f"{path}: bad YAML at {where}: {getattr(error, 'problem', None) or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise ConfigError(
            f"{path}: found {found}, but a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}"
        )
    return value


def parse_recipe(value: dict[str, Any], origin: str) -> Recipe:
    """Parse a recipe from plain values; an error names `origin`, the place and the fault in one sentence."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {first_fault(error, value, Recipe)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """Write the resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
