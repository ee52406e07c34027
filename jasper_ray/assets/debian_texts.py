"""Training texts from Debian packages: sentences of WordNet, and paragraphs of manuals and dictionaries."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jasper_ray.assets.apt import read_package
from jasper_ray.assets.prose import is_prose, paragraphs
from jasper_ray.assets.texts import TEXT, write_texts

# Package → where its English documents lie. No name holds a version, so that other releases have them too.
DOCS = {
    "apache2-doc": "*/manual/en/*.html",
    "debian-faq": "*.en.html",
    "debian-policy": "*.html",
    "debian-reference-en": "*.html",
    "developers-reference": "*.html",
    "dict-devil": "*.dz",
    "dict-foldoc": "*.dz",
    "dict-jargon": "*.dz",
    "git-doc": "*.html",
    "gnome-user-docs": "*/help/C/*.page",
    "homebank-data": "*.html",
    "kmymoney-common": "*/HTML/en/*.docbook",
    "libreoffice-help-en-us": "*.html",
    "sqlite3-doc": "*.html",
}


def write_wordnet(archives: Sequence[Path], target: Path) -> None:
    """Write the definitions and example sentences of WordNet's verbs, adjectives and adverbs (Fellbaum, 1998).

    Those of nouns are left out, also where another part of speech repeats them: they stay unseen for evaluation. So are
    texts of fewer than five words, which are hardly sentences ("rare roast beef").
    """
    (package,) = archives
    texts = {Path(name).suffix: _glosses(data) for name, data in read_package(package, "*/wordnet/data.*")}
    nouns = set(texts[".noun"])
    kept = (text for part in (".verb", ".adj", ".adv") for text in texts[part] if text not in nouns)
    write_texts((text for text in kept if len(text.split()) >= 5), target / TEXT)


def _glosses(data: str) -> Iterator[str]:
    """The definition, then each quoted example, of every set of synonyms in one of WordNet's data files."""
    for line in data.splitlines():
        _, bar, gloss = line.partition(" | ")  # the licence at the head of the file has none
        if bar:
            yield gloss.partition('"')[0].strip(" ;:")
            yield from (example.strip() for example in re.findall(r'"([^"]+)"', gloss))


def write_docs(archives: Sequence[Path], target: Path) -> None:
    """Write the paragraphs of prose of the packages of `DOCS`, which are the names of `archives`."""
    write_texts((text for package in archives for text in _paragraphs(package) if is_prose(text)), target / TEXT)


def _paragraphs(package: Path) -> Iterator[str]:
    """Every paragraph of the documents in a package, its white space collapsed."""
    for name, document in read_package(package, DOCS[package.stem]):
        found = _dictionary_paragraphs(document) if name.endswith(".dz") else paragraphs(document)
        yield from (" ".join(text.split()) for text in found)


def _dictionary_paragraphs(dictionary: str) -> list[str]:
    """The paragraphs of a dictd dictionary, without its marks for cross-references `{…}` and subjects `<…>`."""
    return re.split(r"\n\s*\n", re.sub(r"<[a-z ,-]+>|[{}]", "", dictionary))
