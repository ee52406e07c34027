"""`jasper-ray embed`: a corpus and a model → vectors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from jasper_ray.cli import min_and_max
from jasper_ray.commands.options import add_field, add_fields, command_parser, fields_of, read_settings, require
from jasper_ray.embedding.settings import EmbedSettings, vector_column
from jasper_ray.resources import Replicas

CONTINUES = True
READER_CPUS = 0.2
"""Processors that each of `--readers` reserves."""

EXAMPLES = """
  %(prog)s --model runs/quickstart/student --input corpus.jsonl --output vectors
  %(prog)s --model runs/quickstart/student --input 's3://bucket/day=*/*.parquet' --id-column id \\
      --dim 1024 --dim 256:int8 --dim 256:binary --output s3://bucket/vectors

The output folder holds vectors/ (Parquet with a fixed-size list for each --dim: vector_1024, vector_256_int8, ...),
rejected/ (the rows without a text, each with its reason) and manifest.json (all counts).
"""


def command_line() -> argparse.ArgumentParser:
    """Return the options of the command."""
    parser = command_parser(
        "Embed a corpus. Run it again to continue, or to embed files that were added.", epilog=EXAMPLES
    )
    texts = parser.add_argument_group("texts")
    add_field(texts, EmbedSettings, "inputs", "PATH", "--input")
    add_fields(texts, EmbedSettings, format=None, text_column="NAME", id_column="NAME", carry="NAME")
    add_fields(texts, EmbedSettings, max_rejected="SHARE")

    vectors = parser.add_argument_group("vectors")
    add_fields(vectors, EmbedSettings, model=None, revision="COMMIT", prompt="NAME")
    add_field(vectors, EmbedSettings, "vectors", "N[:DTYPE]", "--dim")
    add_fields(vectors, EmbedSettings, dtype=None, max_length="TOKENS")
    add_field(vectors, EmbedSettings, "truncate", help="Reject texts above --max-length instead of truncating them.")
    add_fields(vectors, EmbedSettings, precision=None)

    work = parser.add_argument_group("work")
    work.add_argument("--output", required=True, metavar="DIR", help="The output folder or its URI.")
    add_field(work, EmbedSettings, "pool", "MIN[:MAX]", "--actors", type=str, dest="actors")
    for name, default in (("cpus", "by the cluster"), ("gpus", "1, if the cluster has any")):
        doc = Replicas.model_fields[name].description
        add_field(work, Replicas, name, "N", help=f"{doc} Default: {default}.")
    add_fields(work, Replicas, threads="N")
    add_fields(work, EmbedSettings, batch_tokens="N", block_rows="N")
    add_field(work, EmbedSettings, "readers", "N", type=int)
    add_fields(work, EmbedSettings, unique=None, unique_gib="N")
    verify = "Check an existing output folder: counts, hashes, norms, and a sample that is embedded again."
    work.add_argument("--verify", action="store_true", help=verify)
    return parser


def settings_of(options: argparse.Namespace) -> EmbedSettings:
    """Return the settings that the options describe.

    Raises:
        ConfigError: an option's value is wrong.
    """
    values = fields_of(options, EmbedSettings)
    dims = values.pop("vectors", ())
    values["vectors"] = tuple(vector_column(dim, values.get("dtype", "float32")) for dim in dims)
    values["pool"] = pool_values(options) or None
    if "readers" in values:
        values["readers"] = {"cpus": READER_CPUS, "max_size": values["readers"]}
    return read_settings(EmbedSettings, values)


def pool_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the pool; the cluster decides the others."""
    values = fields_of(options, Replicas)
    if "actors" in options:
        values["min_size"], values["max_size"] = min_and_max("--actors", options.actors)
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Embed a corpus, or verify an output folder."""
    options = command_line().parse_args(arguments)
    require("embed")
    settings = settings_of(options)
    if options.verify:
        from jasper_ray.embedding.verify import verify_corpus

        print(verify_corpus(settings, options.output))
        return
    from jasper_ray.embedding.job import embed_corpus
    from jasper_ray.embedding.manifest import summary
    from jasper_ray.sources.files import printable

    manifest = embed_corpus(settings, options.output)
    print(f"{summary(manifest)}\nThe vectors are in {printable(options.output)}/vectors")
