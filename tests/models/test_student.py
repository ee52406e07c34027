"""A student: a plain sentence-transformers folder, heads that agree with it, the body of the recipe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_student import BASE, small_student
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2Model

from jasper_ray import load_student
from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.encoders import Encoder, image_encoder, load_sentence_transformer
from jasper_ray.models.body import BodySettings, load_body, shape_body
from jasper_ray.models.folder import StudentCard, load_student_folder, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import Student, StudentSettings, build_student, pool
from jasper_ray.models.tokens import length_groups

TEXTS = [
    "How do I reset my card's PIN?",
    "x",
    "The boundary layer of a slender wing at high speed. " * 6,
    "¿Qué tal? 你好",
]

ELSEWHERE = """
import json, sys
class NoJasper:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jasper_ray":
            raise ImportError(name)
sys.meta_path.insert(0, NoJasper())
from sentence_transformers import SentenceTransformer
texts, cases = json.load(sys.stdin)
for folder, prompt in cases:
    model = SentenceTransformer(folder, device="cpu")
    print(json.dumps(model.encode(texts, prompt_name=prompt, normalize_embeddings=True).tolist()))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_student(tmp_path_factory.mktemp("student") / "student")


HEADS: dict[int, str | None] = {32: None, 96: "s2p_query"}
"""Heads that `modules.json` names in turn, each tried with a prompt."""


def naming(folder: Path, copy: Path, dim: int) -> str:
    """Copy the folder, and let its `modules.json` name this head."""
    shutil.copytree(folder, copy)
    modules = (copy / "modules.json").read_text()
    (copy / "modules.json").write_text(modules.replace("2_Dense_32", f"2_Dense_{dim}"))
    return str(copy)


@pytest.fixture(scope="module")
def elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    """Encode the texts with sentence-transformers in a process without this package, by head."""
    copies = tmp_path_factory.mktemp("edited")
    cases = [(naming(folder, copies / str(dim), dim), prompt) for dim, prompt in HEADS.items()]
    command, given = [sys.executable, "-c", ELSEWHERE], json.dumps([TEXTS, cases])
    answer = subprocess.run(command, input=given, text=True, capture_output=True, cwd="/", check=True)
    lines = answer.stdout.splitlines()[-len(cases) :]
    return {dim: np.array(json.loads(line)) for dim, line in zip(HEADS, lines, strict=True)}


@pytest.mark.parametrize(("dim", "prompt"), HEADS.items())
def test_plain_sentence_transformers_gives_the_head_that_modules_json_names(
    folder: Path, elsewhere: dict[int, np.ndarray], dim: int, prompt: str | None
) -> None:
    np.testing.assert_allclose(load_student(folder).encode(TEXTS, prompt, dim=dim), elsewhere[dim], atol=1e-5)


def test_as_a_teacher_it_gives_the_head_that_is_asked_for(folder: Path) -> None:
    found = load_sentence_transformer(str(folder), device="cpu", head=96).encode(TEXTS)
    np.testing.assert_allclose(found, load_student(folder).encode(TEXTS, dim=96), atol=1e-5)
    with pytest.raises(ConfigError, match="has no dense layer 2_Dense_97"):
        load_sentence_transformer(str(folder), device="cpu", head=97)


def test_the_folder_has_one_dense_module_a_head(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"modules.json", "model.safetensors", "config.json", "1_Pooling", "2_Dense_96", "2_Dense_32"} <= names
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


def test_vectors_do_not_depend_on_order_or_company(folder: Path) -> None:
    student = load_student(folder)
    together = student.encode(TEXTS, dim=96)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(student.encode(TEXTS[::-1], dim=96)[::-1], together, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([student.encode([text], dim=96) for text in TEXTS]), together, atol=1e-5)
    assert student.encode([], dim=96).shape == (0, 96)
    assert student.dims == (32, 96)


def test_unknown_heads_and_prompts_name_the_known_ones(folder: Path) -> None:
    student = load_student(folder)
    with pytest.raises(ConfigError, match="no head of size 33; this model has 32, 96"):
        student.encode(TEXTS, dim=33)
    with pytest.raises(ConfigError, match="no prompt 'query'; this model has s2p_query, s2s_query"):
        student.encode(TEXTS, "query")


