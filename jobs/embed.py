"""Embed a corpus: python jobs/embed.py --model DIR --input PATH --output DIR. The same command again continues."""

from jasper_ray import cli
from jasper_ray.commands.embed import main

if __name__ == "__main__":
    cli.run(main, continues=True)
