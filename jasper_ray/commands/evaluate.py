"""`jasper-ray evaluate`: models and evaluation sets → scores."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jasper_ray.commands.options import command_parser, require
from jasper_ray.config import ConfigError
from jasper_ray.resources import ModelSettings
from jasper_ray.vectors import Precision

if TYPE_CHECKING:
    from jasper_ray.distill.heldout import HeldOut
    from jasper_ray.encoders import Encoder
    from jasper_ray.evaluation import SetData

CONTINUES = False
SETS = """
a list of sets; their paths count from the folder of the list:

  - {type: pairs, name: stsb, path: stsb.csv, format: csv, header: false, columns: {left: 0, right: 1, score: 2}}
  - {type: retrieval, name: nfcorpus, format: beir, documents: corpus.jsonl, queries: queries.jsonl, qrels: test.tsv}
  - {type: classification, name: banking77, train: train.csv, test: test.csv, format: csv,
     columns: {text: text, label: category}, train_per_class: 20}
  - {type: image_captions, name: flickr, images: {format: folder, path: flickr30k}}
  - {type: zero_shot, name: digits, images: {format: folder, path: "sklearn:digits/test", caption: label},
     templates: ["a handwritten digit {}", "the number {}, written by hand"]}

The last two are sets of images, whose source is written as in a recipe; a model without vision skips them.
"""


def command_line() -> argparse.ArgumentParser:
    """Return the options of the command."""
    about = "Measure models on your own evaluation sets and on a run's held-out texts, every head of a student."
    parser = command_parser(about, epilog=SETS)
    model = (
        "A student folder, a sentence-transformers folder or hub id, or an asset (pypi:all-MiniLM-L6-v2). Repeatable."
    )
    parser.add_argument("--model", action="append", required=True, help=model)
    sets = "A YAML list of evaluation sets. Default: sets.yaml, if it exists."
    parser.add_argument("--sets", metavar="FILE", help=sets)
    run = "The run folder with the held-out texts, targets and images. Default: the run of the first model, if any."
    parser.add_argument("--run", type=Path, metavar="DIR", help=run)
    parser.add_argument("--dim", type=int, action="append", help="Measure only this head. Repeatable. Default: all.")
    parser.add_argument("--json", metavar="FILE", help="Also write the scores to FILE, after each model.")
    parser.add_argument("--device", help="The device: cpu, cuda, cuda:1, ... Default: a GPU, if there is one.")
    dtype = "Precision of the model. auto: the precision in which the device is fast. Default: auto."
    parser.add_argument("--dtype", default="auto", choices=get_args(Precision), help=dtype)
    return parser


def run_of(model: str) -> Path | None:
    """Return the run folder that contains a finished student."""
    folder = Path(model).parent
    return folder if (folder / "teachers.json").is_file() else None


def report_skipped(model: str, encoder: Encoder, sets: Sequence[SetData], heldout: bool) -> None:
    """Print the sets that a model without vision skips.

    Raises:
        ConfigError: the model would skip everything.
    """
    from jasper_ray.evaluation import skipped_sets

    names = skipped_sets(encoder, sets)
    if names and len(names) == len(sets) and not heldout:
        raise ConfigError(
            f"{model} has no vision, and all sets ({', '.join(names)}) are of images; "
            "give a student with vision, or sets of texts too"
        )
    if names:
        print(f"skipped, because {model} has no vision: {', '.join(names)}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure each model and print the table of scores."""
    options = command_line().parse_args(arguments)
    run = options.run or run_of(options.model[0])
    listed = options.sets or ("sets.yaml" if Path("sets.yaml").is_file() else None)
    if not listed and not run:
        raise ConfigError("there is nothing to measure with: give --sets FILE, --run DIR, or both")
    import transformers

    from jasper_ray.encoders.inference import open_for_inference
    from jasper_ray.evaluation import evaluate, load_sets, read_sets, render, with_moment, write_scores

    transformers.utils.logging.disable_progress_bar()
    sets = read_sets(load_sets(listed)) if listed else ()
    heldout = read_run(run) if run else []
    records = []
    for model in options.model:
        settings = ModelSettings(model=model, precision=options.dtype)
        opened = open_for_inference(settings, options.device, vision=True)
        print(f"measuring {model} in {opened.precision}", file=sys.stderr)
        encoder = opened.encoder
        report_skipped(model, encoder, sets, heldout=any(not rows.needs_vision for rows in heldout))
        scores = evaluate(encoder, sets, options.dim)
        for rows in heldout:
            scores += rows.scores(encoder, options.dim)
        records += with_moment(model, scores)
        if options.json:
            write_scores(records, options.json)
    print(render(records))


def read_run(run: Path) -> list[HeldOut]:
    """Read the held-out texts and pairs of a run folder."""
    require("embed")
    from jasper_ray.distill.heldout import read_heldout

    return read_heldout(run)
