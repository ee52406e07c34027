"""Fixtures of test_written_before.py, written by the imported version; README.md says when to replace them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

import jasper_ray
from jasper_ray.recipe import parse_recipe, read_yaml
from jasper_ray.recipe.loading import recipe_path, shipped_recipes
from jasper_ray.recipe.machine import parts, with_precisions
from jasper_ray.run_folder import stage_fingerprints
from jasper_ray.teachers import described

HERE = Path(__file__).parent
JOBS = Path(jasper_ray.__file__).parents[1] / "jobs"
PLACE = Path("/tmp/jasper_ray-written-before")
"""Folder of all files: an embedding records absolute paths, so the test unpacks them under the same path."""
WRITTEN_AT = 1_700_000_000
"""Modification time of the sources in seconds; fingerprints cover it."""
TIMES = {"rows_per_s", "wait_share", "seconds", "labelled", "teacher_rows_per_s", "decoding_processors"}
"""Metrics of a step that depend on the machine."""
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
RNG = random.Random(7)
WORDS = (
    "river stone bird house garden winter engine letter music bread harbour window teacher student mountain lamp "
    "paper market forest bridge cloud horse table summer candle story number coffee island train"
)


def sentence() -> str:
    """Draw one to three sentences of words and numbers."""
    lengths = [RNG.randint(8, 10) for _ in range(RNG.randint(1, 3))]
    return " ".join(
        " ".join(
            RNG.choice(WORDS.split()) if RNG.random() < 0.9 else str(RNG.randint(1, 99)) for _ in range(length)
        ).title()
        + "."
        for length in lengths
    )


def write(name: str, content: str) -> None:
    """Write a source."""
    path = PLACE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    os.utime(path, (WRITTEN_AT, WRITTEN_AT))


def write_lines(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a source of JSON lines."""
    write(name, "".join(json.dumps(row) + "\n" for row in rows))


