"""Samples in tar archives, as WebDataset writes them: members that follow one another and share a stem."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from jasper_ray.config import ConfigError

IMAGE_EXTENSIONS = frozenset(("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "avif", "bmp", "tif", "tiff"))


class BrokenArchive(Exception):
    """An archive that ends early or is damaged, or a file that is no archive."""


class StrictMember(tarfile.TarInfo):
    """A member with a valid header: tarfile alone takes a damaged or missing one for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> StrictMember:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the blocks of zeros that every archive ends with
        except tarfile.HeaderError as error:
            raise BrokenArchive(str(error)) from error


@dataclass
class Sample:
    """The members of one stem."""

    stem: str
    """Path and name of the members up to the name's first dot."""
    image: bytes | None = None
    image_extension: str = ""
    captioned: bool = False
    """True if there is a member for the caption."""
    caption: object = None
    """Text, or the value at the key of the JSON member; None if it cannot be read."""

    @property
    def found(self) -> bool:
        """True if it holds a part of a pair: archives may hold other files too."""
        return self.image is not None or self.captioned

    @property
    def whole(self) -> bool:
        return self.image is not None and self.captioned


def read_samples(stream: pa.NativeFile, path: str, image: str | None, caption: str) -> Iterator[Sample]:
    """Yield the samples of an open archive, compressed by gzip or bzip2 or not at all.

    image: extension of the member that is the image; None takes the one with an image's extension. caption: extension
    of the member that is the caption, or `json:KEY`.

    Raises:
        BrokenArchive: after the last whole sample, if the archive cannot be read to its end.
        ConfigError: a sample has several images and `image` is None.
    """
    sample = Sample("")
    try:
        for stem, extension, data in read_members(stream, image, caption):
            if stem != sample.stem:
                if sample.found:
                    yield sample
                sample = Sample(stem)
            add_member(sample, extension, data, path, image, caption)
    except (BrokenArchive, tarfile.TarError, EOFError, zlib.error) as error:
        if sample.whole:
            yield sample
        raise BrokenArchive(str(error)) from error
    if sample.found:
        yield sample


def read_members(stream: pa.NativeFile, image: str | None, caption: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield stem, lower-case extension and bytes of the members that may be images or captions."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictMember) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # else a million passed members fill a gigabyte
            folder, sign, name = member.name.removeprefix("./").rpartition("/")
            stem, _, extension = name.partition(".")
            extension = extension.lower()
            used = is_image(extension, image) or has_extension(extension, caption.partition(":")[0])
            if member.isfile() and stem and used:  # the stem of a hidden file is empty
                file = archive.extractfile(member)
                yield folder + sign + stem, extension, file.read() if file else b""


def has_extension(extension: str, expected: str) -> bool:
    return extension == expected.lower() or extension.endswith("." + expected.lower())


def is_image(extension: str, expected: str | None) -> bool:
    if expected is None:
        return extension.rpartition(".")[2] in IMAGE_EXTENSIONS
    return has_extension(extension, expected)


def add_member(sample: Sample, extension: str, data: bytes, path: str, image: str | None, caption: str) -> None:
    if not is_image(extension, image):
        if not sample.captioned:
            sample.captioned, sample.caption = True, read_caption(data, caption)
    elif sample.image is None:
        sample.image, sample.image_extension = data, extension
    elif image is None:
        raise ConfigError(
            f"{path} holds two images called {sample.stem!r}, .{sample.image_extension} and .{extension}; "
            "set the source's image to the extension to use"
        )


def read_caption(data: bytes, caption: str) -> object:
    """Return the caption in a member's bytes; None if these are not UTF-8 or not the expected JSON."""
    try:
        text = data.decode()
        key = caption.partition(":")[2]
        found = json.loads(text) if key else text
    except ValueError:
        return None
    if not key:
        return found
    return found.get(key) if isinstance(found, dict) else None
