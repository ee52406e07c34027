"""`jasper-ray serve`: a model → an HTTP server."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from jasper_ray.cli import min_and_max
from jasper_ray.commands.options import add_field, add_fields, command_parser, fields_of, read_settings, require
from jasper_ray.config import ConfigError
from jasper_ray.serving.settings import LOOPBACK, Copies, ServeSettings

CONTINUES = False
KEYS_VARIABLE = "JASPER_RAY_API_KEYS"

EXAMPLES = f"""
  %(prog)s --model runs/quickstart/student
  curl http://127.0.0.1:8000/v1/embeddings -d '{{"input": "a sentence", "dimensions": 384}}'

  %(prog)s --new-key search >> keys.yaml     # the key itself is printed to the terminal, once
  %(prog)s --model runs/quickstart/student --host 0.0.0.0 --keys keys.yaml --replicas 1:4

Try it in a browser at http://127.0.0.1:8000/. {KEYS_VARIABLE} holds further keys, as name:key,name:key.
On a cluster: serve deploy cluster/serve.yaml
"""


def command_line() -> argparse.ArgumentParser:
    """Return the options of the command."""
    parser = command_parser("Serve a model online.", epilog=EXAMPLES)
    model = parser.add_argument_group("model")
    add_field(model, ServeSettings, "model", required=False)  # --new-key needs none
    add_fields(model, ServeSettings, revision="COMMIT", name=None, prompt="NAME", max_length="TOKENS", precision=None)
    add_fields(model, ServeSettings, ranges="DIR", batch_tokens="N")

    address = parser.add_argument_group("address and keys")
    host = "The address to listen on. Default: 127.0.0.1, which only this machine reaches."
    address.add_argument("--host", default="127.0.0.1", help=host)
    address.add_argument("--port", type=int, default=8000, help="The port to listen on. Default: 8000.")
    add_field(address, ServeSettings, "keys_file", "FILE", "--keys")
    add_fields(address, ServeSettings, open=None, fetch_images=None)
    new_key = "Make an API key: print it to the terminal and its entry for the file of --keys to stdout."
    address.add_argument("--new-key", metavar="NAME", help=new_key)

    replicas = parser.add_argument_group("replicas")
    number = "Replicas of the model, by load. Default: 1."
    replicas.add_argument("--replicas", default="1", metavar="MIN[:MAX]", help=number)
    cpus = "Processors that a replica reserves. Default: an equal share of this machine's."
    add_field(replicas, Copies, "cpus", "N", help=cpus)
    add_fields(replicas, Copies, gpus="N")
    add_fields(replicas, ServeSettings, threads="N")
    return parser


def settings_of(options: argparse.Namespace, environment: Mapping[str, str]) -> ServeSettings:
    """Return the settings that the options describe. Without a key, a server answers this machine alone.

    Raises:
        ConfigError: an option's value is wrong, or the address is open and no key was given.
    """
    from jasper_ray.serving.keys import parse_keys

    values = fields_of(options, ServeSettings)
    if "model" not in values:
        raise ConfigError("--model is missing; give a student folder, such as runs/quickstart/student")
    keys = parse_keys(environment.get(KEYS_VARIABLE, ""))
    guarded = bool(keys or values.get("keys_file"))
    if not (guarded or values.get("open") or options.host in LOOPBACK):
        raise ConfigError(
            f"--host {options.host} is reachable by others and no API key was given; give --keys FILE, "
            f"set {KEYS_VARIABLE}, or confirm with --open"
        )
    for name in {"model", "keys_file", "ranges"} & values.keys():
        values[name] = absolute(values[name])
    opened = values.get("open", False) or not guarded
    return read_settings(ServeSettings, {**values, "keys": keys, "open": opened, "copies": copies_values(options)})


def absolute(name: str) -> str:
    """Make a local path absolute, since replicas work in other folders; return any other name unchanged."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def copies_values(options: argparse.Namespace) -> dict[str, float]:
    """Return the options of the replicas; by default as many as may run share the processors."""
    least, most = min_and_max("--replicas", options.replicas)
    share = max(1, (os.cpu_count() or 1) // max(most, 1))
    return {"min": least, "max": most, "cpus": share, **fields_of(options, Copies)}


def make_key(name: str) -> tuple[str, str]:
    """Make a new key, and its entry for a file of keys.

    Raises:
        ConfigError: the name is not valid.
    """
    from jasper_ray.serving import keys

    secret = keys.new_key()
    digest = keys.digest_of(secret)
    try:
        keys.Key(name=name, sha256=digest)
    except ValidationError as error:
        raise ConfigError(f"--new-key {name!r}: expected letters, digits, dots and dashes") from error
    return secret, f"- name: {json.dumps(name)}\n  sha256: {digest}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a model until a signal stops it, or make an API key."""
    options = command_line().parse_args(arguments)
    require("serve")
    if options.new_key:
        secret, entry = make_key(options.new_key)
        print(f"the key of {options.new_key}, which is shown once: {secret}", file=sys.stderr)
        print(entry)
        return
    settings = settings_of(options, os.environ)
    from jasper_ray.serving.run import run_server

    run_server(settings, options.host, options.port)
