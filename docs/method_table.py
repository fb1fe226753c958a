"""Writes docs/methods.md, the table of all methods, from the recipes' docstrings.

python docs/method_table.py          writes docs/methods.md
python docs/method_table.py --check  fails if it is not up to date
"""

import ast
import inspect
import pathlib
import re
import sys
import textwrap
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's recipes, not an installed package's

from rljax import algorithms  # noqa: E402
from rljax.advantage import Algorithm  # noqa: E402

PAGE = ROOT / "docs" / "methods.md"
TAGS = ("PAPER", "SECONDARY", "RECONSTRUCTED", "DERIVED", "TEXTBOOK")
HEAD = """# Methods

Written by `python docs/method_table.py` from the docstrings of `rljax/algorithms/`.

Every method is a recipe: a function from numbers to an algorithm, made of the same few
primitives. `r` is a sample's reward, `p` its group's solve rate and `q = 1 - p`. `A_S`
and `A_F` are the advantages of successes and failures. A mass is an advantage times the
fraction of samples in its class. `f` is the objective that the method ascends
on-policy.

Confidence says where the formula comes from. *paper*: the paper's text or its authors'
code. *secondary*: third parties that agree. *reconstructed*: our reading of an
ambiguous source. *derived*: algebra from a stated formula. *textbook*: common
knowledge.

| recipe | what it is | lines | source | confidence |
|---|---|---|---|---|
"""


class Entry(NamedTuple):
    """The parts of a recipe's docstring that the table shows."""

    summary: str
    source: str
    tags: tuple[str, ...]


def entry(recipe) -> Entry:
    """Parses the first line and the "Source: reference (TAG)." section of a docstring.

    Raises:
      ValueError: if the docstring has no such section.
    """
    doc = inspect.getdoc(recipe) or ""
    section = re.search(r"^Source: (.+?)(?=^\w+:|\Z)", doc, re.M | re.S)
    text = " ".join(section[1].split()) if section else ""
    found = re.fullmatch(r"(.+) \(([^()]+)\)\.", text)
    tags = tuple(t for t in TAGS if found and t in found[2])
    if not tags:
        raise ValueError(
            f"the docstring of {recipe.__name__} must end in 'Source: reference (TAG).'"
            f" with a TAG of {TAGS}, got {text!r}; add it."
        )
    return Entry(doc.splitlines()[0].rstrip("."), found[1], tags)


def row(name: str, recipe) -> str:
    """A line of the table: name, summary, lines of the body, source, confidence."""
    summary, source, tags = entry(recipe)
    source = re.sub(
        r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", source
    )
    confidence = ", ".join(tags).lower()
    cells = (f"`{name}`", summary, str(lines(recipe)), source, confidence)
    escaped = (cell.replace("|", r"\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"


def lines(recipe) -> int:
    """Lines of code of a recipe, docstring and signature left out."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(recipe))).body
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    return sum(part.end_lineno - part.lineno + 1 for part in body)


def recipes() -> dict:
    """Name -> function for all recipes, ordered by their files."""
    found = {
        name: fn
        for name in algorithms.__all__
        if inspect.signature(fn := getattr(algorithms, name)).return_annotation
        is Algorithm
    }
    by_file = sorted(found, key=lambda name: (found[name].__module__, name))
    return {name: found[name] for name in by_file}


def page() -> str:
    """The text of docs/methods.md."""
    return HEAD + "".join(row(*item) for item in recipes().items())


if __name__ == "__main__":
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        sys.exit("docs/methods.md is out of date; run python docs/method_table.py")
