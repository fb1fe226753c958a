"""The run to launch, and helpers that write shell scripts."""

import re
import shlex
from typing import NamedTuple

from tpu.chips import Slice

# Folder of the code on a machine and in a container.
CODE = "rljax"


class Job(NamedTuple):
    """A run to launch.

    place: the slice, or GPUs.
    name: of machines and run; lower-case letters, digits and dashes.
    module, flags: the command is `python -m MODULE FLAGS`; targets add the run folder.
    head: lines with predicted memory, time and cost, for the head of each file.
    project, zone: of Google Cloud.
    runs: where run folders are kept: gs://BUCKET, or a folder that all hosts see.
    image: of the container.
    spot: whether to use spot machines, which are cheaper and may be taken away.
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
        """Raises ValueError if the target cannot launch the job.

        Args:
          tpu: whether the target has TPUs; otherwise it has GPUs.
          via: name of the target.
        """
        if self.place.is_tpu != tpu:
            chips = "TPUs" if tpu else "GPUs"
            other = "slurm or skypilot" if tpu else "queued, tpu-vm, xpk or jobset"
            raise ValueError(
                f"--via {via} must have a --topology of {chips}, got {self.place}; take"
                f" --via {other}."
            )

    @property
    def spot_flag(self) -> list[str]:
        """["--spot"] for spot machines, else []."""
        return ["--spot"] if self.spot else []

    def comments(self, mark: str = "#") -> str:
        """The head as comment lines."""
        return "\n".join(f"{mark} {line}".rstrip() for line in self.head)

    def begun(self) -> str:
        """The command that starts or resumes the run."""
        folder = f"{self.runs}/{self.name}"
        words = (self.module, *self.flags, "--run-dir", folder, "--resume")
        return f"tpu/run.sh {quoted(words)}"


def check_name(name: str) -> None:
    """Raises ValueError if Google Cloud or Kubernetes would refuse the name."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise ValueError(
            "--name must begin with a letter, hold at most 40 characters of a-z, 0-9"
            f" and -, and not end with -, got {name!r}; choose another."
        )


def quoted(words) -> str:
    """Words quoted for a shell."""
    return " ".join(shlex.quote(word) for word in words)


def command(*words: str) -> str:
    """A command of a script; long ones have one word per line."""
    line = quoted(words)
    if len(line) <= 78:
        return line
    flags = [word.startswith("-") for word in words]
    first = flags.index(True) if any(flags) else len(words)
    lines = [quoted(words[:first]), *(shlex.quote(word) for word in words[first:])]
    return " \\\n    ".join(lines)


def beside(file: str) -> str:
    """The shell expression for a file in the folder of the script."""
    return f'"$(dirname "$0")/{file}"'


def script(job: Job, cases: dict[str, str]) -> str:
    """A shell script whose first argument chooses one of `cases`: name -> commands."""
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