def test_a_cut_body_keeps_exactly_its_layers_and_loads_again(folder: Path) -> None:
    whole = load_file(Path(locate(BASE)) / "model.safetensors")
    cut = load_file(folder / "model.safetensors")
    for new, old in ((0, 0), (1, 2)):
        name = "encoder.layer.{}.output.dense.weight"
        assert torch.equal(cut[name.format(new)], whole[name.format(old)])
    student, _, _ = load_student_folder(folder)
    assert student.body.config.num_hidden_layers == 2


def test_layers_beyond_the_body_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers is \[0, 6\], but bert has layers 0 to 5"):
        load_body(BodySettings(base=BASE, layers=(0, 6)))


def test_weights_that_are_missing_are_an_error(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 weights .* encoder\.layer\.1\.output\.dense\.weight first"):
        load_student(broken)


def test_a_folder_that_is_no_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a student folder: it has no 2_Dense_<dim>/"):
        load_student(tmp_path)


def tiny_qwen() -> Qwen2Model:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return Qwen2Model(config).eval()


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_attention_is_what_the_recipe_says_and_stays_so_on_disk(tmp_path: Path, attention: str) -> None:
    settings = BodySettings.model_validate({"base": "any", "attention": attention})
    shape_body(tiny_qwen(), settings).save_pretrained(tmp_path)
    for body in (shape_body(tiny_qwen(), settings), Qwen2Model.from_pretrained(tmp_path).eval()):
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 9]])
        first_states = body(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
        assert torch.allclose(first_states[0], first_states[1], atol=1e-6) == (attention == "causal")


def test_an_encoder_cannot_be_made_causal() -> None:
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ConfigError, match="attention is causal, but bert is an encoder"):
        shape_body(BertModel(config), BodySettings(base="any", attention="causal"))


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pooling_equals_a_loop(pooling: str, padding: str) -> None:
    states_BTH = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    lengths = [5, 2, 1]
    mask_BT = torch.tensor(
        [[1] * n + [0] * (5 - n) if padding == "right" else [0] * (5 - n) + [1] * n for n in lengths]
    )
    for row, pooled in enumerate(pool(states_BTH, mask_BT, pooling)):  # type: ignore[arg-type]
        tokens = [states_BTH[row, t] for t in range(5) if mask_BT[row, t]]
        expected = {"mean": sum(tokens) / len(tokens), "cls": tokens[0], "lasttoken": tokens[-1]}[pooling]
        torch.testing.assert_close(pooled, expected)


def test_patterns_choose_parameters_and_never_the_unused_pooler(folder: Path) -> None:
    student, _, _ = load_student_folder(folder)
    assert student.trainable_names(["heads.96.*"]) == ["heads.96.weight", "heads.96.bias"]
    everything = student.trainable_names(["*"])
    assert len(everything) == sum(1 for name, _ in student.named_parameters() if "pooler" not in name)
    with pytest.raises(ConfigError, match=r"the pattern 'head\.\*' matches no parameter"):
        student.trainable_names(["heads.96.*", "head.*"])


