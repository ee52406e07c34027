"""Texts that every Python brings: the docstrings of its standard library, sentences to pages long."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
"""Folders that are not the library, hold no prose, or no Python of today."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings(least: int, seed: int = 3) -> list[str]:
    """Distinct docstrings with so many characters together, or all of them (1.7 million characters); of whole files,
    in an order that the seed decides."""
    found: dict[str, None] = {}
    characters = 0
    files = source_files()
    random.Random(seed).shuffle(files)
    for file in files:
        for text in in_file(file):
            characters += 0 if text in found else len(text)
            found[text] = None
        if characters >= least:
            break
    texts = list(found)
    random.Random(seed).shuffle(texts)
    return texts


def source_files() -> list[Path]:
    """The library's modules."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts))


def in_file(path: Path) -> Iterator[str]:
    """The docstrings in a module that are not empty."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text
