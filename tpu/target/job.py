"""What is launched, in words that all targets share."""

import re
import shlex
from typing import NamedTuple

from tpu.chips import Slice

# Where the code stands on a machine and in a container.
CODE = "rljax"


class Job(NamedTuple):
    """A run to launch.

    place: the slice, or GPUs.
    name: of machines and run; lower case, digits and dashes.
    module, flags: what runs, `python -m MODULE FLAGS`; the run folder is added.
    head: lines of prediction, for the head of each file.
    project, zone: of Google Cloud. runs: where run folders are kept, gs://BUCKET or a
      folder that all hosts see. image: of a container. spot: cheaper, and may be taken
      away.
    """

    place: Slice
    name: str
    module: str
    flags: tuple[str, ...]
    head: tuple[str, ...]
    project: str
    zone: str
    runs: str
    image: str
    spot: bool

    def check(self, *, tpu: bool, via: str) -> None:
        """Raises ValueError for what the target cannot launch."""
        if self.place.is_tpu != tpu:
            chips = "TPUs" if tpu else "GPUs"
            other = "slurm or skypilot" if tpu else "queued, tpu-vm, xpk or jobset"
            raise ValueError(
                f"--via {via} must have a --topology of {chips}, got {self.place}; take"
                f" --via {other}."
            )

    @property
    def spot_flag(self) -> list[str]:
        """--spot, where it is asked for."""
        return ["--spot"] if self.spot else []

    def comments(self, mark: str = "#") -> str:
        """The head as comments."""
        return "\n".join(f"{mark} {line}".rstrip() for line in self.head)

    def begun(self) -> str:
        """The command that begins the run, or goes on with it."""
        folder = f"{self.runs}/{self.name}"
        words = (self.module, *self.flags, "--run-dir", folder, "--resume")
        return f"tpu/run.sh {quoted(words)}"


def check_name(name: str) -> None:
    """Raises ValueError for what Google Cloud or Kubernetes take as no name."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise ValueError(
            "--name must begin with a letter and hold at most 40 of a-z, 0-9 and -,"
            f" with no - at the end, got {name!r}; choose another."
        )


def quoted(words) -> str:
    """Words for a shell."""
    return " ".join(shlex.quote(word) for word in words)


def command(*words: str) -> str:
    """A command of a script, a word a line where it is long."""
    line = quoted(words)
    if len(line) <= 78:
        return line
    flags = [word.startswith("-") for word in words]
    first = flags.index(True) if any(flags) else len(words)
    lines = [quoted(words[:first]), *(shlex.quote(word) for word in words[first:])]
    return " \\\n    ".join(lines)


def beside(file: str) -> str:
    """A file in the folder of the script, for a shell."""
    return f'"$(dirname "$0")/{file}"'


def script(job: Job, cases: dict[str, str]) -> str:
    """A script whose first argument says what to do; {name: commands}."""
    parts = [f"{name})\n  {_indented(text)}\n  ;;" for name, text in cases.items()]
    steps = " | ".join(cases)
    return (
        "#!/usr/bin/env bash\n"
        f"{job.comments()}\n#\n# Usage, from the top of the repository:"
        f" $0 {steps}\n"
        "set -euo pipefail\n"
        'case "${1:-}" in\n' + "\n".join(parts) + "\n*)\n"
        f'  echo "usage: $0 {steps}" >&2\n  exit 2\n  ;;\nesac\n'
    )


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")
