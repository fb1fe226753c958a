"""An experiment as a value: what is trained, on what, and how it is evaluated.

    run([warm_start, reinforce], "runs/first", config=vars(config))

The plan, `--resume`, tables, the report and the saved policy depend only on this value,
not on the file that builds it. A warm start is an experiment before the main one.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rljax import decoupled, digest, keys, mesh, processes, program
from rljax.evaluate import (
    Estimate,
    Evaluation,
    Stage,
    farewell,
    kept,
    pass_at_k,
    report,
)
from rljax.evaluate.before import Before
from rljax.learn.update import Learner
from rljax.mesh import Layout
from rljax.model import Model
from rljax.policy import frozen, lora
from rljax.run import bucket, profiled, same, train
from rljax.run import run_dir as run_folder
from rljax.run.phase import COMPLETIONS, Phase, Stream
from rljax.run.writer import Writer
from rljax.task import Task
from rljax.types import Prompts, TrainState

_merged = jax.jit(lora.merged, static_argnums=1)


def _unchanged(params: Any, key: jax.Array | None = None) -> Any:
    del key
    return params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Training of a model on a task: a run, or one stage of a run.

    name: unique in a run; shown and recorded.
    model: where the initial parameters come from, and how a policy is saved.
    task: problems and verifier; a fingerprint of the problems is in config.json.
    act, learner, verify: the parts of a training step. Without `verify` the training is
      supervised.
    glue: `program.fused`, or `program.split` for a verifier in Python.
    ahead: runs the sampler ahead of the learner, see `decoupled`; `steps_per_dispatch`
      must then be 1. None samples and learns in turns.
    prompts: a stream of batches [K, P, ...].
    num_steps, steps_per_dispatch: training steps of the stage, and of one dispatch, K.
    evaluation: of the parameters that `decoder` returns, every `evaluate_every`
      training steps and at the end.
    enter_fn: (params, key) -> the parameters that this stage begins with, for example
      with a value head added. `params` are those of the model or of the previous stage.
    trains: names of a parameter -> whether it is trained. Other parameters have no
      gradients, no moments and no second copy. None trains all.
    export_fn: this stage's parameters -> the decoder's, for evaluation and saving.
    adapters: describes the LoRA adapters among them, which `export` merges; None: there
      are none.
    save_also: (run folder, last state), writes further files beside the policy, for
      example adapters.
    reference: whether `TrainState.reference` holds the parameters that this stage
      begins with.
    seed: of parameters and sampling.
    checkpoint_every, keep: see `run.train`.
    mesh: the devices; None is the default device.
    layout: how everything is spread over the mesh; None leaves it to `rljax.spread`.

    In a run of several experiments the last one's values count from `seed` on.
    """

    name: str = "rl"
    model: Model
    task: Task
    act: program.Act
    learner: Learner
    verify: Callable | None = None
    glue: Callable[..., program.Run] = program.fused
    ahead: decoupled.Ahead | None = None
    prompts: Stream
    num_steps: int
    steps_per_dispatch: int
    evaluation: Evaluation
    evaluate_every: int
    enter_fn: Callable[[Any, jax.Array], Any] = _unchanged
    trains: frozen.Trains | None = None
    export_fn: Callable[[Any], Any] = _unchanged
    adapters: lora.Lora | None = None
    save_also: Callable[[pathlib.Path, TrainState], None] | None = None
    reference: bool = False
    seed: int = 0
    checkpoint_every: int = 100
    keep: int = 3
    layout: Layout | None = None
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.ahead is not None and self.steps_per_dispatch != 1:
            raise ValueError(
                "a sampler that is ahead needs steps_per_dispatch=1, as sampling and"
                " learning are separate programs, got"
                f" {self.steps_per_dispatch}; set it to 1."
            )

    def begin(self, params: Any, key: jax.Array) -> TrainState:
        """The initial state, from the parameters of the model or the previous stage."""
        params = self.enter_fn(params, keys.stream(key, keys.Stream.PARAMETERS))
        fixed = {}
        if self.trains is not None:
            params, fixed["frozen"] = frozen.split(params, self.trains)
        reference = jax.tree.map(jnp.copy, params) if self.reference else None
        state = self.learner.init(params, key, reference, **fixed)
        if self.ahead is None:
            return state
        verify = self.verify if self._in_graph else None
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.batches()
        )
        early = decoupled.waiting(self.act, verify, state, batch, self.ahead.staleness)
        return state.replace(ahead=early)

    def decoder(self, state: TrainState) -> Any:
        """The decoder's parameters in a state of this experiment, with adapters."""
        return self.export_fn(frozen.joined(state.params, state.frozen))

    def export(self, state: TrainState) -> Any:
        """The same with the adapters merged, to be saved."""
        params = self.decoder(state)
        return params if self.adapters is None else _merged(params, self.adapters)

    def loop(self) -> program.Run:
        """A new loop: (state, prompts [K, P, ...]) -> (state, metrics)."""
        parts = self.act, self.learner, self.verify
        if self.ahead is None:
            return self.glue(*parts)
        return decoupled.loop(*parts, self.ahead, in_graph=self._in_graph)

    @property
    def placing(self) -> tuple[Mesh | None, Layout]:
        """The mesh, and what lies where on it."""
        return self.mesh, mesh.PLAIN if self.layout is None else self.layout

    @property
    def _in_graph(self) -> bool:
        return self.glue is not program.split

    def program(self) -> program.Program:
        """The experiment's programs and shapes, to plan a run; nothing is computed."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        place, layout = self.placing
        state = jax.eval_shape(self.begin, self.model.shapes(), key)
        decoder = jax.eval_shape(self.decoder, state)
        return program.Program(
            act=self.act,
            learner=self.learner,
            verify=self.verify,
            state=state,
            prompts=self.batches(),
            decoder=self.model.config,
            glue=self.glue,
            others={
                name: (fn, (decoder, _shapes(asked)))
                for name, (fn, asked) in self.evaluation.programs.items()
            },
            place=place,
            layout=layout,
        )

    def batches(self) -> Prompts:
        """The shapes of the prompts of a dispatch, [K, P, ...]; the stream stays."""
        place = self.prompts.get_state()
        batch = next(self.prompts)
        self.prompts.set_state(place)
        return _shapes(batch)


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def run(
    experiments: Sequence[Experiment],
    run_dir: str | os.PathLike,
    *,
    config: Mapping[str, Any],
    title: str = "A run",
    resume: bool = False,
    may_change: Collection[str] = (),
    profile: bool = False,
    writers: Sequence[Writer] = (),
) -> dict[str, Estimate]:
    """Runs experiments one after the other; each continues from the previous one.

    It writes config.json, metrics, completions, checkpoints, the last and the best
    policy and the report into the run folder, and prints tables of the policy before
    and after the last experiment.

    Args:
      experiments: stages of the run, at least one.
      run_dir: the run folder, on a file system or in a bucket (gs://...): see
        `run.bucket`.
      config: JSON-able values by name; a resumed run must have the same.
      title: of the report.
      resume: continue from the newest checkpoint in the folder.
      may_change: names in `config` that may differ in a resumed run.
      profile: write a trace of a few dispatches into the folder `profile`.
      writers: get the run's records as well; see `run.writer`.

    Returns:
      pass@1 on the test problems, by stage; empty if there are no test problems.

    Raises:
      ValueError: before the folder is made, if the experiments cannot be traced; and as
        `run_dir.open_run` and `train.train` do.
    """
    last = experiments[-1]
    with mesh.using(*last.placing):
        loops = [one.loop() for one in experiments]
        for one, loop in zip(experiments, loops, strict=True):
            require_traced(one, loop)
        task = last.task
        problems = digest.fingerprint((task.train, task.validation, task.test))
        made_of = {**config, "problems": problems}
        same.require_same_program(run_folder.plain(made_of))
        with (
            bucket.kept(run_dir, resume=resume) as place,
            run_folder.open_run(
                place.folder, made_of, resume=resume, may_change=may_change
            ) as folder,
        ):
            if processes.leads():
                state = last.program().state
                kept.keep_origin(folder, last.model, state, last.decoder, last.adapters)
            before = Before(folder)
            stages = phases(experiments, loops, before)
            if profile:
                stages = profiled.last_traced(stages, folder / "profile")
            state = train.train(
                stages,
                _start(experiments[0], last),
                folder,
                checkpoint_every=last.checkpoint_every,
                keep=last.keep,
                checkpoint_dir=place.checkpoint_dir,
                writers=(*place.writers, *writers),
            )
            return _finish(experiments, state, before, title)


def require_traced(experiment: Experiment, loop: program.Run | None = None) -> None:
    """Traces a training step, so that its parts raise before any file is written.

    The `loop` that is going to run is traced only once if it is given here.
    """
    made = experiment.program()
    whole = made.glue is program.fused and experiment.ahead is None
    if loop is None or not whole:
        loop = made.fused()
    jax.eval_shape(loop, made.state, made.prompts)


def phases(
    experiments: Sequence[Experiment], loops: Sequence[program.Run], before: Before
) -> list[Phase]:
    """The experiments as phases of the host loop.

    The policy that the last experiment begins with is tested, and `before` keeps the
    result. Of the last experiment's policies the best on validation is kept. `loops`
    are the `loop()`s of the experiments.
    """
    last = len(experiments) - 1
    placing = experiments[last].placing
    best = kept.Best(before.folder) if processes.leads() else None

    def evaluate(index, state):
        one, step = experiments[index], int(state.step)
        params = one.decoder(state)
        before_last = index == last and step == 0
        before_last |= index == last - 1 and step == one.num_steps
        if before_last and one.evaluation.test is not None:
            print(f"testing the policy before {experiments[-1].name} ...", flush=True)
            before.keep(one.evaluation.test(params)[0])
        before.write()  # in case the disk was full before
        metrics, completions = one.evaluation.validate(params)
        if index == last:
            facts = {"phase": one.name, "step": step}
            kept.offer(best, metrics, facts, lambda: one.export(state), one.model.save)
        return {**metrics, COMPLETIONS: [c.record() for c in completions]}

    def begin(index):
        one, previous = experiments[index], experiments[index - 1]

        def enter(state):
            key = keys.stream(state.key, keys.Stream.PHASE, index)
            return one.begin(previous.export(state), key)

        return mesh.in_shards(enter, *placing)

    def phase(i, one):
        run, stream = _fed(one, loops[i], placing)
        return Phase(
            name=one.name,
            run=run,
            stream=stream,
            num_steps=one.num_steps,
            steps_per_dispatch=one.steps_per_dispatch,
            evaluate=functools.partial(evaluate, i),
            evaluate_every=one.evaluate_every,
            **({"begin": begin(i)} if i else {}),
        )

    return [phase(i, one) for i, one in enumerate(experiments)]


def _fed(one: Experiment, run: program.Run, placing) -> tuple[program.Run, Stream]:
    """The stream, and the loop with its prompts put on devices.

    A decoupled loop puts prompts on its devices itself.
    """
    if one.ahead is not None:
        return run, decoupled.Early(one.prompts, one.ahead.staleness)
    devices, layout = placing

    def placed(state, prompts):
        return run(state, mesh.shard_prompts(prompts, devices, axis=1, layout=layout))

    return placed, one.prompts


def _start(first: Experiment, last: Experiment) -> TrainState:
    """The initial state of the first stage.

    One program makes keys, new parameters and the state. Parameters from files are read
    before, and the program consumes them.
    """
    read = None
    if not first.model.is_new:
        print("reading the model's weights ...", flush=True)
        read = mesh.place(first.model.init(None), *last.placing)

    def begin(params):
        key = jax.random.key(last.seed)
        if params is None:
            params = first.model.init(keys.stream(key, keys.Stream.PARAMETERS))
        return first.begin(params, keys.stream(key, keys.Stream.PHASE, 0))

    return mesh.in_shards(begin, *last.placing)(read)


def _finish(experiments, state, before: Before, title: str) -> dict[str, Estimate]:
    """Saves the policy, tests it and writes the report."""
    last, folder = experiments[-1], before.folder
    arrays = last.export(state), state
    kept.written(arrays, lambda whole: _save(last, folder, *whole))
    stages: dict[str, Stage] = {}
    completions, tables = [], []
    if last.evaluation.test is not None:
        if processes.leads() and (first := before.read()) is not None:
            stages[experiments[-2].name if len(experiments) > 1 else "before"] = first
        after = f"after {last.name}"
        print(f"testing the policy {after} ...", flush=True)
        stages[after], completions = last.evaluation.test(last.decoder(state))
        completions = [one._replace(stage=after) for one in completions]
        tables = last.evaluation.tables(stages)
    found = {name: pass_at_k(stage.correct, 1) for name, stage in stages.items()}
    told = processes.from_leader("pass@1", lambda: found)
    if not processes.leads():
        return {name: Estimate(*values) for name, values in told.items()}
    try:
        path = report.write_report(
            folder, title=title, tables=tables, completions=completions
        )
    except OSError as error:  # a full disk must not prevent the tables
        path = f"none, {error}; a resumed run writes it"
    farewell.show(folder, tables, completions, path)
    return found


def _save(last: Experiment, folder: pathlib.Path, params, state: TrainState) -> None:
    """Writes the last policy and the files of `save_also`."""
    if last.save_also is not None:
        last.save_also(folder, state)
    facts = {"phase": last.name, "step": last.num_steps}
    kept.put(
        folder, kept.LAST, functools.partial(last.model.save, params=params), facts
    )
