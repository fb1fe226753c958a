"""The memory of a whole run: of the process, the state, its copy, and each program."""

import pathlib
import re
from typing import NamedTuple

from rljax.plan import cost
from rljax.program import Program


class Peak(NamedTuple):
    """Bytes that a run takes at its largest: of one device, or where the devices are
    this host's, of all that are in this process.

    process: what this process takes that is no array: Python, libraries, tokenizer,
      problems, and what compiling left behind. 0 on a device of its own.
    state: parameters, optimiser and the rest, and the prompts.
    copy: of the state, on the host, while a checkpoint is written.
    programs: by name, what each takes beside the state; one runs at a time.
    """

    process: int
    state: int
    copy: int
    programs: dict[str, int]

    @property
    def wanted(self) -> int:
        """Beside this process."""
        return self.total - self.process

    @property
    def total(self) -> int:
        return self.process + self.state + self.copy + max(self.programs.values())


def peak(program: Program, step: cost.Memory, *, on_host: bool) -> Peak:
    """The memory of a run.

    Args:
      step: of a training step, on a device.
      on_host: whether the device's memory is this process's.
    """
    devices = 1
    if on_host and program.place is not None:
        devices = len(program.place.local_devices)
    state = step.parameters + step.optimizer + step.rest
    programs = {"training": step.total - state}
    for name in program.others:
        found = cost.compiled_memory(program.compile(name))
        programs[name] = found["temporaries"] + found["outputs"] + found["code"]
    programs = {name: devices * size for name, size in programs.items()}
    copy = cost.num_bytes(program.state) if on_host else 0
    return Peak(resident() if on_host else 0, devices * state, copy, programs)


def resident() -> int:
    """Bytes of this process that are in memory; 0 where nobody says."""
    try:
        text = pathlib.Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else 0
