"""Paragraphs of markup, and which of them are prose."""

from __future__ import annotations

import re
from html.parser import HTMLParser

PARAGRAPHS = {"p", "para", "dd"}
"""Elements whose text is taken: HTML, Mallard (`p`) and DocBook (`para`)."""
HIDDEN = {"pre", "screen", "programlisting", "script", "style", "table", "indexterm", "footnote"}
INLINE = {
    *("a", "abbr", "acronym", "b", "br", "cite", "code", "dfn", "em", "font", "i", "kbd", "q", "samp", "small", "span"),
    *("strong", "sub", "sup", "tt", "u", "var"),
    *("app", "cmd", "file", "gui", "guiseq", "input", "key", "keyseq", "link", "sys"),
    *("application", "command", "emphasis", "filename", "firstterm", "guibutton", "guilabel", "guimenu", "guimenuitem"),
    *("literal", "option", "phrase", "productname", "quote", "ulink", "userinput", "varname", "xref"),
}
"""Elements inside of a paragraph: of HTML, of Mallard, of DocBook."""

# A capital at the start, a full stop at the end: no headings, list items and half sentences before an example.
SENTENCES = re.compile(r"[A-Z].*[.?!][\"”’)]*", re.DOTALL)
CODE = re.compile(r"[{}<>\\|\ufffd]|::|==|\(\)|--\w|_\w|https?:|copyright", re.IGNORECASE)


class _Paragraphs(HTMLParser):
    """Collects the text of each paragraph; any element that is not inline ends it, as old HTML leaves `p` open."""

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
    """The texts of all paragraphs of an HTML, Mallard or DocBook document, without tags and code blocks."""
    parser = _Paragraphs()
    parser.feed(markup)
    parser.close()
    parser.end()
    # What is left of entities is DocBook's own, whose names are what they stand for: &kde;, &kmymoney;.
    return [re.sub(r"&([\w-]+);", r"\1", text).replace("¶", "") for text in parser.done]


def is_prose(text: str) -> bool:
    """Whether a paragraph is 12 to 250 words of whole sentences, nearly all letters, with no trace of code."""
    letters = sum(character.isalpha() or character.isspace() for character in text)
    return (
        12 <= len(text.split()) <= 250
        and letters > 0.92 * len(text)
        and SENTENCES.fullmatch(text) is not None
        and CODE.search(text) is None
    )
