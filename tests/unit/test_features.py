"""docs/features.md names tests that exist, and says every row of each system."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs" / "features.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| feature")
]


def _tests_of(path: Path) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_rows() -> None:
    assert len(ROWS) > 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:60])
def test_a_feature_names_a_test_that_runs(row: str) -> None:
    feature, how, named = (cell.strip() for cell in row.strip("|").split("|"))
    assert feature
    assert how
    file, _, name = named.partition("::")
    assert re.fullmatch(r"tests/(unit|e2e|distributed)/test_\w+\.py", file)
    tests = _tests_of(ROOT / file)
    assert any(test.startswith("test_") for test in tests)
    if name:
        marks = [ast.unparse(mark) for mark in tests[name].decorator_list]
        assert not any(mark.startswith("pytest.mark.skip(") for mark in marks)
