"""Embed a corpus: python jobs/embed.py --model DIR --input PATH --output DIR. The same command again continues."""

from __future__ import annotations

import argparse

from jasper_ray import command

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
    of_texts = parser.add_argument_group("texts")
    of_texts.add_argument(
        "--input", action="append", required=True, metavar="PATH", help="file, folder, glob or URI; repeatable"
    )
    of_texts.add_argument("--format", choices=["parquet", "jsonl", "csv", "text"], help="default: as the names tell")
    of_texts.add_argument("--text-column", default="text", metavar="NAME", help="column or key of the text (text)")
    of_texts.add_argument("--id-column", metavar="NAME", help="column of ids (default: file#row, rows from 0)")
    of_texts.add_argument("--carry", action="append", default=[], metavar="NAME", help="copy this column; repeatable")
    of_texts.add_argument(
        "--max-rejected", type=float, default=0.1, metavar="SHARE", help="of rows or files; more stops it (0.1)"
    )
    of_vectors = parser.add_argument_group("vectors")
    of_vectors.add_argument(
        "--model", required=True, help="student folder, sentence-transformers folder or hub id, or asset"
    )
    of_vectors.add_argument("--revision", metavar="COMMIT", help="of a hub id")
    of_vectors.add_argument("--prompt", metavar="NAME", help="the model's prompt to put before every text")
    of_vectors.add_argument(
        "--dim",
        action="append",
        default=[],
        metavar="N[:DTYPE]",
        help="a column of vectors; repeatable (the default head)",
    )
    of_vectors.add_argument(
        "--dtype", default="float32", choices=["float32", "float16", "int8", "binary"], help="of --dim without one"
    )
    of_vectors.add_argument("--max-length", type=int, metavar="TOKENS", help="cut texts to so many (the model's limit)")
    of_vectors.add_argument("--no-truncate", action="store_true", help="set longer texts aside instead of cutting them")
    of_vectors.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="what the model computes in (auto: bfloat16 where the device has it and a sample agrees with float32)",
    )
    of_work = parser.add_argument_group("work")
    of_work.add_argument("--output", required=True, metavar="DIR", help="folder or URI")
    of_work.add_argument("--actors", metavar="MIN[:MAX]", help="copies of the model (default: what the cluster has)")
    of_work.add_argument("--cpus", type=float, metavar="N", help="processors reserved for a copy (1)")
    of_work.add_argument("--gpus", type=float, metavar="N", help="GPUs reserved for a copy, maybe a fraction (0)")
    of_work.add_argument("--threads", type=int, metavar="N", help="torch's threads in a copy on processors")
    of_work.add_argument("--batch-tokens", type=int, metavar="N", help="tokens at once (1024; on a GPU 65536)")
    of_work.add_argument(
        "--block-rows", type=int, default=4096, metavar="N", help="rows of a block, hence of a file (4096)"
    )
    of_work.add_argument(
        "--readers", type=int, metavar="N", help="processes at most that read and tokenise (2, of many cores a quarter)"
    )
    of_work.add_argument(
        "--unique", default="block", choices=["block", "job"], help="within what equal texts are embedded once (block)"
    )
    of_work.add_argument("--unique-gib", type=float, default=2.0, metavar="N", help="memory of --unique job (2)")
    of_work.add_argument(
        "--verify", action="store_true", help="check what is there: counts, hashes, norms, a sample anew"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    from jasper_ray.embedding.request import settings_of  # Ray and torch take seconds: not for --help

    settings = settings_of(**vars(options))
    if options.verify:
        from jasper_ray.pipelines.verify import verify_corpus

        print(verify_corpus(settings, options.output))
        return
    from jasper_ray.data.files import shown
    from jasper_ray.embedding.progress import last_line
    from jasper_ray.pipelines.embed import embed_corpus

    manifest = embed_corpus(settings, options.output)
    print(f"{last_line(manifest)}\nThe vectors are in {shown(options.output)}/vectors")


if __name__ == "__main__":
    command.run(main)
