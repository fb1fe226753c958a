"""A sweep on column addition: the shared setup, and the training of one algorithm.

All seeds and learning rates of an algorithm train as one vmapped program.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import compare_report, optimizer, population, ranges
from rljax import check as library
from rljax.advantage import Algorithm
from rljax.model import Model
from rljax.policy import Policy
from rljax.rollout.sample import sampler
from rljax.task import Task, addition
from rljax.types import Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the comparison."""

    setting: Literal["demo", "hard"] = "demo"
    """Defaults of the other numbers. demo: those of experiments.addition. hard: RL
    starts from few right answers and high entropy, where FADE's schedule matters."""
    algorithms: str = "fade,grpo,dr_grpo,power,asym_grpo,stapo"
    """Names, comma-separated; the others' pass@1 is compared with the first one's."""
    warm: str = ""
    """Objectives of a second warm start before RL, comma-separated, of gft, sft,
    sft_right and dft; each algorithm then starts from the result of each."""
    seed: int = 0
    """The first seed, for parameters, data order and sampling."""
    seeds: int = 5
    """Number of seeds."""
    tune: str = ""
    """Learning rates, comma-separated: each algorithm gets the one with the best mean
    pass@1 on the validation problems. Default: --learning-rate."""
    learning_rate: float = 8e-4
    """Peak learning rate; 10 optimiser steps of warm-up, then linear decay to 10 %."""

    # The policy
    num_layers: int = 2
    """Layers of the decoder."""
    d_model: int = 64
    """Width of the decoder."""
    num_heads: int = 4
    """Attention heads."""
    d_ff: int = 128
    """Width of the feed-forward layers."""

    # Warm start, one for each seed
    warm_steps: int = 1000
    """Training steps of imitation."""
    warm_prompts: int = 128
    """Demonstrations per step."""
    warm_learning_rate: float = 3e-3
    """Peak learning rate; 30 steps of warm-up, then cosine decay to 5 %."""
    forget: float = 0.7
    """Probability that a demonstration forgets a carry that is due."""
    slip: float = 0.0
    """Probability that a digit of a demonstration is replaced by a random one."""
    stage_steps: int = 40
    """Training steps of each objective of --warm."""

    # Reinforcement learning
    num_steps: int = 240
    """Training steps."""
    num_prompts: int = 128
    """Prompts per step."""
    num_samples: int = 8
    """Rows per prompt: the group. For gft, 2 of them are stored answers."""
    max_tokens: int = 12
    """Longest completion, tokens."""
    num_minibatches: int = 2
    """Optimiser steps per rollout batch."""
    gradient_clip: float = 1.0
    """Maximum global norm of a gradient."""
    clip: float = 0.2
    """Ratios further than this from 1 are clipped; STAPO's upper bound is its own."""

    # Evaluation
    evaluate_every: int = 20
    """Training steps between evaluations, and per call of the compiled program."""
    num_validation: int = 256
    """Problems for choosing learning rates; also the test problems evaluated at a
    time."""
    num_test: int = 1024
    """Problems for the reported results."""
    levels: str = "0.5,0.8,0.9"
    """Values of pass@1, comma-separated; the steps to reach them are reported."""


def check(config: Config) -> None:
    """Raises ValueError for numbers with which no sweep can start; builds nothing."""
    ranges.require(config)
    ranges.heads(config)
    ranges.problems(config)
    ranges.multiple(config, "num_prompts", "num_minibatches")
    library.count("--warm-steps", config.warm_steps)
    for name in ("warm_steps", "stage_steps", "num_steps"):
        ranges.multiple(config, name, "evaluate_every")
    library.count("--num-test", config.num_test)
    ranges.multiple(config, "num_test", "num_validation")
    ranges.tokens(config, "seeds", "num_prompts", "num_samples", "max_tokens")
    ranges.tokens(config, "seeds", "num_validation", "max_tokens")
    ranges.product(
        config, 2**31 - 1, "a 32-bit counter", "num_steps", "num_minibatches"
    )
    for rate in numbers("--tune", config.tune):
        library.number("--tune", rate, above=0, high=1)
    for level in numbers("--levels", config.levels):
        library.number("--levels", level, low=0, high=1)


class Setup(NamedTuple):
    """What all algorithms share.

    keys: key[S], of each seed.
    validation, test: params [R, S, ...] -> verdicts on the held-out problems.
    """

    config: Config
    task: Task
    model: Model
    policy: Policy
    keys: jax.Array
    validation: Callable[[Any], population.Verdicts]
    test: Callable[[Any], population.Verdicts]
    run_dir: pathlib.Path


