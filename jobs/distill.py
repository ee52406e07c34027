"""Distil a student: python jobs/distill.py [RECIPE] [--run DIR]. The same command again continues."""

from jasper_ray import cli
from jasper_ray.commands.distill import main

if __name__ == "__main__":
    cli.run(main, continues=True)
