"""Measure models: python jobs/evaluate.py --model DIR [--model DIR] [--sets FILE] [--run DIR]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jasper_ray import cli
from jasper_ray.config import ConfigError

if TYPE_CHECKING:
    from jasper_ray.encoders import Encoder
    from jasper_ray.evaluation import SetData

SETS = """
a list of sets; their paths count from the folder of the list:

  - {type: pairs, name: stsb, path: stsb.csv, format: csv, header: false, columns: {left: 0, right: 1, score: 2}}
  - {type: retrieval, name: nfcorpus, format: beir, documents: corpus.jsonl, queries: queries.jsonl, qrels: test.tsv}
  - {type: classification, name: banking77, train: train.csv, test: test.csv, format: csv,
     columns: {text: text, label: category}, train_per_class: 20}
  - {type: image_captions, name: flickr, images: {format: folder, path: flickr30k}}
  - {type: zero_shot, name: digits, images: {format: folder, path: "sklearn:digits/test", caption: label},
     templates: ["a handwritten digit {}", "the number {}, written by hand"]}

the last two are of images, whose source is written as in a recipe; a model without vision is left out of them
"""


def arguments() -> argparse.Namespace:
    about = "Measure models on sets of your own and on a run's held-out texts; of a student, every head."
    model = "student folder, sentence-transformers folder or hub id, or asset like pypi:all-MiniLM-L6-v2; repeatable"
    dtypes = ("auto", "float32", "bfloat16", "float16")
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, epilog=SETS, formatter_class=form)
    parser.add_argument("--model", action="append", required=True, help=model)
    parser.add_argument("--sets", metavar="FILE", help="YAML list of sets (default: sets.yaml where there is one)")
    run = "run folder whose held-out texts, target and images to compare with (default: the first model's, if any)"
    parser.add_argument("--run", type=Path, metavar="DIR", help=run)
    parser.add_argument("--dim", type=int, action="append", help="measure this head alone; repeatable (default: all)")
    parser.add_argument("--json", metavar="FILE", help="write the scores to FILE too, anew after each model")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    parser.add_argument("--dtype", default="auto", choices=dtypes, help="precision; auto: what the device is fast in")
    return parser.parse_args()


def run_of(model: str) -> Path | None:
    """The run folder that a finished student lies in."""
    folder = Path(model).parent
    return folder if (folder / "teachers.json").is_file() else None


def name_unseen(model: str, encoder: Encoder, sets: Sequence[SetData], heldout: bool) -> None:
    """Say which sets a model without vision is left out of; refuse one that nothing would be left for."""
    from jasper_ray.evaluation import unseen

    names = unseen(encoder, sets)
    if names and len(names) == len(sets) and not heldout:
        raise ConfigError(
            f"{model} has no vision, and all sets ({', '.join(names)}) are of images; "
            "give a student with vision, or sets of texts too"
        )
    if names:
        print(f"left out, because {model} has no vision: {', '.join(names)}", file=sys.stderr)


def main() -> None:
    options = arguments()
    # These take seconds to import; --help and a mistyped option need none of them.
    import transformers

    from jasper_ray.distill.heldout import heldout_pairs_of, measure_agreement, measure_recall, read_heldout
    from jasper_ray.encoders import StudentEncoder, load_encoder
    from jasper_ray.encoders.precision import precise
    from jasper_ray.evaluation import evaluate, label, load_sets, read_sets, render, save

    transformers.utils.logging.disable_progress_bar()
    listed = options.sets or ("sets.yaml" if Path("sets.yaml").is_file() else None)
    run = options.run or run_of(options.model[0])
    if not listed and not run:
        raise ConfigError("there is nothing to measure with: give --sets FILE, --run DIR, or both")
    sets = read_sets(load_sets(listed)) if listed else ()
    heldout = read_heldout(run) if run else None
    pairs = heldout_pairs_of(run) if run else None
    records = []
    for model in options.model:
        dtype = precise(options.dtype, options.device)
        print(f"measuring {model} in {dtype}", file=sys.stderr)
        encoder = load_encoder(model, options.device, dtype)
        name_unseen(model, encoder, sets, heldout is not None)
        scores = evaluate(encoder, sets, options.dim)
        if heldout:
            scores += measure_agreement(encoder, heldout, options.dim)
        if pairs and isinstance(encoder, StudentEncoder) and encoder.sees:
            scores += measure_recall(encoder, pairs, options.dim)
        records += label(model, scores)
        if options.json:
            save(records, options.json)
    print(render(records))


if __name__ == "__main__":
    cli.run(main)
