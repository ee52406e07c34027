"""What a recipe leaves open, decided for the machines at hand: GPUs and precisions."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import recipe_values, stage

from jasper_ray.distill.preflight import in_precisions
from jasper_ray.recipe import Recipe, load_recipe, parse_recipe, shipped_recipes
from jasper_ray.recipe.dry_run import least_resources
from jasper_ray.recipe.machine import (
    Measured,
    Part,
    decide,
    gpus_in_words,
    in_words,
    parts,
    shares,
    with_gpus,
    with_precisions,
)
from jasper_ray.run_folder import RunFolder, stage_fingerprints
from jasper_ray.teachers import described

SLOW, FAST = Measured("float32", 1 / 88), Measured("bfloat16", 2.0)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A recipe of one real teacher and two stages that leaves all open."""
    values = recipe_values(
        tmp_path, *(stage(name, precision="auto", gpus_per_worker="auto") for name in ("one", "two"))
    )
    return {**values, "teachers": [{"model": "pypi:all-MiniLM-L6-v2", "dim": 48}]}


def gpus_of(recipe: Recipe) -> tuple[list[float], list[float]]:
    return [stage.gpus for stage in recipe.stages], [teacher.pool.gpus_per_copy for teacher in recipe.teachers]


def test_a_recipe_that_says_nothing_of_gpus_takes_this_machines(values: dict[str, Any]) -> None:
    recipe = parse_recipe(values, "test")
    assert gpus_of(with_gpus(recipe, 0)) == ([0, 0], [0])
    assert gpus_of(with_gpus(recipe, 1)) == ([0.5, 0.5], [0.5])
    assert gpus_of(with_gpus(recipe, 2)) == ([1, 1], [1])


def test_a_recipe_that_reserves_gpus_says_all_there_is_to_say(values: dict[str, Any]) -> None:
    values["teachers"][0]["pool"] = {"gpus": 1}
    assert gpus_of(with_gpus(parse_recipe(values, "test"), 8)) == ([0, 0], [1])
    values["teachers"][0]["pool"] = {"gpus": 0}
    assert gpus_of(with_gpus(parse_recipe(values, "test"), 8)) == ([1, 1], [0])


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("copies", [1, 3, 5])
def test_shares_find_room_on_whole_gpus(gpus: int, workers: int, copies: int) -> None:
    worker, copy = shares(gpus, workers, copies)
    assert worker in (0, 1) or workers == 1
    slots = gpus - (workers if worker == 1 else 0)
    if worker == copy and worker < 1 and worker:  # one worker on the same GPUs as the copies
        copies, slots = copies + 1, gpus
    assert not copy or copies <= slots * int(1 / copy)


def test_more_workers_than_gpus_leave_them_to_the_teachers() -> None:
    assert shares(4, 8, 3) == (0, 1)
    assert shares(8, 8, 1) == (1, 0)


def test_who_takes_how_much_of_the_gpus_is_said(values: dict[str, Any]) -> None:
    told = "1 GPUs here; each worker or copy reserves 0.5 for stage one, stage two, teacher all-MiniLM-L6-v2"
    assert gpus_in_words(with_gpus(parse_recipe(values, "test"), 1), 1) == told


@pytest.mark.parametrize("name", shipped_recipes())
def test_on_one_gpu_no_shipped_recipe_asks_for_more_than_it_did(name: str) -> None:
    recipe = load_recipe(name)
    _, gpus = least_resources(with_gpus(recipe, 1))
    assert gpus <= max(1, least_resources(recipe)[1])
    assert gpus > 0


def test_everything_that_computes_has_a_precision_that_can_be_decided(values: dict[str, Any]) -> None:
    recipe = load_recipe("quickstart")
    found = parts(recipe)
    assert {part.precision for part in found} == {"auto"}
    assert {part.name for part in found if part.learns} == {f"stage {s.name}" for s in recipe.stages}
    assert {"captions", "measuring", "teacher all-MiniLM-L6-v2"} <= {part.name for part in found}
    done = with_precisions(recipe, dict.fromkeys((part.name for part in found), "bfloat16"))
    assert {part.precision for part in parts(done)} == {"bfloat16"}
    assert {stage.precision for stage in done.stages} == {"bf16"}


