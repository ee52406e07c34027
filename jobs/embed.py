"""Embed a corpus: python jobs/embed.py --model DIR --input PATH --output DIR. The same command again continues."""

from __future__ import annotations

import argparse

from jasper_ray import cli

EXAMPLES = """
  python jobs/embed.py --model runs/quickstart/student --input corpus.jsonl --output vectors
  python jobs/embed.py --model runs/quickstart/student --input 's3://bucket/day=*/*.parquet' --id-column id \\
      --dim 1024 --dim 256:int8 --dim 256:binary --output s3://bucket/vectors

vectors/ holds Parquet with a fixed-size list for each --dim (vector_1024, vector_256_int8, ...), rejected/ the rows
that have no text, each with its reason, and manifest.json the account of it all.
"""


def arguments() -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        description="Embed a corpus. Run it again to continue, or to embed files that were added.",
        epilog=EXAMPLES,
        formatter_class=form,
    )
    add_texts(parser)
    add_vectors(parser)
    add_work(parser)
    return parser.parse_args()


def add_texts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("texts")
    group.add_argument(
        "--input", action="append", required=True, metavar="PATH", help="file, folder, glob or URI; repeatable"
    )
    group.add_argument("--format", choices=["parquet", "jsonl", "csv", "text"], help="default: as the names tell")
    group.add_argument("--text-column", default="text", metavar="NAME", help="column or key of the text (text)")
    group.add_argument("--id-column", metavar="NAME", help="column of ids (default: file#row, rows from 0)")
    group.add_argument("--carry", action="append", default=[], metavar="NAME", help="copy this column; repeatable")
    group.add_argument(
        "--max-rejected", type=float, default=0.1, metavar="SHARE", help="of rows or files; more stops it (0.1)"
    )


def add_vectors(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("vectors")
    group.add_argument(
        "--model", required=True, help="student folder, sentence-transformers folder or hub id, or asset"
    )
    group.add_argument("--revision", metavar="COMMIT", help="of a hub id")
    group.add_argument("--prompt", metavar="NAME", help="the model's prompt to put before every text")
    group.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="N[:DTYPE]",
        help="a column of vectors; repeatable (the default head)",
    )
    group.add_argument(
        "--dtype", default="float32", choices=["float32", "float16", "int8", "binary"], help="of --dim without one"
    )
    group.add_argument("--max-length", type=int, metavar="TOKENS", help="cut texts to so many (the model's limit)")
    group.add_argument("--no-truncate", action="store_true", help="set longer texts aside instead of cutting them")
    group.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="precision of the model (auto: bfloat16 where the device is fast in it and a sample agrees with float32)",
    )


def add_work(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("work")
    group.add_argument("--output", required=True, metavar="DIR", help="folder or URI")
    group.add_argument("--actors", metavar="MIN[:MAX]", help="copies of the model (default: what the cluster has)")
    group.add_argument(
        "--cpus", type=float, metavar="N", help="processors reserved for a copy (default: by the cluster)"
    )
    group.add_argument(
        "--gpus",
        type=float,
        metavar="N",
        help="GPUs reserved for a copy, maybe a fraction (default: 1 where there are any)",
    )
    group.add_argument("--threads", type=int, metavar="N", help="torch's threads in a copy on processors")
    group.add_argument("--batch-tokens", type=int, metavar="N", help="tokens at once (1024; on a GPU 65536)")
    group.add_argument(
        "--block-rows", type=int, default=4096, metavar="N", help="rows of a block, hence of a file (4096)"
    )
    group.add_argument(
        "--readers", type=int, metavar="N", help="processes at most that read and tokenise (2, of many cores a quarter)"
    )
    group.add_argument(
        "--unique", default="block", choices=["block", "job"], help="within what equal texts are embedded once (block)"
    )
    group.add_argument("--unique-gib", type=float, default=2.0, metavar="N", help="memory of --unique job (2)")
    group.add_argument(
        "--verify", action="store_true", help="check what is there: counts, hashes, norms, a sample anew"
    )


def main() -> None:
    options = arguments()
    from jasper_ray.embedding.command import settings_of  # Ray and torch take seconds: not for --help

    settings = settings_of(**vars(options))
    if options.verify:
        from jasper_ray.embedding.verify import verify_corpus

        print(verify_corpus(settings, options.output))
        return
    from jasper_ray.embedding.job import embed_corpus
    from jasper_ray.embedding.progress import last_line
    from jasper_ray.sources.files import shown

    manifest = embed_corpus(settings, options.output)
    print(f"{last_line(manifest)}\nThe vectors are in {shown(options.output)}/vectors")


if __name__ == "__main__":
    cli.run(main, continues=True)
