"""Decoding: an image of any mode becomes RGB, or is refused with a reason."""

from __future__ import annotations

import pickle
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from picture_files import bomb, palette_with_alpha, photo, png, written
from PIL import Image, ImageFile

from jasper_ray.config import ConfigError
from jasper_ray.images import REASONS, BadImage, decode
from jasper_ray.images.decode import fault


def pixels(data: bytes) -> np.ndarray:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def apart(found: np.ndarray, expected: Image.Image) -> float:
    """Measure the mean difference of values from 0 to 255."""
    return float(np.abs(found - np.asarray(expected.convert("RGB")).astype(int)).mean())


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (written(photo(), "PNG"), 0),
        (written(photo(), "JPEG", quality=95), 3),
        (written(photo(), "JPEG", quality=95, progressive=True), 3),
        (written(photo(), "WEBP", lossless=True), 0),
        (written(photo(), "BMP"), 0),
        (written(photo(), "TIFF", compression="tiff_lzw"), 0),
        (written(photo().convert("YCbCr"), "TIFF"), 3),
        (written(photo().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), 12),
        (written(photo().convert("P", palette=Image.Palette.ADAPTIVE), "GIF"), 12),
        (written(photo().convert("CMYK"), "JPEG", quality=95), 3),
        (written(photo().convert("CMYK"), "TIFF"), 1),
        (written(photo().convert("RGBA"), "PNG"), 0),
    ],
    ids=["png", "jpeg", "progressive", "webp", "bmp", "tiff", "ycbcr", "palette", "gif", "cmyk", "cmyk-tiff", "rgba"],
)
def test_every_mode_becomes_rgb(data: bytes, tolerance: float) -> None:
    assert apart(pixels(data), photo()) <= tolerance


def test_grey_and_black_and_white_stay_what_they_are() -> None:
    for mode in ("L", "1"):
        image = photo().convert(mode)
        assert apart(pixels(written(image, "PNG")), image) == 0


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bits_keep_the_upper_eight(form: str) -> None:
    grey = np.asarray(photo().convert("L")).astype(np.uint16)
    found = pixels(written(Image.fromarray(grey * 257), form))
    assert (found == grey[:, :, None]).all()


def test_16_bits_of_colour_and_alpha() -> None:
    colours = png(2, 1, 16, 2, zlib.compress(b"\0" + struct.pack(">6H", 0, 32768, 65535, 65535, 0, 256)))
    assert pixels(colours).tolist() == [[[0, 128, 255], [255, 0, 1]]]
    grey_and_alpha = png(2, 1, 16, 4, zlib.compress(b"\0" + struct.pack(">4H", 0, 65535, 0, 0)))
    assert pixels(grey_and_alpha).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    grey_and_one_clear = png(
        2, 1, 16, 0, zlib.compress(b"\0" + struct.pack(">2H", 0, 300)), (b"tRNS", struct.pack(">H", 300))
    )
    assert pixels(grey_and_one_clear).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_what_is_transparent_lies_on_white() -> None:
    clear = photo().copy()
    clear.putalpha(0)
    assert (pixels(written(clear, "PNG")) == 255).all()
    half = photo().convert("LA")
    half.putalpha(128)
    found, grey = pixels(written(half, "PNG")), np.asarray(photo().convert("L")).astype(int)[:, :, None]
    assert np.abs(found - (grey * 128 + 255 * 127) / 255).max() <= 1


def test_transparent_colours_of_a_palette_lie_on_white() -> None:
    found = pixels(palette_with_alpha(photo()))
    grey = np.asarray(photo().convert("L")).astype(int)
    assert (found[grey < 128] == 255).all()
    assert (found[grey >= 128] == grey[grey >= 128][:, None]).all()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_taken(form: str) -> None:
    first, second = Image.new("RGB", (16, 12), "white"), Image.new("RGB", (16, 12), "black")
    assert (pixels(written(first, form, save_all=True, append_images=[second], lossless=True)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    lying = {5: (107, 160), 6: (107, 160), 7: (107, 160), 8: (107, 160)}
    image = decode(written(photo(), "PNG", exif=exif))
    assert image.size == lying.get(orientation, (160, 107))
    corner = {1: (0, 0), 2: (159, 0), 3: (159, 106), 4: (0, 106), 5: (0, 0), 6: (106, 0), 7: (106, 159), 8: (0, 159)}
    assert image.getpixel(corner[orientation]) == photo().getpixel((0, 0))  # where its first pixel has gone


def test_a_damaged_exif_block_does_not_cost_the_image() -> None:
    assert apart(pixels(written(photo(), "JPEG", quality=95, exif=b"Exif\0\0damaged")), photo()) < 3


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>404 Not Found</html>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),  # would start another program
        (written(Image.new("F", (3, 3)), "TIFF"), "not_an_image"),
        (written(photo(), "JPEG")[:2500], "broken"),
        (written(photo(), "JPEG")[:40], "broken"),
        (written(photo(), "PNG")[:9000], "broken"),
        (written(photo(), "PNG")[:20], "broken"),
        (written(photo(), "WEBP")[:900], "broken"),
        (written(photo().convert("P"), "GIF")[:4000], "broken"),
        (bomb(), "too_many_pixels"),
    ],
    ids=[
        "empty", "text", "eps", "floats", "cut-jpeg", "cut-jpeg-header", "cut-png", "cut-png-header", "cut-webp",
        "cut-gif", "bomb",
    ],
)  # fmt: skip
def test_what_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as found:
        decode(data)
    assert found.value.reason == reason
    assert reason in REASONS
    assert isinstance(found.value, ConfigError)
    assert "\n" not in str(found.value)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_every_cut_of_a_file_is_an_image_or_a_reason() -> None:
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
        whole = written(photo(40, 30), form)
        cuts = [whole[:length] for length in range(0, len(whole), max(1, len(whole) // 60))]
        assert {fault(cut) for cut in cuts} - {None} <= {"empty", "not_an_image", "broken"}


def test_the_limit_is_the_callers() -> None:
    data = written(photo(), "PNG")
    assert decode(data, pixel_limit=160 * 107).size == (160, 107)
    with pytest.raises(BadImage, match="160 x 107 pixels, more than 17,119; remove it, or raise pixel_limit"):
        decode(data, pixel_limit=160 * 107 - 1)


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
@pytest.mark.parametrize("side", [8_000, 15_200])  # pillow lets the first of them pass
def test_a_bomb_takes_no_memory(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side))
    (tmp_path / "small.png").write_bytes(written(photo(), "PNG"))
    code = """
import resource, sys
from jasper_ray.images import BadImage, decode
small, large = (open(path, "rb").read() for path in sys.argv[1:])
decode(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(large)
except BadImage as error:
    print(error.reason, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "small.png"), str(tmp_path / "bomb.png")]
    reason, kilobytes = subprocess.check_output(command, text=True).split()
    assert reason == "too_many_pixels"
    assert int(kilobytes) < 20_000  # of the 256 or 924 megabytes that the pixels would take


def test_settings_of_pillow_stay_and_threads_do_not_meet() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    data = [written(photo(), "JPEG", quality=95), written(photo().convert("RGBA"), "PNG"), palette_with_alpha(photo())]
    alone = [pixels(each) for each in data]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(pixels, data * 20))
    assert all((found == alone[index % 3]).all() for index, found in enumerate(together))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_the_reason_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadImage("the image is too large", "too_many_pixels")))
    assert (str(error), error.reason) == ("the image is too large", "too_many_pixels")
