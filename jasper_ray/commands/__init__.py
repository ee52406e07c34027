"""The commands: arguments → settings → one call. `jasper-ray NAME …` and `python jobs/NAME.py …` are the same."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

import jasper_ray

COMMANDS = {
    "distill": "distil teachers into a student, stage by stage",
    "embed": "embed a corpus with a model",
    "serve": "serve a model over HTTP",
    "evaluate": "measure models on evaluation sets",
}


def main() -> None:
    """Run `jasper-ray COMMAND …`. Only the chosen command is imported, so that `--help` is instant."""
    lines = "\n".join(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "jasper-ray",
        description=f"{jasper_ray.__doc__}".partition("\n")[0],
        epilog=f"commands:\n{lines}\n\n`jasper-ray COMMAND --help` lists the options of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=jasper_ray.__version__)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="the options of the command")
    name = parser.parse_args().command
    sys.argv[:2] = [f"jasper-ray {name}"]
    from jasper_ray import cli

    command = import_module(f"jasper_ray.commands.{name}")
    cli.run(command.main, continues=command.CONTINUES)
