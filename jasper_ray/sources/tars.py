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
    """An archive that ends early or is damaged, or no archive at all."""


class _Member(tarfile.TarInfo):
    """A member whose header must be whole: by itself tarfile takes a damaged or missing one for the archive's end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the blocks of zeros that every archive ends with
        except tarfile.HeaderError as error:
            raise BrokenArchive(str(error)) from error


@dataclass
class Sample:
    """What was found under one stem."""

    stem: str
    """Path and name of the members up to the name's first dot."""
    image: bytes | None = None
    image_extension: str = ""
    captioned: bool = False
    """Whether there is a member for the caption."""
    caption: object = None
    """Text, or what stands at the key of the JSON member; None if it cannot be read."""

    @property
    def found(self) -> bool:
        """Whether there is anything of a pair here: archives may hold other files too."""
        return self.image is not None or self.captioned

    @property
    def whole(self) -> bool:
        return self.image is not None and self.captioned


def read_samples(stream: pa.NativeFile, path: str, image: str | None, caption: str) -> Iterator[Sample]:
    """The samples of an open archive, one after the other, compressed by gzip or bzip2 or not at all.

    image: extension of the member that is the image; None takes the one with an image's extension. caption: extension
    of the member that is the caption, or `json:KEY`.

    Raises:
        BrokenArchive: after the last whole sample, if the archive cannot be read to its end.
        ConfigError: a sample has several images and `image` is None.
    """
    sample = Sample("")
    try:
        for stem, extension, data in _members(stream, image, caption):
            if stem != sample.stem:
                if sample.found:
                    yield sample
                sample = Sample(stem)
            _add(sample, extension, data, path, image, caption)
    except (BrokenArchive, tarfile.TarError, EOFError, zlib.error) as error:
        if sample.whole:
            yield sample
        raise BrokenArchive(str(error)) from error
    if sample.found:
        yield sample


def _members(stream: pa.NativeFile, image: str | None, caption: str) -> Iterator[tuple[str, str, bytes]]:
    """Stem, extension and bytes of the members that images and captions may be in."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # else a million passed members fill a gigabyte
            stem, extension = _split(member.name)
            wanted = _is_image(extension, image) or _has_extension(extension, caption.partition(":")[0])
            if member.isfile() and stem and wanted:
                file = archive.extractfile(member)
                yield stem, extension, file.read() if file else b""


def _split(name: str) -> tuple[str, str]:
    """The stem of a member, empty for a hidden file, and its extension in small letters."""
    folder, sign, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + sign + stem if stem else "", extension.lower()


def _has_extension(extension: str, wanted: str) -> bool:
    return extension == wanted.lower() or extension.endswith("." + wanted.lower())


def _is_image(extension: str, wanted: str | None) -> bool:
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS if wanted is None else _has_extension(extension, wanted)


def _add(sample: Sample, extension: str, data: bytes, path: str, image: str | None, caption: str) -> None:
    if not _is_image(extension, image):
        if not sample.captioned:
            sample.captioned, sample.caption = True, _caption(data, caption)
    elif sample.image is None:
        sample.image, sample.image_extension = data, extension
    elif image is None:
        raise ConfigError(
            f"{path} holds two images called {sample.stem!r}, .{sample.image_extension} and .{extension}; "
            "set the source's image to the extension that is meant"
        )


def _caption(data: bytes, caption: str) -> object:
    """What the caption's member says; None if it is not UTF-8 or not the JSON that was expected."""
    try:
        text = data.decode()
        key = caption.partition(":")[2]
        found = json.loads(text) if key else text
    except ValueError:
        return None
    if not key:
        return found
    return found.get(key) if isinstance(found, dict) else None
