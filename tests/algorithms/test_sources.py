"""Docstrings say where a formula is from in one form: "Source: reference (TAG)."."""

import ast
import pathlib
import re

import pytest

import rljax

ROOT = pathlib.Path(rljax.__file__).parent
FILES = [
    path
    for package in ("advantage", "algorithms", "analysis", "loss")
    for path in sorted((ROOT / package).glob("*.py"))
]
TAG = "PAPER|SECONDARY|RECONSTRUCTED|DERIVED|TEXTBOOK"


def docstrings(path):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, kinds) and ast.get_docstring(node):
            yield getattr(node, "name", path.stem), ast.get_docstring(node)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_source_ends_in_a_tag(path):
    # `docs/method_table.py` reads them; a tag in mid-sentence would be lost there.
    for name, doc in docstrings(path):
        for found in re.finditer(r"^Source: (.+?)(?=^\w+:|\Z)", doc, re.M | re.S):
            text = " ".join(found[1].split())
            assert re.fullmatch(rf".+ \([^()]*({TAG})[^()]*\)\.", text), (name, text)
