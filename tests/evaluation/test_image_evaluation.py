from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from jasper_ray.commands.evaluate import report_skipped
from jasper_ray.config import ConfigError
from jasper_ray.encoders import HashEncoder, ImageEncoder
from jasper_ray.evaluation import (
    ScoreRow,
    SetData,
    as_scores,
    evaluate,
    load_sets,
    read_sets,
    recalls,
    render,
    skipped_sets,
    with_moment,
)
from jasper_ray.evaluation import image_captions as recall_module
from jasper_ray.evaluation.base import ImageSet
from jasper_ray.evaluation.sets import contents
from jasper_ray.evaluation.zero_shot import zero_shot_accuracy
from jasper_ray.vectors import normalise

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FOLDER = {"format": "folder", "path": "digits"}
CAPTIONS = {"type": "image_captions", "name": "captions", "images": FOLDER}
ZERO_SHOT = {
    "type": "zero_shot",
    "name": "classes",
    "images": {**FOLDER, "caption": "label"},
    "templates": ["a handwritten {}", "the digit {}, by hand"],
    "classes": dict(enumerate(WORDS)),
}


class SeeingEncoder(ImageEncoder):
    """Two heads. An image becomes its pixels; a text the mean image of the digit it names, and its hash a little."""

    dims = (64, 48)

    def __init__(self, prompts: Mapping[str, str] | None = None) -> None:
        self.prompts = prompts or {}
        self.calls: list[tuple[str, list[Any]]] = []
        digits = load_digits()
        self.means = {word: digits.data[digits.target == digit].mean(0) for digit, word in enumerate(WORDS)}

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        return self.encode_heads(texts, prompt_name)[dim or 64]

    def encode_heads(self, texts: Sequence[str], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        self.calls.append(("texts", list(texts)))
        return self.heads([self.read(text) for text in texts])

    def encode_images(self, images: Sequence[Any]) -> dict[int, np.ndarray]:
        self.calls.append(("images", list(images)))
        return self.heads([pixels(image) for image in images])

    def heads(self, rows_ND: list[np.ndarray]) -> dict[int, np.ndarray]:
        return {dim: normalise(np.array(rows_ND)[:, :dim]) for dim in self.dims}

    def read(self, text: str) -> np.ndarray:
        named = [self.means[word] for word in text.replace(",", "").split() if word in self.means]
        return np.sum(named, axis=0) + HashEncoder(64).encode([text])[0]


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)), np.float32).reshape(-1)


