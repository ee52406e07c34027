"""A run folder: what a stage is named by, who its teachers were, and that nothing is seen half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import recipe_values, stage

from jasper_ray.atomic import write_text
from jasper_ray.config import ConfigError
from jasper_ray.distill.preflight import preflight
from jasper_ray.recipe import Recipe, parse_recipe
from jasper_ray.run_folder import RunFolder, StageFolder, publish, stage_fingerprints

TEACHERS: list[dict[str, Any]] = [
    {"name": "a", "weight": 1.0, "identity": "aaaa", "prompt": "", "dim": 32},
    {"name": "b", "weight": 1.0, "identity": "bbbb", "prompt": "", "dim": 16},
]


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return recipe_values(tmp_path, stage("first"), stage("second"), rows=20)


def recipe(values: dict[str, Any]) -> Recipe:
    return parse_recipe(values, "test")


def prints(
    values: dict[str, Any], teachers: list[dict[str, Any]] = TEACHERS, corpus: str = "c", base: str | None = None
) -> list[str]:
    return stage_fingerprints(recipe(values), teachers, corpus, base)


# ---- Fingerprints ----


def test_there_is_one_for_the_start_and_one_for_each_stage(values: dict[str, Any]) -> None:
    found = prints(values)
    assert len(set(found)) == len(found) == 3
    assert found == prints(values)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 3e-4},
        {"steps": 6},
        {"train": ["heads.*"]},
        {"workers": 2},
        {"zero": 1},
        {"precision": "bf16"},
        {"losses": {48: {"cosine": 1}, 16: {"similarity": 1}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_stage_is_trained_again_and_all_after_it(values: dict[str, Any], change: dict[str, Any]) -> None:
    before = prints(values)
    values["stages"][1] |= change
    after = prints(values)
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False]
    values["stages"][0] |= change
    assert [one == other for one, other in zip(before, prints(values), strict=True)] == [True, False, False]


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_every": 7},
        {"max_restarts": 0},
        {"cpus_per_worker": 2},
        {"gpus_per_worker": 1},
        {"threads": 3},
        {"group_rows": 16},
        {"gradient_checkpointing": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_how_a_stage_runs_is_no_part_of_what_it_makes(values: dict[str, Any], change: dict[str, Any]) -> None:
    before = prints(values)
    values["stages"][0] |= change
    assert prints(values) == before


def test_a_changed_beginning_changes_everything(values: dict[str, Any]) -> None:
    before = prints(values)
    others = [
        prints({**values, "seed": 6}),
        prints({**values, "heads_start": {"type": "ridge"}}),
        prints({**values, "student": {**values["student"], "max_length": 31}}),
        prints(values, [TEACHERS[0], {**TEACHERS[1], "weight": 2.0}]),
        prints(values, TEACHERS[::-1]),
        prints(values, corpus="d"),
        prints(values, base="other weights"),
    ]
    assert all(not set(before) & set(other) for other in others)
    assert prints({**values, "name": "other", "targets": {"type": "live"}}) == before
    assert prints(values, [{**teacher, "dim": None} for teacher in TEACHERS]) == before  # told or not, it is the same


# ---- Opening ----


def test_only_the_stage_on_images_depends_on_what_is_seen(values: dict[str, Any]) -> None:
    architecture = {"model_type": "siglip_vision_model"}
    values["images"] = {"sources": [{"format": "folder", "path": "sklearn:digits/train"}]}
    values["student"]["vision"] = {"architecture": architecture, "preprocessing": {"size": 224}, "image_tokens": 4}
    sight = stage("sight", data="images", train=["vision.*"])
    read = prints(recipe_like(values, "first", "second"))
    values["stages"].append(sight)
    one, other = (
        stage_fingerprints(recipe(values), TEACHERS, "c", None, {"images": {"images": name}}) for name in ("x", "y")
    )
    assert one[:3] == other[:3] == read
    assert one[3] != other[3]


def recipe_like(values: dict[str, Any], *stages: str) -> dict[str, Any]:
    """The same recipe before it was taught to see."""
    student = {key: value for key, value in values["student"].items() if key != "vision"}
    kept = {key: value for key, value in values.items() if key != "images"}
    return {**kept, "student": student, "stages": [stage(name) for name in stages]}


def test_a_recipe_is_checked_before_anything_is_written(values: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    checked = preflight(recipe(values), run)
    assert (checked.sets, list(checked.weights)) == ((), ["none", "none"])
    assert list(run.path.iterdir()) == []
    values["corpus"]["sources"][0]["path"] = str(tmp_path / "missing.txt")
    with pytest.raises(ConfigError, match=r"missing\.txt"):
        preflight(recipe(values), RunFolder(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_run_folder_says_what_runs_in_it(values: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "below" / "run")
    run.create()
    assert list(run.path.iterdir()) == []
    run.keep(recipe(values), TEACHERS)
    run.create()
    run.check_teachers(TEACHERS)
    assert parse_recipe(yaml.safe_load((run.path / "recipe.yaml").read_text()), "run") == recipe(values)
    assert json.loads((run.path / "teachers.json").read_text()) == TEACHERS
    assert {path.name for path in run.path.iterdir()} == {"recipe.yaml", "teachers.json"}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ([TEACHERS[0]], r"come from a, b, but the recipe now names a;"),
        (TEACHERS[::-1], r"come from a, b, but the recipe now names b, a;"),
        (
            [TEACHERS[0], {**TEACHERS[1], "identity": "cccc", "prompt": "passage: "}],
            r"come from b with prompt '', but the recipe now gives 'passage: ';",
        ),
        (
            [{**TEACHERS[0], "weight": 2.0}, TEACHERS[1]],
            r"come from a with weight 1\.0, but the recipe now gives 2\.0;",
        ),
        ([{**TEACHERS[0], "identity": "cccc"}, TEACHERS[1]], r"come from a with identity 'aaaa', .* gives 'cccc';"),
        (
            [{**TEACHERS[0], "dim": None, "truncate": 8}, TEACHERS[1]],
            r"come from a with truncate None, but the recipe now gives 8;",
        ),
    ],
)
def test_a_run_does_not_continue_with_other_teachers(
    values: dict[str, Any], tmp_path: Path, now: list[dict[str, Any]], message: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.keep(recipe(values), TEACHERS)
    written = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(ConfigError, match=rf"teachers\.json' says this run's targets {message}"):
        run.check_teachers(now)
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == written


def test_a_size_that_the_recipe_tells_only_now_is_no_other_teacher(values: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    unsized = [{**teacher, "dim": None} for teacher in TEACHERS]
    run.create()
    run.keep(recipe(values), unsized)
    run.check_teachers(TEACHERS)


def test_one_process_at_a_time_works_in_a_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    refused = pytest.raises(ConfigError, match="another process is working in the run folder")
    with run.locked(), refused, run.locked():
        pass
    with run.locked():
        pass


def test_a_folder_that_cannot_be_written_is_told(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run folder '.*/file/run' cannot be written \(Not a directory\); .* --run"):
        RunFolder(tmp_path / "file" / "run").create()


def test_targets_lie_in_the_run_unless_the_recipe_shares_them(values: dict[str, Any], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    assert run.targets(recipe(values)) == run.path / "targets"
    assert run.targets(recipe({**values, "targets": {"type": "live"}})) is None
    shared = {"type": "cached", "path": str(tmp_path / "shared")}
    assert run.targets(recipe({**values, "targets": shared})) == tmp_path / "shared"


# ---- Stages ----


def test_a_stage_is_done_when_it_says_so(values: dict[str, Any], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).stage(1, "first", "0123456789ab")
    assert folder == StageFolder(tmp_path / "stages" / "1-first-0123456789ab")
    folder.create(recipe(values).stages[0], steps=5)
    told = json.loads((folder.path / "stage.json").read_text())
    assert (told["name"], told["steps"], told["learning_rate"]) == ("first", 5, 1e-4)
    assert folder.checkpoints.is_dir()
    assert not folder.is_done
    folder.mark_done()
    assert folder.is_done


# ---- Whole or not at all ----


def test_publishing_replaces_the_old_student_whole(tmp_path: Path) -> None:
    for name, files in (("old", ["config.json", "2_Dense_8/config.json"]), ("new", ["config.json"])):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(name)
    publish(tmp_path / "old", tmp_path / "student")
    publish(tmp_path / "new", tmp_path / "student")
    assert [path.name for path in (tmp_path / "student").iterdir()] == ["config.json"]
    assert (tmp_path / "student" / "config.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old", "student"]


def test_publishing_that_fails_leaves_the_old_student(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text("old")
    with pytest.raises(OSError, match="nowhere"):
        publish(tmp_path / "nowhere", tmp_path / "student")
    assert (tmp_path / "student" / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.json", "new \udcff")
    assert (tmp_path / "a.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
