"""Recipes: those that ship load and say all they mean; what is wrong is told in one sentence, with its place."""

from __future__ import annotations

import copy
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_run import LOSSES, recipe_values, stage

from jasper_ray.config import ConfigError
from jasper_ray.distill.plan import StageData
from jasper_ray.models.student import meta_student
from jasper_ray.recipe import dump_recipe, load_recipe, parse_recipe, read_yaml, shipped_recipes
from jasper_ray.recipe.checks import check_patterns
from jasper_ray.recipe.dry_run import SPARE_CPUS, least_resources, trained_parameters
from jasper_ray.recipe.stage import DATA_KINDS


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return recipe_values(tmp_path, stage("first"), stage("second"), rows=20)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_loads_and_survives_its_own_resolved_form(name: str) -> None:
    recipe = load_recipe(name)
    check_patterns(recipe)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe)), name) == recipe


def test_jasper_trains_what_the_paper_says() -> None:
    recipe = load_recipe("jasper-2b")
    reading, seeing = meta_student(recipe.student), meta_student(recipe.student, vision=True)
    first, second, third = (trained_parameters(reading, stage) for stage in recipe.stages[:3])
    fourth = trained_parameters(seeing, recipe.stages[3])
    assert first == 1536 * 12288 + 12288
    assert second == pytest.approx(159.3e6, rel=1e-3)
    assert third == pytest.approx(1.57e9, rel=5e-3)
    assert fourth == pytest.approx(413e6, rel=1e-2)  # SigLIP without the pooling head, which no token passes through


def test_resources_of_pools_and_the_largest_stage_add_up(values: dict[str, Any]) -> None:
    values["stages"][1] |= {"workers": 2, "cpus_per_worker": 3, "gpus_per_worker": 1}
    assert least_resources(parse_recipe(values, "test")) == (0.25 + 0.25 + 6 + SPARE_CPUS, 2)


def test_numbers_without_a_dot_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1e-4\nb: 3E5\nc: 12\nd: '1e-4'\ne: 1.5")
    assert read_yaml(path) == {"a": 1e-4, "b": 3e5, "c": 12, "d": "1e-4", "e": 1.5}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "unknown key",
        {"stages.0.lerning_rate": 1},
        r"stages\.0\.lerning_rate: unknown key; did you mean learning_rate\?",
    ),
    (
        "unknown loss",
        {"stages.0.losses": {48: {"cosinus": 1}}},
        r"stages\.0\.losses\.48\.cosinus: unknown key; did you mean cosine",
    ),
    ("no loss weight", {"stages.0.losses": {48: {"margin": 0.1}}}, r"stages\.0\.losses\.48: .*weight"),
    ("missing key", {"student.max_length": None}, r"student\.max_length: .*found None"),
    ("wrong type", {"stages.0.batch_size": "many"}, r"stages\.0\.batch_size: .*integer.*found 'many'"),
    ("out of range", {"stages.0.learning_rate": -1}, r"stages\.0\.learning_rate: .*greater than 0; found -1"),
    ("unknown key far from any", {"student.zzz": 1}, r"student\.zzz: unknown key; known here are body, default_head, "),
    ("key of another place", {"passes": 1}, r"passes: unknown key; known here are corpus, evaluation, "),
    ("misspelt required key", {"teachers.0": {"type": "hash", "dims": 8}}, r"teachers\.0\.dims: .* mean dim\?"),
    ("no mapping", {"student.body": "bert"}, r"student\.body: expected a mapping; found 'bert'"),
    ("nothing in a list", {"teachers": []}, r"teachers: expected at least one entry; found \[\]"),
    ("unknown teacher", {"teachers.0": {"type": "hsh"}}, r"teachers\.0: type 'hsh' is unknown; expected one of 'sent"),
    ("no type", {"heads_start": {"rows": 100}}, r"heads_start: the key type is required and missing"),
    ("a variant's key", {"heads_start": {"type": "ridge", "rows": 1}}, r"heads_start\.rows: .*equal to 8; found 1"),
    ("a key named like a variant", {"evaluation": {"ridge": "maybe"}}, r"evaluation\.ridge: .*boolean.*found 'maybe'"),
    ("truncation", {"teachers.0.truncate": 50}, r"teachers\.0: truncate is 50, but the vectors have only dim 32"),
    ("name of a teacher", {"teachers.0.name": "a/b"}, r"teachers\.0\.name: .*; found 'a/b'"),
    ("decay", {"stages.0.betas": [0.9, 2]}, r"stages\.0\.betas\.1: input should be less than 1; found 2"),
    ("not finite", {"stages.0.learning_rate": float("nan")}, r"stages\.0\.learning_rate: .*finite number; found nan"),
    ("unknown prompt of a teacher", {"teachers.0.prompts": {"q": "x"}}, r"teachers\.0\.prompts: 'q' is not among"),
    ("neither steps nor passes", {"stages.0.steps": None}, r"stage 'first': give either steps or passes"),
    ("repeated teacher", {"teachers.1.name": "a"}, r"teachers: the name 'a' appears more than once"),
    ("repeated head", {"student.heads": [48, 48]}, r"student\.heads is \[48, 48\]; sizes must .* each appear once"),
    ("unknown choice", {"stages.0.precision": "fp8"}, r"stages\.0\.precision: .*'fp32' or 'bf16'; found 'fp8'"),
    ("unknown data", {"stages.0.data": "audio"}, r"stages\.0\.data: expected texts or images; found 'audio'"),
    ("unknown targets", {"targets": {"type": "stored"}}, r"targets: .*'live', 'cached'"),
    ("batch does not divide", {"stages.0.micro_batch_size": 5}, r"stage 'first': batch_size 16 is no multiple"),
    ("too small for relations", {"stages.0.micro_batch_size": 2}, r"stage 'first': .*at least 3 rows"),
    (
        "too small for similarity",
        {"stages.0.micro_batch_size": 1, "stages.0.losses": {48: {"similarity": 1}}},
        r"stage 'first': similarity .*at least 2 rows",
    ),
    ("steps and passes", {"stages.0.passes": 1}, r"stage 'first': give either steps or passes"),
    ("untrained head", {"student.heads": [48, 16, 8]}, r"student\.heads: no stage's losses train head 8"),
    ("unknown head", {"stages.1.losses": {47: LOSSES}}, r"stage 'second': losses names head 47"),
    ("cosine on a small head", {"stages.1.losses": {16: {"cosine": 1}}}, r"stage 'second': .*only the full head 48"),
    ("heads out of order", {"student.heads": [16, 48]}, r"student\.heads is \[16, 48\].*from large to small"),
    ("default head", {"student.default_head": 47}, r"student\.default_head is 47"),
    ("target size", {"teachers.0.dim": 31}, r"student\.heads: .*31 \+ 16 = 47"),
    ("repeated stage", {"stages.1.name": "first"}, r"stages: the name 'first' appears more than once"),
    ("unknown prompt", {"corpus.sources.0.prompt": "query"}, r"corpus\.sources\.0\.prompt: 'query' is not among"),
    (
        "pool sizes",
        {"teachers.0.pool": {"min_size": 3, "max_size": 2}},
        r"teachers\.0\.pool: .*min_size 3 is above max_size 2",
    ),
    (
        "random without shape",
        {"student.body.random_weights": True},
        r"student\.body.*random_weights needs architecture",
    ),
]


