"""The peak memory of a whole run: process, state, its copy, and programs."""

import pathlib
import re
from typing import NamedTuple

from rljax.plan import cost
from rljax.program import Program


class Peak(NamedTuple):
    """Peak bytes of a run, by purpose.

    They are those of one accelerator, or, on CPU devices, of this whole process.

    process: memory of this process without arrays: Python, libraries, tokenizer,
      problems, and the compiler at its peak; 0 on an accelerator.
    state: parameters, optimiser state, other state, and the prompts.
    copy: of the state on the host, while a checkpoint is written; 0 on an accelerator.
    programs: name -> bytes that the program takes beside the state; one runs at a time.
    """

    process: int
    state: int
    copy: int
    programs: dict[str, int]

    @property
    def wanted(self) -> int:
        """Bytes that the run needs in addition to this process."""
        return self.total - self.process

    @property
    def total(self) -> int:
        """Bytes of everything, with the largest program."""
        return self.process + self.state + self.copy + max(self.programs.values())


def peak(program: Program, step: cost.Memory, *, on_host: bool) -> Peak:
    """The peak memory of a run.

    Args:
      program: of the run.
      step: memory of a training step on one device.
      on_host: whether the devices are CPUs, which share this process's memory.
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
    if not on_host:
        return Peak(0, devices * state, 0, programs)
    _import_the_rest()
    return Peak(resident(), devices * state, cost.num_bytes(program.state), programs)


def _import_the_rest() -> None:
    """Imports what a run imports after its start.

    It may be much: tensorboardX imports torch if there is one.
    """
    import matplotlib.pyplot  # noqa: F401
    from orbax.checkpoint import v1  # noqa: F401
    from tensorboardX.proto import event_pb2  # noqa: F401


def resident() -> int:
    """Peak resident bytes of this process; 0 if the system does not say."""
    try:
        text = pathlib.Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", text)
    return 1024 * int(found[1]) if found else 0