def png(pixels_HW: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HW.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_digits(folder: Path, count: int = 60) -> None:
    """Handwritten digits as PNG files, their class, and captions that repeat."""
    (folder / "digits").mkdir()
    digits, lines = load_digits(), []
    for row in range(count):
        (folder / "digits" / f"{row}.png").write_bytes(png(digits.images[row]))
        digit = int(digits.target[row])
        caption = f"a {WORDS[digit]}" if row % 2 else f"the digit {WORDS[digit]}"
        lines.append(json.dumps({"file_name": f"{row}.png", "caption": caption, "label": str(digit)}) + "\n")
    (folder / "digits" / "metadata.jsonl").write_text("".join(lines))


def write_sets(folder: Path, *sets: Mapping[str, Any]) -> Path:
    path = folder / "sets.yaml"
    path.write_text(yaml.safe_dump(list(sets)))
    return path


def read(folder: Path, *sets: Mapping[str, Any]) -> tuple[SetData, ...]:
    return read_sets(load_sets(write_sets(folder, *sets)))


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    write_digits(tmp_path)
    return tmp_path


# Recall


def recall_by_looking(
    images_ND: np.ndarray, captions_ND: np.ndarray, captions: Sequence[str], images: Sequence[Any], depth: int
) -> tuple[float, float]:
    """Both recalls at a depth, from the definition: a match is found if fewer others than `depth` are as near."""
    pairs = set(zip(images, captions, strict=True))
    image_row = {image: images.index(image) for image in images}
    caption_row = {caption: captions.index(caption) for caption in captions}
    cosine = {(i, c): float(images_ND[image_row[i]] @ captions_ND[caption_row[c]]) for i in images for c in captions}
    by_image, by_caption = [], []
    for i in image_row:
        best = max(cosine[i, c] for c in caption_row if (i, c) in pairs)
        by_image.append(sum(cosine[i, c] >= best - 1e-6 for c in caption_row if (i, c) not in pairs) < depth)
    for c in caption_row:
        best = max(cosine[i, c] for i in image_row if (i, c) in pairs)
        by_caption.append(sum(cosine[i, c] >= best - 1e-6 for i in image_row if (i, c) not in pairs) < depth)
    return 100 * sum(by_image) / len(by_image), 100 * sum(by_caption) / len(by_caption)


def noisy_pairs(rows: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    images_ND = draw.normal(size=(rows, 16))
    return normalise(images_ND), normalise(images_ND + 1.5 * draw.normal(size=(rows, 16)))


@pytest.mark.parametrize("cells", [32_000_000, 90, 1], ids=["at once", "in parts", "query by query"])
@pytest.mark.parametrize("different", [80, 30, 4], ids=["own captions", "some repeat", "four captions"])
def test_recall_counts_what_its_definition_counts(monkeypatch: pytest.MonkeyPatch, different: int, cells: int) -> None:
    monkeypatch.setattr(recall_module, "CELLS", cells)
    images_ND, captions_ND = noisy_pairs(80)
    captions = [f"caption {row % different}" for row in range(80)]
    captions_ND = captions_ND[np.arange(80) % different]
    found = recalls(images_ND, captions_ND, captions)
    for depth, by_image, by_caption in ((1, "i2t@1", "t2i@1"), (5, "i2t@5", "t2i@5"), (10, "i2t@10", "t2i@10")):
        wanted = recall_by_looking(images_ND, captions_ND, captions, list(range(80)), depth)
        assert {by_image: wanted[0], by_caption: wanted[1]} == pytest.approx(
            {metric: value for metric, value in found.items() if metric in (by_image, by_caption)}
        )


def test_an_image_with_several_captions_is_one_image() -> None:
    images_ND, captions_ND = noisy_pairs(60)
    images = [f"image {row // 5}" for row in range(60)]
    images_ND = images_ND[np.arange(60) // 5]
    captions = [f"caption {row}" for row in range(60)]
    found = recalls(images_ND, captions_ND, captions, images)
    assert (found["i2t@1"], found["t2i@1"]) == pytest.approx(
        recall_by_looking(images_ND, captions_ND, captions, images, 1)
    )
    exact = recalls(images_ND, images_ND, captions, images)
    assert set(exact.values()) == {100.0}


def test_an_image_finds_its_caption_under_whichever_image_it_stands() -> None:
    """Two images share a caption whose vector is the first one's: the second finds it first among two, and is found."""
    images_ND = np.eye(3, dtype=np.float32)
    captions_ND = np.array([[0.8, 0.6, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
    assert set(recalls(images_ND, captions_ND, ["a", "a", "b"]).values()) == {100.0}


def test_vectors_collapsed_to_a_point_find_nothing() -> None:
    point_ND = np.tile(normalise(np.random.default_rng(0).normal(size=(1, 100))), (37, 1))
    found = recalls(point_ND, point_ND, [str(row) for row in range(37)])
    assert set(found.values()) == {0.0}


def test_recall_of_rows_that_do_not_match_or_are_not_finite_is_refused() -> None:
    images_ND, captions_ND = noisy_pairs(4)
    with pytest.raises(ValueError, match="4 rows of images, 4 of captions, 2 captions and 2 images"):
        recalls(images_ND, captions_ND, ["a", "b"])
    with pytest.raises(ValueError, match="at least 1"):
        recalls(images_ND[:0], captions_ND[:0], [])
    with pytest.raises(FloatingPointError, match="not finite"):
        recalls(images_ND * np.nan, captions_ND, list("abcd"))


def test_recalls_are_a_column_each() -> None:
    images_ND, captions_ND = noisy_pairs(50)
    found = recalls(images_ND, captions_ND, [str(row) for row in range(50)])
    head, metrics, _, figures = render(with_moment("start", as_scores("held-out", 16, found))).splitlines()
    assert head.split() == ["held-out"] * 6
    assert metrics.split() == ["moment", "dim", "i2t@1", "i2t@5", "i2t@10", "t2i@1", "t2i@5", "t2i@10"]
    assert figures.split()[2:] == [f"{value:.1f}" for value in found.values()]


# Zero-shot classes


def test_a_class_is_the_mean_of_its_texts_and_the_earlier_of_equals_wins() -> None:
    texts_CTD = np.array([[[1, 0], [0, 1]], [[1, 0], [1, 0]]], np.float32)
    images_ND = normalise(np.array([[1, 1], [1, 0.1], [1, 0.1]]))
    assert zero_shot_accuracy(images_ND, texts_CTD, [0, 1, 0]) == pytest.approx(2 / 3)
    assert zero_shot_accuracy(images_ND, texts_CTD[[0, 0]], [0, 0, 1]) == pytest.approx(2 / 3)


def test_digits_are_told_by_the_nearest_class(digits: Path) -> None:
    (data,) = read(digits, ZERO_SHOT)
    encoder = SeeingEncoder()
    full, cut = evaluate(encoder, [data])
    means_KD = normalise(np.array(list(encoder.means.values())))
    images_ND = normalise(load_digits().data[:60])
    nearest = np.mean(np.argmax(images_ND @ means_KD.T, axis=1) == load_digits().target[:60])
    assert full.metric == cut.metric == "accuracy"
    assert full.value == pytest.approx(100 * nearest, abs=4)  # the hashes of the words move an image or two
    assert full.value > cut.value > 60


# Reading


def test_pairs_of_a_folder_are_read_from_beside_the_list(digits: Path) -> None:
    (data,) = read(digits, {**CAPTIONS, "prompt": "s2p_query"})
    images, captions = data.requests
    assert images.images[3] == (digits / "digits" / "3.png").read_bytes()
    assert (captions.texts[3], captions.prompt, len(images.images)) == ("a three", "s2p_query", 60)


def test_every_class_stands_in_every_template(digits: Path) -> None:
    (data,) = read(digits, ZERO_SHOT)
    assert data.requests[1].texts[:3] == ("a handwritten zero", "the digit zero, by hand", "a handwritten one")
    assert (len(data.requests[1].texts), data.judgements["classes"]) == (20, WORDS)
    assert data.judgements["labels"] == load_digits().target[:60].tolist()


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        (None, [str(digit) for digit in range(10)]),
        (list(reversed(range(12))), [str(digit) for digit in reversed(range(12))]),
        ({digit: ("even", "odd")[digit % 2] for digit in range(10)}, ["even", "odd"]),
    ],
    ids=["of the images", "listed", "of the same words"],
)
def test_classes_are_those_of_the_images_unless_given(digits: Path, classes: Any, wanted: list[str]) -> None:
    (data,) = read(digits, {**ZERO_SHOT, "classes": classes})
    assert list(data.judgements["classes"]) == wanted
    named = [data.judgements["classes"][position] for position in data.judgements["labels"]]
    targets = load_digits().target[:60]
    assert named == [("even", "odd")[t % 2] if "even" in wanted else str(t) for t in targets]


def test_assets_and_addresses_do_not_count_from_the_folder_of_the_list(tmp_path: Path) -> None:
    paths = ["sklearn:digits/test", "s3://bucket/digits", "/somewhere/digits", "down/digits"]
    listed = [
        {**CAPTIONS, "name": str(number), "images": {"format": "folder", "path": path}}
        for number, path in enumerate(paths)
    ]
    found = load_sets(write_sets(tmp_path, *listed))
    assert [one.images.path for one in found if isinstance(one, ImageSet)] == [
        *paths[:3],
        str(tmp_path / "down" / "digits"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"templates": ["a digit"]},
            r"sets\.0\.templates: the template 'a digit' has no \{\}; write it in place of the class",
        ),
        ({"templates": []}, r"sets\.0\.templates: expected at least one entry"),
        ({"classes": ["0", "1"]}, r"holds the class '2', which is not among the 2 of `classes`; add it there"),
        ({"classes": dict.fromkeys(range(10), "digit")}, "has the class 'digit' alone; expected at least two"),
        ({"classes": [{"no": "word"}]}, r"sets\.0\.classes: input should be a valid string; found \{'no': 'word'\}"),
        ({"images": {**FOLDER, "prompt": "s2s_query"}}, "`images` has the prompt 's2s_query'; write it as `prompt`"),
        ({"images": {"format": "folders", "path": "digits"}}, r"sets\.0\.images: .* 'folders'"),
        ({"images": {"format": "folder"}}, r"sets\.0\.images\.path: this key is required and missing"),
        ({"type": "image_captions"}, r"sets\.0\.(templates|classes): unknown key"),
    ],
)
def test_a_mistake_in_a_set_of_images_is_told_in_one_sentence(
    digits: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(digits, {**ZERO_SHOT, **change})
    assert "\n" not in str(caught.value)


def test_captions_that_leave_no_choice_are_refused(digits: Path) -> None:
    listing = digits / "digits" / "metadata.jsonl"
    one, eleventh = listing.read_text().splitlines()[0], listing.read_text().splitlines()[10]
    listing.write_text(f"{one}\n{eleventh}\n")  # two zeros, both written under as one
    with pytest.raises(ConfigError, match="has 1 different caption; a ranking needs at least two"):
        read(digits, CAPTIONS)
    listing.write_text(one + "\n" + one.replace("the digit", "a") + "\n")
    with pytest.raises(ConfigError, match="has 1 different image; a ranking needs at least two"):
        read(digits, CAPTIONS)


def test_a_missing_image_is_told_before_anything_is_measured(digits: Path) -> None:
    (digits / "digits" / "7.png").unlink()
    with pytest.raises(ConfigError, match=r"7\.png"):
        read(digits, CAPTIONS)


# Scoring


def test_every_head_is_scored_from_one_pass_over_different_images_and_captions(digits: Path) -> None:
    (data,) = read(digits, CAPTIONS)
    encoder = SeeingEncoder()
    scores = evaluate(encoder, [data])
    depths = (1, 5, 10)
    metrics = [*(f"i2t@{depth}" for depth in depths), *(f"t2i@{depth}" for depth in depths)]
    assert [(score.dim, score.metric) for score in scores] == [(dim, metric) for dim in (64, 48) for metric in metrics]
    assert [(kind, len(items)) for kind, items in encoder.calls] == [("images", 60), ("texts", 17)]
    assert all(0 <= score.value <= 100 for score in scores)
    assert scores[1].value > 90  # of the captions, two for most digits, the right one is among five
    assert evaluate(encoder, [data], [48]) == scores[6:]


def test_an_encoder_that_does_not_see_is_left_out_of_sets_of_images(digits: Path) -> None:
    (digits / "pairs.csv").write_text("a man,a man,5\na man,a dog,1\n")
    columns = {"left": 0, "right": 1, "score": 2}
    pairs = {"type": "pairs", "name": "pairs", "path": "pairs.csv", "format": "csv", "header": False}
    sets = read(digits, {**CAPTIONS, "prompt": "unknown"}, {**pairs, "columns": columns}, ZERO_SHOT)
    blind = HashEncoder(64, {"query": "find: "})
    assert [score.set for score in evaluate(blind, sets)] == ["pairs"]
    assert skipped_sets(blind, sets) == ["captions", "classes"]
    assert skipped_sets(SeeingEncoder(), sets) == []
    assert [data.needs_vision for data in sets] == [True, False, True]
    with pytest.raises(ConfigError, match="'captions' asks for the prompt 'unknown', but the model has query"):
        evaluate(SeeingEncoder({"query": "find: "}), sets)


def test_figures_that_only_other_moments_have_stand_in_a_table_of_their_own(digits: Path) -> None:
    (data,) = read(digits, ZERO_SHOT)
    spearman = ScoreRow(moment="teacher", dim=64, metric="spearman", set="pairs", value=50)
    of_texts, of_images = render([spearman, *with_moment("student", evaluate(SeeingEncoder(), [data], [64]))]).split(
        "\n\n"
    )
    assert [line.split() for line in of_texts.splitlines()[3:]] == [["teacher", "64", "50.0"]]
    assert [line.split()[:2] for line in of_images.splitlines()[3:]] == [["student", "64"]]


def test_contents_change_with_an_image_and_do_not_hold_it(digits: Path) -> None:
    before = contents(read(digits, CAPTIONS))
    assert contents(read(digits, CAPTIONS)) == before
    (digits / "digits" / "7.png").write_bytes(png(load_digits().images[70]))
    assert contents(read(digits, CAPTIONS)) != before


# The command


def test_the_command_names_what_a_model_without_vision_is_left_out_of(
    digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = read(digits, CAPTIONS, ZERO_SHOT)
    report_skipped("some/model", HashEncoder(), sets, heldout=True)
    assert capsys.readouterr().err == "skipped, because some/model has no vision: captions, classes\n"
    report_skipped("some/model", SeeingEncoder(), sets, heldout=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(
        ConfigError, match=r"some/model has no vision, and all sets \(captions, classes\) are of images"
    ):
        report_skipped("some/model", HashEncoder(), sets, heldout=False)
