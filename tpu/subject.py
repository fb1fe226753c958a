"""Makes the experiment to compile, with any model shape and any prompt sizes."""

import dataclasses
import importlib
import pkgutil
from typing import Any

import jax
import numpy as np
import tyro

import experiments
from experiments import assemble, formats, problems, train
from rljax import mesh
from rljax.experiment import Experiment
from rljax.model import shapes
from rljax.plan import cost
from rljax.run.phase import Stream
from rljax.spread import on_devices
from rljax.types import Prompts


def find_experiment(
    experiment: str, flags: list[str], shape: str | None = None
) -> Experiment:
    """The last experiment that a module's `build` returns.

    Args:
      experiment: name of a module of `experiments`.
      flags: of its configuration.
      shape: a known model that replaces its own; for `train` only.

    Raises:
      ValueError: if there is no such module or model, or the module has no `build`.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(experiments.__path__))
    module = None
    if experiment in names:
        module = importlib.import_module(f"experiments.{experiment}")
    if module is None or "build" not in vars(module):
        raise ValueError(
            "--experiment must name a module of experiments/ with a function"
            " build(config) -> list[rljax.experiment.Experiment], got"
            f" {experiment!r}; there are {', '.join(names)}."
        )
    prog = f"python -m tpu.compile --experiment {experiment}"
    if shape is None:
        return module.build(tyro.cli(module.Config, args=flags, prog=prog))[-1]
    decoder = shapes.named(shape)
    if module is not train:
        raise ValueError(
            f"--model {shape} must go with --experiment train, got {experiment}, which"
            " has its own model; leave --model out."
        )
    few = train.Config(
        num_prompts=16, num_validation=8, num_test=8, dtype="bfloat16", remat="layers"
    )
    config = tyro.cli(train.Config, default=few, args=flags, prog=prog)
    small, task = problems.build(config, None)
    made = formats.new(config, decoder, small.tokenizer)
    return assemble.experiment(config, made, task)


@dataclasses.dataclass(frozen=True)
class _Resized:
    """A stream with another number and length of prompts; the tokens are zeros.

    num_prompts, num_tokens: P and S; None: those of `stream`.
    """

    stream: Stream
    num_prompts: int | None
    num_tokens: int | None

    def __next__(self) -> Prompts:
        batch = next(self.stream)
        K, P, S = batch.tokens.shape
        rows = np.arange(P if self.num_prompts is None else self.num_prompts) % P
        batch = jax.tree.map(lambda x: x[:, rows], batch)
        tokens = np.zeros((K, len(rows), self.num_tokens or S), batch.tokens.dtype)
        return batch.replace(tokens=tokens)

    def get_state(self):
        return self.stream.get_state()

    def set_state(self, state):
        self.stream.set_state(state)


def spread(
    made: Experiment,
    devices: list[jax.Device],
    *,
    sizes: str | None = None,
    num_prompts: int | None = None,
    prompt_tokens: int | None = None,
) -> Experiment:
    """The experiment on a mesh of all devices.

    Args:
      made: the experiment.
      devices: of the mesh.
      sizes: of the mesh, as `--mesh` takes them; None: all along `fsdp` for a large
        model, else along `data`.
      num_prompts, prompt_tokens: P and S; None: the experiment's.

    Raises:
      ValueError: if the mesh does not divide the devices, prompts or heads.
    """
    stream: Any = _Resized(made.prompts, num_prompts, prompt_tokens)
    made = dataclasses.replace(made, prompts=stream)
    if len(devices) == 1:
        return dataclasses.replace(made, mesh=mesh.make(devices))
    axes = {} if sizes is None else mesh.parse(sizes)
    if sizes is None:
        num_bytes = cost.num_bytes(made.model.shapes())
        axes = {mesh.FSDP if num_bytes > mesh.LARGE else mesh.DATA: len(devices)}
    return on_devices([made], axes, devices)[0]