def test_groups_of_similar_length_give_the_vectors_of_one_batch(folder: Path) -> None:
    student, tokenizer, _ = load_student_folder(folder)
    student.eval()
    one, order_one = length_groups(tokenizer, TEXTS, 64, group_rows=4)
    many, order_many = length_groups(tokenizer, TEXTS, 64, group_rows=1)
    assert order_one.tolist() == order_many.tolist()
    assert sum(group.ids_BT.numel() for group in many) < sum(group.ids_BT.numel() for group in one)
    for whole, parts in zip(student(one), student(many), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


class OneDirection(Encoder):
    """The smallest possible encoder."""

    @property
    def dims(self) -> tuple[int, ...]:
        return (2,)

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        return np.array([[1, 0]] * len(texts), np.float32)


def test_a_new_encoder_needs_sizes_and_vectors_alone() -> None:
    encoder = OneDirection()
    assert encoder.encode_heads(["a", "b"])[2].tolist() == [[1, 0], [1, 0]]
    assert not encoder.accepts_images
    assert encoder.tokenizing() is None
    with pytest.raises(ConfigError, match="takes no images"):
        image_encoder(encoder)


def test_dropout_reaches_attention_too() -> None:
    student = Student(tiny_qwen(), [8])
    student.set_dropout(0.25)
    shares = {getattr(module, "attention_dropout", 0.25) for module in student.body.modules()}
    assert shares == {0.25}


def test_one_pass_gives_every_head(folder: Path) -> None:
    student = load_student(folder)
    heads = student.encode_heads(TEXTS, "s2s_query")
    assert list(heads) == [32, 96]
    for dim, vectors in heads.items():
        np.testing.assert_allclose(student.encode(TEXTS, "s2s_query", dim=dim), vectors, atol=1e-6)


def test_half_precision_stays_close(folder: Path) -> None:
    exact, half = (
        load_student(folder).encode(TEXTS, dim=96),
        load_student(folder, dtype="bfloat16").encode(TEXTS, dim=96),
    )
    assert half.dtype == np.float32
    assert (exact * half).sum(axis=1).min() > 0.999


def test_a_student_replaces_an_older_one_whole(folder: Path, tmp_path: Path) -> None:
    student, tokenizer, card = load_student_folder(folder)
    place = shutil.copytree(folder, tmp_path / "student")
    smaller = Student(student.body, [16])
    save_student(smaller, tokenizer, card.model_copy(update={"default_head": 16}), place)
    assert sorted(path.name for path in place.glob("2_Dense_*")) == ["2_Dense_16"]
    assert load_student(place).dims == (16,)
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


def test_a_save_that_fails_leaves_the_older_student(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = shutil.copytree(folder, tmp_path / "student")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("jasper_ray.models.loading.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_student(*load_student_folder(folder), place)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["missing", "cut short", "of another size"])
def test_a_head_that_is_damaged_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    head = broken / "2_Dense_32" / "model.safetensors"
    if damage == "missing":
        head.unlink()
    elif damage == "cut short":
        head.write_bytes(head.read_bytes()[:1000])
    else:
        shutil.copy(broken / "2_Dense_96" / "model.safetensors", head)
    with pytest.raises(ConfigError, match=r"no head of size 32 could be loaded from '.*2_Dense_32': .*") as caught:
        load_student(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["modules.json", "sentence_bert_config.json", "1_Pooling/config.json"])
def test_a_file_that_is_missing_is_named(folder: Path, tmp_path: Path, file: str) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / file).unlink()
    with pytest.raises(ConfigError, match=rf"{file}' is missing; give a whole student folder"):
        load_student(broken)


def test_a_body_that_is_cut_short_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="no model could be loaded from") as caught:
        load_student(broken)
    assert "\n" not in str(caught.value)


def test_a_layer_is_kept_once() -> None:
    with pytest.raises(ConfigError, match=r"layers is \[1, 1\], .*each once"):
        load_body(BodySettings(base=BASE, layers=(1, 1)))


def test_weights_must_be_what_the_recipe_declares() -> None:
    architecture = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 12}
    with pytest.raises(ConfigError, match=r"architecture\.num_hidden_layers is 12, but the weights of .* have 6"):
        load_body(BodySettings(base=BASE, architecture=architecture))


def test_random_weights_come_from_the_seed() -> None:
    architecture = {"model_type": "bert", "vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 2}
    architecture |= {"num_attention_heads": 2, "intermediate_size": 32}
    body = BodySettings(base=BASE, architecture=architecture, random_weights=True)
    settings = StudentSettings(body=body, heads=(8,), max_length=8)
    first, again, other = (build_student(settings, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["heads.8.weight"], other["heads.8.weight"])
    assert not torch.equal(
        first["body.encoder.layer.1.output.dense.weight"], other["body.encoder.layer.1.output.dense.weight"]
    )


def test_a_text_without_tokens_has_a_vector_and_a_tokenizer_learns_to_pad(tmp_path: Path) -> None:
    words = Tokenizer(WordLevel({"<end>": 0, "<unknown>": 1, "wing": 2, "stalls": 3}, unk_token="<unknown>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unknown>").save_pretrained(
        tmp_path / "t"
    )
    tokenizer = load_tokenizer(str(tmp_path / "t"))
    card = StudentCard(max_length=8, prompts={}, default_head=8)
    save_student(Student(tiny_qwen(), [8], "lasttoken"), tokenizer, card, tmp_path / "student")
    student = load_student(tmp_path / "student")
    texts = ["", "wing", "wing stalls wing stalls"]
    alone = np.concatenate([student.encode([text]) for text in texts])
    assert np.isfinite(alone).all()
    np.testing.assert_allclose(student.encode(texts), alone, atol=1e-5)