def test_a_part_on_a_gpu_is_measured_there(values: dict[str, Any]) -> None:
    asked = set()

    def measure(on_gpu: bool, learns: bool) -> Measured:
        asked.add((on_gpu, learns))
        return FAST if on_gpu else SLOW

    values["stages"][0]["gpus_per_worker"] = 1
    values["evaluation"] = {}
    chosen = {part.name: decide(part, {}, measure).precision for part in parts(parse_recipe(values, "test"))}
    assert asked == {(False, False), (True, True), (False, True), (True, False)}
    assert chosen["stage one"] == "bfloat16"
    assert chosen["stage two"] == chosen["teacher all-MiniLM-L6-v2"] == "float32"


def part(precision: Any) -> Part:
    return Part("stage one", precision, False, True)


def test_auto_takes_what_the_device_is_fast_in_and_says_so() -> None:
    slow = decide(part("auto"), {}, lambda *_: SLOW)
    assert (slow.precision, slow.slow) == ("float32", False)
    assert slow.reason == "float32; bfloat16 takes 88 times as long as float32 here"
    assert decide(part("auto"), {}, lambda *_: FAST).reason == "bfloat16; bfloat16 is 2 times as fast as float32 here"


def test_a_run_goes_on_in_the_precision_that_it_began_with() -> None:
    kept = decide(part("auto"), {"stage one": "bfloat16"}, lambda *_: SLOW)
    assert kept.precision == "bfloat16"
    assert kept.slow
    factor = "bfloat16 takes 88 times as long as float32 here"
    assert kept.reason == f"bfloat16, in which this run began; a new run would choose float32, for {factor}"
    same = decide(part("auto"), {"stage one": "bfloat16"}, lambda *_: FAST)
    assert same == decide(part("auto"), {}, lambda *_: FAST)


def test_a_run_that_goes_on_where_auto_would_choose_otherwise_has_the_same_teachers_and_stages(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, run = parse_recipe(values, "test"), RunFolder(tmp_path / "run")
    begun = in_precisions(recipe, run.precisions(), lambda *_: FAST)
    run.create()
    run.keep(begun, identities(begun))
    caplog.set_level(logging.INFO)
    continued = in_precisions(recipe, run.precisions(), lambda *_: SLOW)
    assert "stage one, stage two" in caplog.text
    assert "bfloat16, in which this run began; a new run would choose float32" in caplog.text
    run.check_teachers(identities(continued))
    prints = [stage_fingerprints(one, identities(one), "corpus") for one in (begun, continued)]
    assert prints[0] == prints[1]
    elsewhere = in_precisions(recipe, {}, lambda *_: SLOW)
    assert not set(stage_fingerprints(elsewhere, identities(elsewhere), "corpus")) & set(prints[0])


def identities(recipe: Recipe) -> list[dict[str, Any]]:
    return [described(teacher, teacher.weights()) for teacher in recipe.teachers]


def test_a_run_of_an_earlier_version_goes_on_in_what_its_recipe_said(values: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    values["teachers"][0]["dtype"] = "bfloat16"
    values["stages"][0]["precision"] = "bf16"
    written = parse_recipe(values, "test").model_dump(mode="json")
    del written["evaluation"]["precision"]
    run.create()
    run.recipe_file.write_text(yaml.safe_dump(written))
    assert run.precisions() == {"teacher all-MiniLM-L6-v2": "bfloat16", "stage one": "bfloat16"}


def test_a_recipe_that_insists_on_a_slow_precision_is_obeyed_and_warned() -> None:
    insists = decide(part("bfloat16"), {"stage one": "float32"}, lambda *_: SLOW)
    assert (insists.precision, insists.slow) == ("bfloat16", True)
    told = "the recipe sets bfloat16, which takes 88 times as long as float32 here; auto would choose float32"
    assert insists.reason == told
    assert not decide(part("bfloat16"), {}, lambda *_: FAST).slow
    assert decide(part("float32"), {}, lambda *_: FAST).reason == ""


def test_parts_with_one_reason_share_a_line() -> None:
    decisions = [decide(Part(name, "auto", False, False), {}, lambda *_: SLOW) for name in ("a", "b")]
    assert in_words(decisions) == ["a, b: float32; bfloat16 takes 88 times as long as float32 here"]
