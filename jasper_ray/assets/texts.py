"""Training texts from packages: rated sentences, sentences of WordNet, and paragraphs of manuals and dictionaries.

An asset is a UTF-8 file with one text a line and no text twice.
"""

from __future__ import annotations

import html
import io
import logging
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from jasper_ray.assets.download import read_member, read_package
from jasper_ray.config import ConfigError

logger = logging.getLogger(__name__)

TEXT = "texts.txt"

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
"""Package → its English documents. No name contains a version, so that other releases have them too."""


def write_wordnet(archives: Sequence[Path], target: Path) -> None:
    """Write the definitions and example sentences of WordNet's verbs, adjectives and adverbs (Fellbaum, 1998).

    Those of nouns are skipped, even if another part of speech repeats them, so that an evaluation has unseen texts.
    Texts of fewer than five words ("rare roast beef") are skipped too.
    """
    (package,) = archives
    texts = {Path(name).suffix: glosses(data) for name, data in read_package(package, "*/wordnet/data.*")}
    nouns = set(texts[".noun"])
    kept = (text for part in (".verb", ".adj", ".adv") for text in texts[part] if text not in nouns)
    write_texts((text for text in kept if len(text.split()) >= 5), target / TEXT)


def glosses(data: str) -> Iterator[str]:
    """Return the definition, then each quoted example, of every set of synonyms in one of WordNet's data files."""
    for line in data.splitlines():
        _, bar, gloss = line.partition(" | ")  # the licence at the head of the file has no bar
        if bar:
            yield gloss.partition('"')[0].strip(" ;:")
            yield from (example.strip() for example in re.findall(r'"([^"]+)"', gloss))


def write_docs(archives: Sequence[Path], target: Path) -> None:
    """Write the paragraphs of prose in the packages of `DOCS`."""
    texts = (text for package in archives for text in document_paragraphs(package) if is_prose(text))
    write_texts(texts, target / TEXT)


def document_paragraphs(package: Path) -> Iterator[str]:
    """Return every paragraph of the documents in a package, with its white space collapsed."""
    for name, document in read_package(package, DOCS[package.stem]):
        if name.endswith(".dz"):  # a dictd dictionary, which marks cross-references `{…}` and subjects `<…>`
            texts = re.split(r"\n\s*\n", re.sub(r"<[a-z ,-]+>|[{}]", "", document))
        else:
            texts = paragraphs(document)
        yield from (" ".join(text.split()) for text in texts)


PARAGRAPHS = {"p", "para", "dd"}
"""Elements whose text is kept: HTML, Mallard (`p`) and DocBook (`para`)."""
HIDDEN = {"pre", "screen", "programlisting", "script", "style", "table", "indexterm", "footnote"}
INLINE = {
    *("a", "abbr", "acronym", "b", "br", "cite", "code", "dfn", "em", "font", "i", "kbd", "q", "samp", "small", "span"),
    *("strong", "sub", "sup", "tt", "u", "var"),
    *("app", "cmd", "file", "gui", "guiseq", "input", "key", "keyseq", "link", "sys"),
    *("application", "command", "emphasis", "filename", "firstterm", "guibutton", "guilabel", "guimenu", "guimenuitem"),
    *("literal", "option", "phrase", "productname", "quote", "ulink", "userinput", "varname", "xref"),
}
"""Elements inside of a paragraph: of HTML, of Mallard, of DocBook."""

# From a capital to a full stop: no headings, list items or half sentences before an example.
SENTENCES = re.compile(r"[A-Z].*[.?!][\"”’)]*", re.DOTALL)
CODE = re.compile(r"[{}<>\\|\ufffd]|::|==|\(\)|--\w|_\w|https?:|copyright", re.IGNORECASE)


class ParagraphParser(HTMLParser):
    """Collects the text of each paragraph. Any element that is not inline ends it, since old HTML leaves `p` open."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []
        self._open: list[str] | None = None
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in HIDDEN
        if tag not in INLINE:
            self.end()
        if tag in PARAGRAPHS:
            self._open = []

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in HIDDEN))
        if tag not in INLINE:
            self.end()

    def handle_data(self, data: str) -> None:
        if self._open is not None and not self._hidden:
            self._open.append(data)

    def end(self) -> None:
        """Close the open paragraph, if there is one."""
        if self._open:
            self.done.append("".join(self._open))
        self._open = None


def paragraphs(markup: str) -> list[str]:
    """Return the paragraphs of an HTML, Mallard or DocBook document, without tags and code blocks."""
    parser = ParagraphParser()
    parser.feed(markup)
    parser.close()
    parser.end()
    # The remaining entities are DocBook's own, whose names are their meaning: &kde;, &kmymoney;.
    return [re.sub(r"&([\w-]+);", r"\1", text).replace("¶", "") for text in parser.done]


def is_prose(text: str) -> bool:
    """Accept 12 to 250 words of whole sentences, nearly all letters, without a trace of code."""
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return (
        12 <= len(text.split()) <= 250
        and letters > 0.92 * len(text)
        and SENTENCES.fullmatch(text) is not None
        and CODE.search(text) is None
    )


VADER_TEXTS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
VADER_FILES = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")


def write_vader(archives: Sequence[Path], target: Path) -> None:
    """Write the human-rated texts of Hutto & Gilbert (2014) from the source archive of vaderSentiment.

    23,342 of its 23,703 texts are kept; those of fewer than three words ("wow", "!") and repetitions are skipped.
    """
    (archive,) = archives
    try:
        write_texts((text for text in vader_texts(archive) if len(text.split()) >= 3), target / TEXT)
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(f"{archive} is not a complete archive ({error}): delete this file and run again") from error


def vader_texts(archive: Path) -> Iterator[str]:
    """Return the third column of the four files, which are read in memory."""
    with tarfile.open(archive) as outer, tarfile.open(fileobj=io.BytesIO(read_member(outer, VADER_TEXTS))) as inner:
        for name in VADER_FILES:
            rows = read_member(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").decode().splitlines()
            for row in rows:
                # Some texts were escaped twice, and some begin with the quotation mark of a list.
                yield html.unescape(html.unescape(row.split("\t")[2])).removeprefix('" ')


def write_texts(texts: Iterable[str], path: Path) -> None:
    """Write each different text once, with its white space collapsed, in order of first appearance."""
    lines = dict.fromkeys(" ".join(text.split()) for text in texts)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    logger.info("%d texts in %s", len(lines), path.name)