def write_sources() -> None:
    """Write texts, notes, captioned images and two files to embed, each with unusable rows."""
    texts = [sentence() for _ in range(220)]
    write("texts.txt", "\n".join(texts) + "\n")
    write_lines("notes.jsonl", [{"body": sentence()} for _ in range(80)] + [{"body": None}])
    captions = []
    for number in range(48):
        name = f"{number:02}.png"
        image = Image.new("RGB", (16, 16), tuple(RNG.randrange(256) for _ in range(3)))
        image.putpixel((number % 16, number // 16), (255, 255, 255))
        (PLACE / "images").mkdir(exist_ok=True)
        image.save(PLACE / "images" / name)
        os.utime(PLACE / "images" / name, (WRITTEN_AT, WRITTEN_AT))
        captions.append({"file_name": name, "caption": sentence()})
    write("images/broken.png", "this is no image")
    write_lines("images/metadata.jsonl", [*captions, {"file_name": "broken.png", "caption": "nothing"}])
    rows = [{"text": text, "kind": "a"} for text in texts[:110]] + [{"text": None, "kind": "a"}] * 3
    write_lines("input/a.jsonl", [*rows, *rows[:7]])
    write_lines("input/b.jsonl", [{"text": sentence(), "kind": "b"} for _ in range(125)] + [{"text": " ", "kind": "b"}])


def write_base() -> None:
    """Write a tokenizer of 200 pieces for a body of random weights."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train([str(PLACE / "texts.txt")], trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL))
    ends = [(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    (PLACE / "base").mkdir()
    tokenizer.save(str(PLACE / "base" / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    write("base/tokenizer_config.json", json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    write("base/config.json", json.dumps({"model_type": "bert"}))


def stage(name: str, **settings: Any) -> dict[str, Any]:
    """Describe a stage on one worker; `settings` replaces its keys."""
    losses = {"cosine": 10, "similarity": 200, "relative_similarity": 20}
    usual = {
        "name": name,
        "losses": {48: losses, 16: {"similarity": 200, "relative_similarity": 20}},
        "learning_rate": 1e-3,
        "batch_size": 32,
        "cpus_per_worker": 0.25,
        "gpus_per_worker": 0,
        "threads": 1,
        "precision": "fp32",
    }
    return {**usual, **settings}


def recipe_values() -> dict[str, Any]:
    """Describe three stages, on texts, images and texts; the run is killed in the second."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 8, **sizes}
    body = {"model_type": "bert", "vocab_size": 200, "max_position_embeddings": 48, **sizes}
    pool = {"cpus": 0.25, "gpus": 0}
    head = {"cosine": 10, "similarity": 200, "relative_similarity": 20}
    return {
        "name": "before",
        "seed": 5,
        "student": {
            "body": {"base": str(PLACE / "base"), "random_weights": True, "architecture": body},
            "heads": [48, 16],
            "default_head": 16,
            "max_length": 40,
            "vision": {"architecture": tower, "preprocessing": {"size": 16}, "image_tokens": 3},
        },
        "heads_start": {"type": "ridge", "rows": 100},
        "teachers": [
            {"type": "hash", "name": "a", "dim": 32, "prompts": {"s2p_query": "query: "}, "pool": pool},
            {"type": "hash", "name": "b", "dim": 16, "weight": 0.5, "pool": pool},
        ],
        "corpus": {
            "sources": [
                {"path": str(PLACE / "texts.txt"), "format": "text", "limit": 200},
                {"path": str(PLACE / "notes.jsonl"), "format": "jsonl", "column": "body", "prompt": "s2p_query"},
            ],
            "holdout": 0.1,
            "augmentation": {"cut_share": 0.3, "max_sentences": 1},
            "shard_rows": 50,
        },
        "images": {
            "sources": [{"path": str(PLACE / "images"), "format": "folder"}],
            "holdout": 0.2,
            "shard_rows": 16,
            "decoders": {"cpus": 0.1},
            "pool": pool,
            "dtype": "float32",
        },
        "targets": {"type": "cached"},
        "stages": [
            stage("heads", train=["heads.48.*"], losses={48: head}, steps=4),
            stage("sight", data="images", train=["vision.*"], losses={48: head, 16: head}, batch_size=16, steps=30),
            stage("all", train=["*"], passes=1),
        ],
        "evaluation": {"precision": "float32"},
    }


DISTIL = ["distill.py", str(PLACE / "recipe.yaml"), "--run", str(PLACE / "run")]


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(JOBS / name), *arguments]


def distil_until_images_are_labelled() -> None:
    """Kill the run in its stage on images, once all captions are labelled."""
    process = subprocess.Popen(command(*DISTIL), start_new_session=True)
    shards = PLACE / "run" / "pairs" / "train"
    while True:
        assert process.poll() is None, "the run ended before it could be stopped"
        captions = list(PLACE.glob("run/targets/own-*/*.parquet"))
        steps = [path.read_text().count("\n") for path in PLACE.glob("run/stages/2-sight-*/metrics.jsonl")]
        if steps and steps[0] >= 5 and len(captions) == len(list(shards.glob("*.parquet"))):
            break
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(PLACE.glob("run/stages/2-sight-*/DONE"))


def embed_arguments(*inputs: str) -> list[str]:
    (student,) = PLACE.glob("run/stages/1-heads-*/student")
    places = [f"--input={PLACE / 'input' / name}" for name in inputs]
    columns = ["--dim=48", "--dim=16:int8", "--dim=16:binary", "--carry=kind", "--precision=float32"]
    pool = ["--actors=1", "--cpus=0.5", "--gpus=0", "--threads=1", "--readers=1", "--block-rows=50"]
    return ["embed.py", f"--model={student}", *places, *columns, *pool, f"--output={PLACE / 'vectors'}"]


def embed_all_but_a_block() -> None:
    """Embed one file, then both, and leave the state of a call that is killed before its last block."""
    output = PLACE / "vectors"
    subprocess.run(command(*embed_arguments("a.jsonl")), check=True)
    manifest = (output / "manifest.json").read_bytes()
    subprocess.run(command(*embed_arguments("a.jsonl", "b.jsonl")), check=True)
    shutil.copy(output / "manifest.json", HERE / "manifest.json")
    (output / "manifest.json").write_bytes(manifest)
    for last in (*output.glob("vectors/b-*-000002.parquet"), *output.glob("rejected/b-*-000002.parquet")):
        last.unlink()


def pack() -> None:
    """Archive all files that later calls read."""
    unused = {".lock", "tensorboard"}
    with tarfile.open(HERE / "files.tar.xz", "w:xz") as archive:
        archive.add(PLACE, arcname=".", filter=lambda entry: None if Path(entry.name).name in unused else entry)


def keep_expected() -> None:
    """Finish the run and keep its results."""
    subprocess.run(command(*DISTIL), check=True)
    losses = {}
    for path in sorted(PLACE.glob("run/stages/[23]-*/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        losses[path.parent.name] = [
            {k: v for k, v in line.items() if k.partition("/")[0] not in TIMES} for line in lines
        ]
    embedded = json.loads((HERE / "manifest.json").read_text())
    (HERE / "manifest.json").unlink()
    counts = {key: embedded[key] for key in ("rows", "embedded", "rejected", "texts", "tokens", "columns", "weights")}
    scores = json.loads((PLACE / "run" / "evaluation.json").read_text())
    value = {"embedding": counts, "stages": losses, "scores": scores}
    (HERE / "expected.json").write_text(json.dumps(value, indent=1) + "\n")


def keep_shipped_recipes() -> None:
    """Keep the shipped recipes as runs keep them, and the identities of their teachers and stages."""
    kept = {}
    for name in shipped_recipes():
        recipe = parse_recipe(read_yaml(recipe_path(name)), name)
        recipe = with_precisions(recipe, {part.name: "float32" for part in parts(recipe)})
        teachers = [described(teacher, "weights") for teacher in recipe.teachers]
        values = recipe.model_dump(mode="json")
        sight = {"vision": values["student"]["vision"]}
        kept[name] = {
            "recipe": values,
            "teachers": [teacher["identity"] for teacher in teachers],
            "stages": stage_fingerprints(recipe, teachers, "corpus", "base", {"images": sight}),
        }
    (HERE / "recipes.yaml").write_text(yaml.safe_dump(kept, sort_keys=False, width=120))


def main() -> None:
    PLACE.mkdir()  # fails while a test uses the path
    try:
        keep_shipped_recipes()
        write_sources()
        write_base()
        (PLACE / "recipe.yaml").write_text(yaml.safe_dump(recipe_values(), sort_keys=False))
        distil_until_images_are_labelled()
        embed_all_but_a_block()
        pack()
        keep_expected()
    finally:
        shutil.rmtree(PLACE)


if __name__ == "__main__":
    main()