def build(config: Config, run_dir: pathlib.Path) -> Setup:
    """The task, the model, the seeds and the evaluators."""
    task = addition.task(config.num_validation, config.num_test)
    model = addition.new_model(
        config.num_layers, config.d_model, config.num_heads, config.d_ff
    )
    policy = model.policy()

    def evaluator(prompts):
        return population.evaluator(
            policy,
            task.verify,
            prompts,
            size=config.num_validation,
            max_tokens=config.max_tokens,
            stop_tokens=model.stop_tokens,
        )

    return Setup(
        config,
        task,
        model,
        policy,
        population.keys(config.seed, config.seeds),
        evaluator(task.validation),
        evaluator(task.test),
        run_dir,
    )


def batches(setup, part, num_prompts, map_fn, num_steps):
    """An iterator over batches [S, K, P, ...], and the number of batches to take."""
    config = setup.config
    steps = config.evaluate_every
    made = population.streams(
        setup.task.train,
        range(config.seed, config.seed + config.seeds),
        part=part,
        num_prompts=num_prompts,
        steps=steps,
        map_fn=map_fn,
    )
    return made, num_steps // steps


def samples(setup: Setup, num: int) -> Sampler:
    """A sampler of `num` completions per prompt."""
    return sampler(
        setup.policy,
        num_samples=num,
        max_tokens=setup.config.max_tokens,
        stop_tokens=setup.model.stop_tokens,
    )


def train_population(
    setup: Setup,
    name: str,
    algorithm: Algorithm,
    params: Any,
    *,
    sample: Sampler,
    part: int,
    map_fn,
    num_steps: int,
) -> tuple[compare_report.Outcome, Any]:
    """Trains an algorithm with all seeds and learning rates, or loads its result.

    The result is kept in the run folder, so that a resume does not train it again.

    Args:
      setup: of the sweep.
      name: of the result's file.
      algorithm: to train.
      params: [S, ...], initial parameters.
      sample: rows of a group.
      part: number of the part of the run, for its own stream of prompts.
      map_fn: (prompts, rng) -> prompts, applied to each batch.
      num_steps: training steps.

    Args:
      part: number of this part of the run: its keys and data are its own.

    Returns:
      The outcome at the best learning rate, and its final parameters [S, ...].
    """
    config, task = setup.config, setup.task
    path = setup.run_dir / "outcomes" / f"{name}.npz"
    if not path.exists():
        rates = numbers("--tune", config.tune) or (config.learning_rate,)
        make_learner = population.learner(
            setup.policy,
            algorithm,
            lambda rate: optimizer.adamw(rate, config.gradient_clip),
            num_steps=num_steps,
            num_minibatches=config.num_minibatches,
        )
        history = population.train(
            population.Parts(setup.policy, sample, task.verify, make_learner),
            params,
            population.of_part(setup.keys, part),
            rates,
            *batches(setup, part, config.num_prompts, map_fn, num_steps),
            setup.test,
            lambda step, asked: print(
                f"{name}, step {step} of {num_steps}: test pass@1 by learning rate",
                ", ".join(f"{100 * x:.1f}" for x in asked[0].mean((1, 2, 3))),
            ),
        )
        valid = setup.validation(history.params)[0].mean((1, 2, 3))
        best = int(valid.argmax())
        outcome = compare_report.Outcome(
            rate=rates[best],
            tried={f"{r:g}": float(v) for r, v in zip(rates, valid, strict=True)},
            steps=np.array(history.steps),
            correct=np.stack([asked[0][best] for asked in history.asked]),
            greedy=np.stack([asked[1][best] for asked in history.asked]),
            metrics={k: v[best] for k, v in history.metrics.items()},
        )
        params = jax.tree.map(lambda x: x[best], history.params)
        path.parent.mkdir(exist_ok=True)
        population.save(path, {"outcome": outcome._asdict(), "params": params})
    stored = population.load(path)
    return compare_report.restored(stored["outcome"]), stored["params"]


def names(text: str, known: dict, flag: str) -> list[str]:
    """The names in a comma-separated list."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in found if name not in known]
    if wrong or len(set(found)) < len(found):
        raise ValueError(
            f"{flag} must name some of {', '.join(known)}, each once, got {text!r};"
            " separate the names by commas."
        )
    return found


def numbers(flag: str, text: str) -> tuple[float, ...]:
    """The numbers in a comma-separated list."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(
            f"{flag} must be numbers separated by commas, got {text!r}; write them as"
            " 4e-4,8e-4."
        ) from None


def levels(config: Config) -> tuple[float, ...]:
    """The values of pass@1 in --levels, as fractions."""
    return numbers("--levels", config.levels)
