"""Writes the results of a benchmark beside it: NAME.md, NAME.json and NAME.png."""

import json
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import jax

HERE = pathlib.Path(__file__).parent


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats have four significant digits."""

    def text(cell):
        return f"{cell:.4g}" if isinstance(cell, float) else str(cell)

    lines = [head, ["---"] * len(head), *([text(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(name: str, title: str, body: str, data: Any, figure=None) -> None:
    """Prints the body, and writes it to files with the command and the machine.

    Args:
      name: of the files.
      title: of the page.
      body: Markdown.
      data: for NAME.json; JSON-able.
      figure: a matplotlib figure for the end of the page, or None.
    """
    device = jax.devices()[0]
    facts = {
        "command": command(sys.orig_argv[1:]),
        "device": f"{device.platform} ({device.device_kind})",
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}",
        "jax": jax.__version__,
    }
    head = (
        f"# {title}\n\nWritten by `{facts['command']}`: {facts['device']},"
        f" {facts['machine']}, jax {facts['jax']}."
    )
    if figure is not None:
        figure.savefig(HERE / f"{name}.png", dpi=120)
        body += f"\n\n![{title}]({name}.png)"
    print(body, flush=True)
    (HERE / f"{name}.md").write_text(f"{head}\n\n{body}\n")
    found = json.dumps({"facts": facts, "results": data}, indent=1)
    (HERE / f"{name}.json").write_text(found + "\n")


def command(arguments: Sequence[str]) -> str:
    """The command line, quoted, without the folders of this machine.

    Of a path that leads out of the repository only the name is kept.
    """
    return shlex.join(["python", *map(_without_folders, arguments)])


def _without_folders(argument: str) -> str:
    flag, equals, value = argument.rpartition("=")
    path = pathlib.PurePath(value)
    outside = path.is_absolute() or ".." in path.parts
    return f"{flag}{equals}{path.name}" if outside else argument
