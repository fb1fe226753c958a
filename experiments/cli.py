"""The command line of all experiments: flags, the run folder, the XLA cache."""

import dataclasses
import datetime
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NoReturn

import jax
import tyro

from experiments import track
from rljax import experiment, mesh, processes, spread
from rljax import program as step
from rljax.plan import show
from rljax.run import cluster

# Errors with a message for the user, caused by a configuration, a file or the machine.
# JAX raises its own type for insufficient memory.
_EXPECTED = (
    *(ValueError, OSError, FloatingPointError, MemoryError),
    jax.errors.JaxRuntimeError,
)

# Fields that a resume may change, because no number of the training depends on them.
_FREE = frozenset({"evaluate_every", "checkpoint_every", "keep", "num_workers"})

_FLAT = tyro.conf.arg(name="")  # no prefix before the names of the fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
    """How to run an experiment; nothing here changes a number of the run."""

    run_dir: str | None = None
    """Folder of the run, on a disk or in a bucket (gs://...). Default: a new one under
    runs/, or with --resume the newest there."""
    resume: bool = False
    """Continue from the newest checkpoint of the run folder. Only flags that change no
    number of the training may differ: --num-steps if --schedule-steps is given,
    --evaluate-every, --checkpoint-every, --keep, --num-workers."""
    quick: bool = False
    """Use tiny sizes: the whole experiment in under a minute, for trying and for CI."""
    plan: bool = False
    """Print the arithmetic, memory and time of a training step, and run nothing. If it
    does not fit, print what would."""
    mesh: str | None = None
    """Devices along the axes data, fsdp, expert and tensor, such as
    data=2,fsdp=4,tensor=2. Default: as many devices as divide the prompts."""
    sampler_mesh: str | None = None
    """Mesh of the first devices, which then only sample, --staleness updates ahead of
    the learner. --mesh then describes the other devices."""
    profile: bool = False
    """Write a trace of the second and third dispatch to `profile` in the run folder,
    for xprof. Its scopes are sample, prefill, decode, verify, credit and update."""
    track: Literal["wandb", "trackio"] | None = None
    """Also log metrics and completions there, as a run with the name of the run folder.
    Needs rljax[track]."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that a second start is
    fast."""


def main(
    name: str,
    build: Callable[[Any], Sequence[experiment.Experiment]],
    default: Any,
    quick: Any,
    text: str,
) -> None:
    """Parses the command line and runs, or plans, what `build(config)` returns.

    Args:
      name: of the experiment, for the default run folder.
      build: config -> experiments, to run in order; must refuse wrong numbers itself.
      default: config without flags, a frozen dataclass of numbers.
      quick: config that --quick starts from; further flags change it.
      text: printed by --help above the flags; its first line is the report's title.
    """

    def run(config: Any, run_dir: pathlib.Path, launch: Launch) -> Any:
        numbers, free = dataclasses.asdict(config), _FREE
        if "schedule_steps" in numbers:
            # With a recorded schedule, num_steps no longer affects the learning rate.
            numbers["schedule_steps"] = numbers["schedule_steps"] or config.num_steps
            free = _FREE | {"num_steps"}
        stages = on_devices(build(config), launch.mesh, launch.sampler_mesh)
        own_name = str(run_dir).rstrip("/").rpartition("/")[2]
        with track.tracked(
            launch.track, own_name, numbers, resume=launch.resume
        ) as writers:
            return experiment.run(
                stages,
                run_dir,
                config=numbers,
                title=text.splitlines()[0],
                resume=launch.resume,
                may_change=free & numbers.keys(),
                profile=launch.profile,
                writers=writers,
            )

    def planned(config: Any, sizes: str | None) -> step.Program:
        return on_devices(build(config), sizes, None)[-1].program()

    start(name, run, default, quick, planned, text)


def on_devices(
    stages: Sequence[experiment.Experiment], sizes: str | None, sampler: str | None
) -> list[experiment.Experiment]:
    """The experiments on their meshes; prints the meshes if there are several devices.

    Args:
      stages: the experiments, in order.
      sizes: of --mesh.
      sampler: of --sampler-mesh.
    """
    learner, own = (None if x is None else mesh.parse(x) for x in (sizes, sampler))
    made = spread.on_devices(stages, learner, sampler=own)
    if jax.device_count() > 1:
        beside = "" if own is None else f", and {sampler} for the sampler"
        print(
            f"mesh: {mesh.text(made[-1].mesh)}{beside}, of {jax.device_count()} devices"
        )
    return made


def start(
    name: str,
    main: Callable[..., Any],
    default: Any,
    quick: Any,
    program: Callable[[Any, str | None], step.Program] | None = None,
    text: str | None = None,
):
    """Parses the command line and calls `main(config, run_dir, launch)`.

    Args:
      name: of the experiment, for the default run folder.
      main: runs the experiment.
      default: config without flags, a flat frozen dataclass of numbers.
      quick: config that --quick starts from; further flags change it.
      program: (config, --mesh) -> the program to plan; None: --plan is refused.
      text: printed by --help above the flags; None: the docstring of `main`.

    Returns:
      What `main` returns.
    """
    config = quick if "--quick" in sys.argv else default

    def flags(
        config: Annotated[type(default), _FLAT] = config,  # type: ignore
        launch: Annotated[Launch, _FLAT] = Launch(),
    ):
        return config, launch

    config, launch = tyro.cli(
        flags,
        prog=f"python -m experiments.{name}",
        description=main.__doc__ if text is None else text,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if launch.compilation_cache:
        use_compilation_cache()
    try:
        with cluster.joined():
            return _started(name, main, program, config, launch)
    except _EXPECTED as error:
        fail(error)


def _started(name, main, program, config, launch: Launch):
    if launch.plan:
        if program is None:
            raise ValueError(
                "--plan must have an experiment that names its program, got one that"
                " does not; pass program= to cli.start."
            )
        if launch.sampler_mesh is not None:
            raise ValueError(
                "--plan must come without --sampler-mesh, as it plans devices that"
                f" sample and learn by turns, got {launch.sampler_mesh}; leave it out."
            )
        return show.show_plan(lambda config: program(config, launch.mesh), config)

    def folder() -> str:
        return str(launch.run_dir or _default_folder(name, launch))

    run_dir = processes.from_leader("the run folder's name", folder)
    in_bucket = "://" in run_dir  # pathlib would turn :// into :/
    return main(config, run_dir if in_bucket else pathlib.Path(run_dir), launch)


def fail(error: BaseException) -> NoReturn:
    """Ends the process with the error's text; raises it if RLJAX_TRACEBACK is set."""
    if "RLJAX_TRACEBACK" in os.environ:
        raise error
    what = str(error) or type(error).__name__
    sys.exit(f"error: {what}\n(set RLJAX_TRACEBACK=1 for the traceback)")


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder, small ones included."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(home).expanduser() / "rljax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _default_folder(name: str, launch: Launch) -> pathlib.Path:
    runs = pathlib.Path("runs")
    if launch.resume:
        found = sorted(runs.glob(f"{name}-*/config.json"))
        if not found:
            raise SystemExit(
                f"error: --resume found no run of {name} under {runs}/; pass --run-dir."
            )
        return found[-1].parent
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return runs / f"{name}-{now}"
