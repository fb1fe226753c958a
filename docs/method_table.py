"""Writes the README's method table from the recipes themselves.

python docs/method_table.py          writes README.md
python docs/method_table.py --check  fails if README.md is not up to date
"""

import ast
import inspect
import pathlib
import re
import sys
import textwrap

from rljax import algorithms
from rljax.advantage import Algorithm

README = pathlib.Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- methods -->", "<!-- end of methods -->"
TAGS = ("PAPER", "SECONDARY", "RECONSTRUCTED", "DERIVED")


def row(name: str, recipe) -> str:
    """Name, one-line formula, lines of the body, source and confidence."""
    doc, module = inspect.getdoc(recipe) or "", inspect.getmodule(recipe)
    first = re.sub(r"\s+", " ", doc.split("\n\n")[0]).rstrip(".")
    near, far = doc, module.__doc__ or ""
    source = _source(near) or _source(far)
    tags = [t for t in TAGS if t in near] or [t for t in TAGS if t in far]
    first = re.sub(
        r" ?\((arXiv|PAPER|SECONDARY|RECONSTRUCTED|DERIVED|std)[^)]*\)", "", first
    )
    first = first.replace("|", "\\|")
    confidence = ", ".join(tags).lower() or "textbook"
    cells = (f"`{name}`", first, str(lines(recipe)), source, confidence)
    return f"| {' | '.join(cells)} |"


def _source(doc: str) -> str:
    if found := re.search(r"\d{4}\.\d{5}", doc):
        return f"[{found[0]}](https://arxiv.org/abs/{found[0]})"
    found = re.search(r"Source: ([^.(:;]+)", doc)
    return re.sub(r"\s+", " ", found[1]).strip() if found else ""


def lines(recipe) -> int:
    """Lines of code of a recipe, docstring and signature left out."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(recipe))).body
    body = tree.body[1:] if ast.get_docstring(tree) else tree.body
    return sum(part.end_lineno - part.lineno + 1 for part in body)


def table() -> str:
    """The table of all recipes that return an algorithm, by module."""
    recipes = [
        (name, fn)
        for name in algorithms.__all__
        if inspect.signature(fn := getattr(algorithms, name)).return_annotation
        is Algorithm
    ]
    recipes.sort(key=lambda r: (inspect.getmodule(r[1]).__name__, r[0]))
    head = [
        "| recipe | what it is | lines | source | confidence |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(head + [row(*r) for r in recipes])


def updated(text: str) -> str:
    """The README's text with the table made anew."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    old = README.read_text()
    new = updated(old)
    if "--check" in sys.argv and new != old:
        sys.exit("README.md is behind the recipes; run python docs/method_table.py")
    README.write_text(new)
