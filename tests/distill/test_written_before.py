"""Files of an earlier version continue: no shard, stage or block is made twice, and the results are the same."""

from __future__ import annotations

import io
import json
import re
import runpy
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from filelock import FileLock

from jasper_ray.recipe import parse_recipe
from jasper_ray.run_folder import stage_fingerprints
from jasper_ray.teachers import described

FIXTURES = next(folder for folder in Path(__file__).parents if (folder / "written_before").is_dir()) / "written_before"
JOBS = next(folder for folder in Path(__file__).parents if (folder / "jobs").is_dir()) / "jobs"
PLACE = Path("/tmp/jasper_ray-written-before")
"""Path at which the files were written: an embedding records absolute paths."""
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))
RECIPES: dict[str, Any] = yaml.safe_load((FIXTURES / "recipes.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_runs_recipe_has_the_settings_and_identities_that_it_had(name: str) -> None:
    recipe = parse_recipe(RECIPES[name]["recipe"], name)
    assert recipe.model_dump(mode="json") == RECIPES[name]["recipe"]
    teachers = [described(teacher, "weights") for teacher in recipe.teachers]
    assert [teacher["identity"] for teacher in teachers] == RECIPES[name]["teachers"]
    sight = {"vision": RECIPES[name]["recipe"]["student"]["vision"]}
    assert stage_fingerprints(recipe, teachers, "corpus", "base", {"images": sight}) == RECIPES[name]["stages"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Unpack a run killed in its second stage and an embedding killed before its last block, at their old path."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(FIXTURES / "files.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with FileLock(f"{PLACE}.lock"):
        PLACE.unlink(missing_ok=True)
        PLACE.symlink_to(folder)
        try:
            yield PLACE
        finally:
            PLACE.unlink()


def call(name: str, *arguments: str) -> str:
    """Run one of the commands in this process and return its output."""
    printed = io.StringIO()
    with patch.object(sys, "argv", [name, *arguments]), redirect_stdout(printed):
        runpy.run_path(str(JOBS / name))["main"]()
    return printed.getvalue()


Marks = dict[Path, tuple[int, int]]
"""Inode and modification time of files; both change when a file is written again."""


def marks(paths: Iterable[Path]) -> Marks:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths if path.is_file()}


@pytest.fixture(scope="module")
def before(shared_ray: None, place: Path) -> Marks:
    """Finish the run, and return the marks that its finished files had before."""
    run = place / "run"
    assert [path.name.rpartition("-")[0] for path in sorted(run.glob("stages/*"))] == ["0-start", "1-heads", "2-sight"]
    made = [path for part in ("corpus", "pairs", "heldout", "targets") for path in run.glob(f"{part}/**/*")]
    done = [path for stage in run.glob("stages/*/DONE") for path in stage.parent.glob("**/*")]
    found = marks([*made, *done, *run.glob("stages/2-sight-*/start/**/*")])
    call("distill.py", str(place / "recipe.yaml"), "--run", str(run))
    return found


@pytest.mark.slow
def test_a_run_goes_on_without_repeating_a_shard_or_a_stage(place: Path, before: Marks) -> None:
    assert marks(before) == before
    assert set(place.glob("run/targets/*/*")) <= set(before)
    stages = {path.name for path in place.glob("run/stages/*")}
    assert {path.parts[path.parts.index("stages") + 1] for path in before if "stages" in path.parts} < stages
    assert stages >= set(EXPECTED["stages"])
    assert len(stages) == 4
    assert len(list(place.glob("run/stages/*/DONE"))) == 4


@pytest.mark.slow
def test_a_run_that_goes_on_comes_to_the_losses_and_scores_of_the_version_that_began(
    place: Path, before: Marks
) -> None:
    for name, steps in EXPECTED["stages"].items():
        lines = (place / "run" / "stages" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for line, step in zip(map(json.loads, lines), steps, strict=True):
            assert {key: line[key] for key in step} == pytest.approx(step, rel=1e-3)
    scores, expected = json.loads((place / "run" / "evaluation.json").read_text(encoding="utf-8")), EXPECTED["scores"]
    assert [{**score, "value": 0} for score in scores] == [{**score, "value": 0} for score in expected]
    smooth = [number for number, score in enumerate(expected) if "@" not in score["metric"]]  # a recall jumps
    assert [scores[n]["value"] for n in smooth] == pytest.approx([expected[n]["value"] for n in smooth], abs=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("shared_ray")
def test_an_embedding_goes_on_with_the_block_that_is_missing(place: Path) -> None:
    output = place / "vectors"
    before = marks(output.glob("*/*.parquet"))
    (student,) = place.glob("run/stages/1-heads-*/student")
    inputs = [f"--input={place / 'input' / name}" for name in ("a.jsonl", "b.jsonl")]
    columns = ["--dim=48", "--dim=16:int8", "--dim=16:binary", "--carry=kind", "--precision=float32"]
    pool = ["--actors=1", "--cpus=0.5", "--gpus=0", "--threads=1", "--readers=1", "--block-rows=50"]
    options = [f"--model={student}", *inputs, *columns, *pool, f"--output={output}"]
    call("embed.py", *options)
    assert marks(before) == before
    fresh = sorted(path.relative_to(output).as_posix() for path in set(output.glob("*/*.parquet")) - set(before))
    last = re.compile(r"(rejected|vectors)/b-[0-9a-f]{16}-000002.parquet")
    assert [match[1] for match in map(last.fullmatch, fresh) if match] == ["rejected", "vectors"]
    assert len(fresh) == 2
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    assert {key: manifest[key] for key in EXPECTED["embedding"]} == EXPECTED["embedding"]
    assert {block["name"] for block in manifest["blocks"]} == {path.name for path in output.glob("vectors/*")}
    assert "vectors are as the manifest says" in call("embed.py", *options, "--verify")
