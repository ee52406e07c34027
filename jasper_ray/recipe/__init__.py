"""The recipe: all settings of a run, in one strict YAML file that is checked whole before anything starts."""

from jasper_ray.recipe.loading import (
    dump_recipe,
    load_recipe,
    parse_recipe,
    read_yaml,
    shipped_recipes,
    with_sets,
)
from jasper_ray.recipe.schema import CachedTargets, Recipe, RidgeHeads
from jasper_ray.recipe.stage import Stage

__all__ = [
    "CachedTargets",
    "Recipe",
    "RidgeHeads",
    "Stage",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "read_yaml",
    "shipped_recipes",
    "with_sets",
]
