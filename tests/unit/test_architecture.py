"""docs/architecture.md names files and functions: they exist, so the walks can be walked."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:launcher|trainer)/[\w/]+\.py)", TEXT)))
NAMED = sorted(set(re.findall(r"`((?:launcher|trainer)/[\w/]+\.py): (\w+)`", TEXT)))


def test_there_is_something_to_check() -> None:
    assert len(NAMED) > 30


@pytest.mark.parametrize("path", FILES)
def test_the_file_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_function_or_class_is_there(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    defined = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    }
    assert name in defined
