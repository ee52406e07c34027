"""Serve a model: python jobs/serve.py --model DIR. Ctrl-C ends it."""

from __future__ import annotations

import argparse
import os
import sys

from jasper_ray import cli

EXAMPLES = """
  python jobs/serve.py --model runs/quickstart/student
  curl http://127.0.0.1:8000/v1/embeddings -d '{"input": "a sentence", "dimensions": 384}'

  python jobs/serve.py --new-key search >> keys.yaml     # the key itself is shown on the terminal, this once
  python jobs/serve.py --model runs/quickstart/student --host 0.0.0.0 --keys keys.yaml --replicas 1:4

A page to try it lies at http://127.0.0.1:8000/. Keys may also stand in JASPER_RAY_API_KEYS, as name:key,name:key.
On a cluster: serve deploy cluster/serve.yaml
"""


def arguments() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description="Serve a model online.", epilog=EXAMPLES, formatter_class=form)
    add_model(parser)
    add_address(parser)
    add_copies(parser)
    return parser.parse_args()


def add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", help="student folder, sentence-transformers folder or hub id, or asset")
    group.add_argument("--revision", metavar="COMMIT", help="of a hub id")
    group.add_argument("--name", help="what clients call it (default: what its folder is called)")
    group.add_argument("--prompt", metavar="NAME", help="the prompt before texts whose request names none")
    group.add_argument("--max-length", type=int, metavar="TOKENS", help="of a text at most (the model's limit)")
    group.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="precision of the model (auto: bfloat16 where the device is fast in it and sentences agree with float32)",
    )
    group.add_argument("--ranges", metavar="DIR", help="output folder of jobs/embed.py whose int8 ranges are used")
    group.add_argument("--batch-tokens", type=int, metavar="N", help="tokens at once (1024; on a GPU 65536)")


def add_address(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("address and keys")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    group.add_argument("--port", type=int, default=8000, help="(8000)")
    group.add_argument("--keys", dest="keys_file", metavar="FILE", help="YAML of API keys, read again when it changes")
    group.add_argument("--open", action="store_true", help="answer everyone who reaches the address, without a key")
    group.add_argument("--fetch-images", action="store_true", help="let clients name images by public addresses")
    group.add_argument("--new-key", metavar="NAME", help="make a key, write its entry for the file, and end")


def add_copies(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("replicas")
    group.add_argument("--replicas", default="1", metavar="MIN[:MAX]", help="copies of the model, by the load (1)")
    group.add_argument("--cpus", type=float, metavar="N", help="processors reserved for a copy (all, among the copies)")
    group.add_argument("--gpus", type=float, metavar="N", help="GPUs reserved for a copy, maybe a fraction (0)")
    group.add_argument("--threads", type=int, metavar="N", help="batches side by side in a copy (as many as --cpus)")


def main() -> None:
    options = arguments()
    from jasper_ray.serving.command import key_made, settings_of  # torch takes seconds: not for --help

    if options.new_key:
        secret, entry = key_made(options.new_key)
        print(f"the key of {options.new_key}, which is shown this once: {secret}", file=sys.stderr)
        print(entry)
        return
    settings = settings_of(**vars(options), environment=os.environ)
    from jasper_ray.serving.run import run_server

    run_server(settings, options.host, options.port)


if __name__ == "__main__":
    cli.run(main)
