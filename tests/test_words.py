"""The language of code and documents: words that are out, and docstrings that do not begin with a verb or a noun."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parents[1]
OUT = {
    "mend": r"mend(s|ed|ing)?",
    "anew": r"anew",
    "set aside": r"set(s|ting)? aside",
    "of use": r"of( no)? use",
    "as far as": r"as far as",
    "told": r"told",
    "lie": r"lies?|lying",
    "stands": r"stands",
    "wants": r"wants",
    "whatever": r"whatever",
    "of late": r"of late",
    "left out": r"left out",
    "in front": r"in front",
    "without which": r"without which",
    "is none": r"(?<!there )(?:is|are) (?-i:none)",
}
"""Each word, and its forms; CONTRIBUTING.md has the words in their place."""
OPENINGS = re.compile(r"(What|Whether|Of|Where|That|How|Which|For|From|Who|Whose|Whatever|When|Above)\b")
"""First words of a docstring that is a clause or a fragment."""
ALLOWED = {
    ("CONTRIBUTING.md", "told"): "the rule that forbids it",
}
"""A word in a file that may stay, and the reason."""
PATTERN = re.compile(r"\b(?:" + "|".join(f"(?P<w{i}>{form})" for i, form in enumerate(OUT.values())) + r")\b", re.I)


def rooms() -> dict[str, list[Path]]:
    """Group the files by room."""
    files = [
        *HOME.glob("jasper_ray/**/*.py"),
        *HOME.glob("jobs/**/*.py"),
        *HOME.glob("jasper_ray/**/*.yaml"),
        *HOME.glob("jasper_ray/**/*.html"),
    ]
    files += [
        *HOME.glob("*.md"),
        *HOME.glob("j*/**/*.md"),
        *HOME.glob("cluster/*"),
        HOME / "Makefile",
        HOME / "pyproject.toml",
    ]
    grouped: dict[str, list[Path]] = {}
    for path in files:
        parts = path.relative_to(HOME).parts
        if path.is_file() and path.name != "CHANGELOG.md":
            grouped.setdefault("/".join(parts[:2]) if len(parts) > 2 else parts[0], []).append(path)
    return grouped


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each comment and string of a module, or each line of another file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring, those below fields and constants included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


@pytest.mark.parametrize("room", sorted(rooms()))
def test_no_word_that_is_out_is_used(room: str) -> None:
    found = []
    for path in rooms()[room]:
        name = str(path.relative_to(HOME))
        for line, text in prose(path):
            for match in PATTERN.finditer(text):
                word = list(OUT)[next(i for i, form in enumerate(match.groupdict().values()) if form)]
                if (name, word) not in ALLOWED:
                    found.append(f"{name}:{line + text[: match.start()].count(chr(10))}: {match[0]}")
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize("room", sorted(rooms()))
def test_each_docstring_begins_with_a_verb_or_a_noun(room: str) -> None:
    found = [
        f"{path.relative_to(HOME)}:{line}: {text.strip().splitlines()[0]}"
        for path in rooms()[room]
        if path.suffix == ".py"
        for line, text in docstrings(path)
        if OPENINGS.match(text.strip())
    ]
    assert not found, "\n".join(["", *found])


def test_each_exception_is_needed() -> None:
    for name, word in ALLOWED:
        assert re.search(rf"\b({OUT[word]})\b", (HOME / name).read_text(encoding="utf-8"), re.I), (name, word)
