"""Serve a model: python jobs/serve.py --model DIR. Ctrl-C stops it."""

from jasper_ray import cli
from jasper_ray.commands.serve import main

if __name__ == "__main__":
    cli.run(main)
