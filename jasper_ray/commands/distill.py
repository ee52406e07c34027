"""`jasper-ray distill`: a recipe → a student."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import jasper_ray
from jasper_ray.cli import log_progress
from jasper_ray.commands.options import command_parser, require

CONTINUES = True
SHIPPED = Path(jasper_ray.__file__).parent / "recipe" / "shipped"


def command_line() -> argparse.ArgumentParser:
    """Return the options of the command."""
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
    parser = command_parser("Distil teachers into a student, stage by stage. Run it again to continue.")
    parser.add_argument("recipe", nargs="?", default="quickstart", help=f"A YAML file, or one of {names}.")
    parser.add_argument("--run", type=Path, metavar="DIR", help="The run folder. Default: runs/<recipe name>.")
    sets = "A YAML list of evaluation sets, measured in addition to the recipe's."
    parser.add_argument("--sets", type=Path, metavar="FILE", help=sets)
    dry_run = "Print the resolved recipe and the resources it needs, and start nothing."
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Distil a student. A wrong recipe is reported before Ray is imported."""
    options = command_line().parse_args(arguments)
    require("distil")
    with log_progress("loading torch"):
        from jasper_ray.evaluation import load_sets
        from jasper_ray.recipe import load_recipe, with_sets
        from jasper_ray.recipe.dry_run import describe

    recipe = load_recipe(options.recipe)
    if options.sets:
        recipe = with_sets(recipe, load_sets(options.sets))
    if options.dry_run:
        print(describe(recipe))
        return
    with log_progress("loading Ray"):
        from jasper_ray.distill.run import distill

    finished = distill(recipe, options.run or Path("runs") / recipe.name)
    print(f"{finished.table}\n\nThe student is in {finished.student}")
