"""Measure models: python jobs/evaluate.py --model DIR [--model DIR] [--sets FILE] [--run DIR]."""

from jasper_ray import cli
from jasper_ray.commands.evaluate import main

if __name__ == "__main__":
    cli.run(main)
