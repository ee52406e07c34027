"""Distil a student: python jobs/distill.py [RECIPE] [--run DIR]. The same command again continues."""

from __future__ import annotations

import argparse
from pathlib import Path

import jasper_ray
from jasper_ray import cli
from jasper_ray.cli import telling

RECIPES = Path(jasper_ray.__file__).parent / "recipe" / "shipped"


def arguments() -> argparse.Namespace:
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        description="Distil teachers into a student, stage by stage. Run it again to continue."
    )
    parser.add_argument("recipe", nargs="?", default="quickstart", help=f"a YAML file, or one of {shipped}")
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run folder; default runs/<recipe name>")
    parser.add_argument(
        "--sets", type=Path, metavar="FILE", help="YAML list of evaluation sets to measure on, beside the recipe's"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved recipe and what it takes, start nothing"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with telling("loading torch"):  # imports take seconds: none of them for --help, Ray's not for a wrong recipe
        from jasper_ray.evaluation import load_sets
        from jasper_ray.recipe import load_recipe, with_sets
        from jasper_ray.recipe.dry_run import describe

    recipe = load_recipe(options.recipe)
    if options.sets:
        recipe = with_sets(recipe, load_sets(options.sets))
    if options.dry_run:
        print(describe(recipe))
        return
    with telling("loading Ray"):
        from jasper_ray.distill.run import distill

    finished = distill(recipe, options.run or Path("runs") / recipe.name)
    print(f"{finished.table}\n\nThe student is in {finished.student}")


if __name__ == "__main__":
    cli.run(main, continues=True)
