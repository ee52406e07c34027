"""Measure speed and memory, this project and a peer in turn where there is one: python jobs/benchmark.py NAME."""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from benchmarks import (
    corpus_stream,
    distill,
    embed,
    embed_device,
    embed_stream,
    losses,
    serve,
    serve_device,
    serve_overload,
    train,
)
from benchmarks.harness import table

from jasper_ray import cli

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        losses.BENCHMARK,
        distill.BENCHMARK,
        train.BENCHMARK,
        corpus_stream.BENCHMARK,
        embed.EMBED,
        embed.EMBED_COLUMNS,
        embed.EMBED_SCALE,
        embed_stream.BENCHMARK,
        embed_device.BENCHMARK,
        serve.BENCHMARK,
        serve_overload.BENCHMARK,
        serve_device.BENCHMARK,
    )
}


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure speed and memory, this project and a peer in turn.")
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for benchmark in BENCHMARKS.values():
        named = names.add_parser(benchmark.name, help=benchmark.help)
        named.add_argument("--output", type=Path, metavar="FILE.json", help="write figures, machine and date here")
        for option in benchmark.options:
            option.add_to(named)
    return parser.parse_args(words)


def machine() -> dict[str, str]:
    """Describe the machine, the date and the command."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} processors",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
    }


def main() -> None:
    """Run one benchmark, print its table and write its file."""
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    options = arguments()
    benchmark = BENCHMARKS[options.name]
    records = benchmark.run(vars(options))
    print(table(records, benchmark.columns))
    if options.output:
        options.output.write_text(json.dumps({**machine(), "records": records}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
