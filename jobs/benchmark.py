"""Measure us and a peer in turn on the same work: python jobs/benchmark.py NAME [--output FILE.json]."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path

import torch

from jasper_ray.benchmarks.losses import benchmark_losses, render


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure us and a peer in turn on the same work.")
    parser.add_argument("name", choices=["losses"], help="losses: the relative similarity against its matrix form")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="keep the figures, with machine and date")
    return parser.parse_args()


def machine() -> dict[str, str]:
    """What ran it, and when."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} processors",
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
    }


def main() -> None:
    options = arguments()
    records = benchmark_losses(options.threads, options.device)
    print(render(records))
    if options.output:
        options.output.write_text(json.dumps({**machine(), "records": records}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