@pytest.mark.parametrize(("changes", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_a_wrong_recipe_is_one_sentence_with_a_place(
    values: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_recipe(changed(values, changes), "recipe.yaml")
    assert str(caught.value).startswith("recipe.yaml: ")
    assert "\n" not in str(caught.value)
    assert "more)" not in str(caught.value)


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with the values at dotted paths replaced."""
    result = copy.deepcopy(values)
    for path, value in changes.items():
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place: Any = result
        for part in way:
            place = place[part]
        place[last] = value
    return result


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["heads.47.*"], r"stages\.1\.train: the pattern 'heads\.47\.\*' matches no parameter"),
        (["heads.16.*"], r"stages\.1\.train: head 16 is trained, but stage 'second' has no loss for it"),
    ],
)
def test_patterns_are_checked_before_anything_starts(values: dict[str, Any], patterns: list[str], message: str) -> None:
    values["stages"][1] |= {"train": patterns, "losses": {48: LOSSES}}
    with pytest.raises(ConfigError, match=message):
        check_patterns(parse_recipe(values, "test"))


def test_a_head_that_only_frozen_stages_reach_is_refused(values: dict[str, Any]) -> None:
    for one in values["stages"]:
        one["train"] = ["heads.48.*", "body.*"]
    with pytest.raises(ConfigError, match=r"no stage both trains head 16 and gives it losses"):
        check_patterns(parse_recipe(values, "test"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", r"bad YAML at line 1"),
        ("- a\n- b", r"found a list, but a recipe is a mapping"),
        ("name: a\nname: b", r"line 2: the key 'name' is given twice"),
        ("name: \xff", r"not UTF-8"),
        ("", r"found nothing, but a recipe is a mapping"),
        ("a: 1\nb:\n  c: 1\n  d: {e: 1}\n  c: 2", r"line 5: the key 'c' is given twice; remove one"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


def test_a_mapping_may_be_mixed_into_others(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: &a {k: 1, l: 2}\nb: &b {<<: *a, k: 3}\nc: {<<: *b, l: 4}\nd: *a")
    a = {"k": 1, "l": 2}
    assert read_yaml(path) == {"a": a, "b": {"k": 3, "l": 2}, "c": {"k": 3, "l": 4}, "d": a}


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe file '.*r\.yaml'; check the path"):
        load_recipe(str(tmp_path / "r.yaml"))


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no shipped recipe 'jasper'; there are jasper-2b, minilm-mpnet, quickstart"):
        load_recipe("jasper")


def test_every_data_kind_names_the_class_that_does_its_work_and_a_key_of_the_recipe() -> None:
    recipe = load_recipe("quickstart")
    for name, kind in DATA_KINDS.items():
        assert issubclass(pkgutil.resolve_name(kind.work), StageData)
        assert recipe.rows_of(name).sources
        assert kind.pools(recipe)
