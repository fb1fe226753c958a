"""The README says what is there."""

import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from experiments import train

ROOT = pathlib.Path(__file__).parents[1]


def test_the_method_table_is_made_from_the_recipes():
    # Fails when a recipe was added or changed: run `python docs/method_table.py`.
    command = [sys.executable, "docs/method_table.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_file_that_the_docs_send_to_is_there():
    text = (ROOT / "docs" / "where.md").read_text()
    files = [name for name in re.findall(r"`([\w./]+)`", text) if "/" in name]
    assert len(files) > 10
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_every_extra_that_is_named_is_there():
    # An extra that went away took the check of the lower bounds with it.
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())
    known = set(extras["project"]["optional-dependencies"])
    files = [*ROOT.glob("*.*"), *(ROOT / ".github/workflows").glob("*.yml")]
    for folder in ("rljax", "experiments", "docs", "tpu", "tests"):
        files += [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]
    named = set()
    for file in files:
        text = file.read_text(errors="ignore") if file.is_file() else ""
        for found in re.findall(r"rljax\[([\w,]+)\]", text):
            named |= set(found.split(","))
        named |= set(re.findall(r'optional-dependencies"\]\["(\w+)"', text))
    assert {"real", "track"} <= named <= known, named - known


def test_the_command_for_your_own_model_has_all_it_needs(monkeypatch):
    # Only the folder is missing; it once lacked a number that its recipe requires.
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    line = next(x for x in text.splitlines() if x.startswith("python -m experiments."))
    program, *flags = shlex.split(line)[2:]
    assert program == "experiments.train" and "--algorithm" in flags
    monkeypatch.setattr(sys, "argv", [program, *flags])
    with pytest.raises(SystemExit, match="must be a local folder, got 'DIR'"):
        train.main()


def test_the_ten_lines_of_the_readme_run():
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    names = {}
    exec(code, names)
    assert names["mine"].init() == ((((), ()),), ((),))
