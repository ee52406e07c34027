"""Distil a student: python jobs/distill.py [RECIPE] [--run DIR]. The same command again continues."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from jasper_ray.config import ConfigError

RECIPES = Path(__file__).resolve().parent / "recipes"


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


def show_progress() -> None:
    """Our lines on stderr, and no bars of the libraries between them."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("jasper_ray").setLevel(logging.INFO)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def main() -> None:
    options = arguments()
    show_progress()
    from jasper_ray.evaluation import load_sets  # torch, Ray and the models' libraries take seconds: not for --help
    from jasper_ray.recipe import load_recipe, with_sets

    recipe = load_recipe(options.recipe)
    if options.sets:
        recipe = with_sets(recipe, load_sets(options.sets))
    if options.dry_run:
        from jasper_ray.dry_run import describe

        print(describe(recipe))
        return
    from jasper_ray.distill import distill

    finished = distill(recipe, options.run or Path("runs") / recipe.name)
    print(f"{finished.table}\n\nThe student is in {finished.student}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
