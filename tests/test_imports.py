"""Who may import whom: the table of the packages, read from the source.

A package imports those of the table's line and nothing else of rljax, so that a
newcomer can read it with them alone, and a change stays on its floor. Imports count
wherever they stand: in functions and under TYPE_CHECKING, too.
"""

import ast
import functools
import graphlib
import pathlib

import pytest

import rljax

LIBRARY = pathlib.Path(rljax.__file__).parent

# Floor by floor: a package (or module) and what it imports beside the first floor,
# which everybody may import and which imports itself alone. So evaluating and planning
# know no algorithm, and a run's loop knows neither models nor tasks.
FIRST = (
    *("types", "layout", "metric", "numerics", "check", "keys"),
    *("processes", "mesh", "digest", "strict_json"),
)
FLOORS = (
    dict.fromkeys(FIRST, ()),
    dict.fromkeys(
        ("advantage", "loss", "policy", "verify", "verdict", "data", "run"), ()
    ),
    {
        "algorithms": ("advantage", "loss"),
        "model": ("policy", "data"),
        "rollout": ("policy",),
        "learn": ("advantage", "policy"),
        "analysis": ("advantage", "loss", "algorithms", "run"),
    },
    {
        "program": ("advantage", "policy", "verdict", "model", "learn"),
        "decoupled": ("policy", "verdict", "run", "learn", "program"),
        "task": ("data", "verify", "model"),
    },
    {
        "evaluate": ("policy", "verdict", "run", "model", "rollout", "task"),
        "plan": ("verdict", "model", "program"),
    },
    {
        "experiment": (
            *("policy", "run", "model", "learn", "program", "decoupled", "task"),
            "evaluate",
        ),
        "spread": ("experiment",),
        "export": ("policy", "run", "model", "evaluate"),
    },
)
TABLE = {name: (*FIRST, *may) for floor in FLOORS for name, may in floor.items()}
ABOVE = {"experiments", "benchmarks", "notebooks", "tpu", "tests"}


def module(path: pathlib.Path) -> str:
    """`rljax/run/train.py` -> "rljax.run.train"; a package's `__init__` -> its name."""
    parts = path.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(folder: str) -> dict[str, pathlib.Path]:
    files = sorted((LIBRARY.parent / folder).rglob("*.py"))
    return {module(path): path for path in files}


MODULES = modules("rljax")
ABOVE_MODULES = modules("experiments") | modules("benchmarks") | modules("tpu")


def read(source: str) -> list[tuple[int, str]]:
    """(line, what it imports) of every import of a source text, sorted.

    A name that is imported from a package counts as its module if it is one.
    """
    known = MODULES | ABOVE_MODULES
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(node.lineno, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {(node.lineno, n if n in known else node.module) for n in names}
    return sorted(found)


@functools.cache
def imports(name: str) -> list[tuple[int, str]]:
    return read(MODULES[name].read_text())


def package(name: str) -> str:
    """ "rljax.run.train" -> "run"; "rljax" itself -> ""."""
    return name.removeprefix("rljax").removeprefix(".").partition(".")[0]


def test_imports_are_found_wherever_they_stand():
    source = (
        "import flax.linen as nn, os\n"
        "from rljax.run import record, train as t\n"
        "from rljax.run.train import Stopped\n"
        "if TYPE_CHECKING:\n"
        "    from transformers import Tokenizer\n"
        "def f():\n"
        "    from rljax import model\n"
    )
    assert read(source) == [
        (1, "flax.linen"),
        (1, "os"),
        (2, "rljax.run.record"),
        (2, "rljax.run.train"),
        (3, "rljax.run.train"),
        (5, "transformers"),
        (7, "rljax.model"),
    ]


def test_the_table_has_a_line_for_every_package():
    assert {package(name) for name in MODULES} - {""} == set(TABLE)


def test_a_package_may_import_lower_floors_only():
    below = set(FIRST)
    for floor in FLOORS:
        for name, may in floor.items():
            # A package of the same floor is fine as long as it comes earlier.
            assert set(may) <= below, f"{name} may import {set(may) - below}"
            below.add(name)


@pytest.mark.parametrize("name", TABLE)
def test_a_package_imports_what_the_table_says(name):
    wrong = [
        f"{importer}:{line} imports {found}"
        for importer in MODULES
        if package(importer) == name
        for line, found in imports(importer)
        if found.partition(".")[0] == "rljax"
        and package(found) not in {name, *TABLE[name]}
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("files", [MODULES, ABOVE_MODULES], ids=["library", "above"])
def test_there_is_no_circle_of_modules(files):
    # Inside a package the table says nothing. Above the library the parts of an entry
    # point once took their types from it, which imported them.
    graph = {
        name: {found for _, found in read(path.read_text()) if found in files}
        for name, path in files.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def importers(outside: set[str]) -> set[str]:
    """The packages that import one of these top-level packages."""
    return {
        package(name)
        for name in MODULES
        for _, found in imports(name)
        if found.partition(".")[0] in outside
    }


def test_flax_lives_in_model_alone():
    assert importers({"flax"}) == {"model"}


def test_the_library_imports_nothing_that_stands_on_it():
    assert importers(ABOVE) == set()


def test_nothing_of_the_map_is_imported_from_it():
    # `import rljax` alone costs nothing: its `__init__` is a docstring.
    assert imports("rljax") == []


@pytest.mark.parametrize(
    "name", [name for name, path in MODULES.items() if path.name == "__init__.py"]
)
def test_every_package_says_what_it_is(name):
    docstring = ast.get_docstring(ast.parse(MODULES[name].read_text()))
    assert docstring, f"{MODULES[name]} needs a docstring"
