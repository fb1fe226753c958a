"""A contest on column addition: what all contenders share, and how one of them trains.

All seeds and learning rates of a contender train as one vmapped program.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import arithmetic, compare_report, population, ranges
from experiments import column_addition as addition
from experiments.task import Task, build_addition
from rljax import check as library
from rljax.advantage import Algorithm
from rljax.rollout.sample import Sampler, sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the comparison."""

    setting: Literal["demo", "hard"] = "demo"
    """Which numbers the others start from. demo: the main experiment's. hard: a start
    of few right answers and high entropy, where FADE's schedule moves."""
    algorithms: str = "fade,grpo,dr_grpo,power,asym_grpo,stapo"
    """Names, comma-separated; the others' pass@1 is compared with the first one's."""
    warm: str = ""
    """Objectives of a further warm start before RL, of gft, sft, sft_right, dft; each
    algorithm then starts from each of them."""
    seed: int = 0
    """The first seed, of parameters, data order and sampling."""
    seeds: int = 5
    """Number of seeds."""
    tune: str = ""
    """Learning rates, comma-separated: each algorithm gets the one with the best mean
    pass@1 on the validation problems; by default --learning-rate."""
    learning_rate: float = 8e-4
    """Peak; after 10 optimiser steps of warm-up it decays linearly to 10 %."""

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
    """Peak; after 30 steps of warm-up it decays as a cosine to 5 %."""
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
    """Rows per prompt, the group; of gft's, 2 are stored answers."""
    max_tokens: int = 12
    """Longest completion, tokens."""
    num_minibatches: int = 2
    """Optimiser steps per rollout batch."""
    gradient_clip: float = 1.0
    """Largest global norm of a gradient."""
    clip: float = 0.2
    """Ratios further than this from 1 are clipped; STAPO's upper bound is its own."""

    # Evaluation
    evaluate_every: int = 20
    """Training steps between evaluations, and per call of the compiled program."""
    num_validation: int = 256
    """Problems that learning rates are chosen by; test problems are asked so many at a
    time."""
    num_test: int = 1024
    """Problems that are reported."""
    levels: str = "0.5,0.8,0.9"
    """Values of pass@1 the steps to which are reported, comma-separated."""


def check(config: Config) -> None:
    """Raises ValueError for numbers that no contest can begin with; builds nothing."""
    ranges.require(config)
    ranges.heads(config)
    addition.check(config)
    ranges.multiple(config, "num_prompts", "num_minibatches")
    library.count("--warm-steps", config.warm_steps)
    for name in ("warm_steps", "stage_steps", "num_steps"):
        ranges.multiple(config, name, "evaluate_every")
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


class World(NamedTuple):
    """What all contenders share."""

    config: Config
    task: Task
    keys: jax.Array
    validation: Callable[[Any], population.Asked]
    test: Callable[[Any], population.Asked]
    run_dir: pathlib.Path


def base(config: Config) -> arithmetic.Config:
    """The main experiment's config, for its builders."""
    return arithmetic.Config(
        num_layers=config.num_layers,
        d_model=config.d_model,
        num_heads=config.num_heads,
        d_ff=config.d_ff,
        warm_steps=config.warm_steps,
        warm_learning_rate=config.warm_learning_rate,
        gradient_clip=config.gradient_clip,
        num_validation=config.num_validation,
        num_test=config.num_test,
    )


def build(config: Config, run_dir: pathlib.Path) -> World:
    """The task, the seeds and the judges."""
    task = build_addition(base(config))

    def judge(prompts):
        return population.judge(
            task.policy,
            task.verify,
            prompts,
            size=config.num_validation,
            max_tokens=config.max_tokens,
            stop_tokens=task.stop_tokens,
        )

    keys = population.keys(config.seed, config.seeds)
    return World(config, task, keys, judge(task.validation), judge(task.test), run_dir)


def batches(world, part, num_prompts, map_fn, num_steps):
    """Batches of every seed, and how many of them make the steps."""
    config = world.config
    steps = config.evaluate_every
    made = population.streams(
        world.task.train,
        range(config.seed, config.seed + config.seeds),
        part=part,
        num_prompts=num_prompts,
        steps=steps,
        map_fn=map_fn,
    )
    return made, num_steps // steps


def samples(world: World, num: int) -> Sampler:
    return sampler(
        world.task.policy,
        num_samples=num,
        max_tokens=world.config.max_tokens,
        stop_tokens=world.task.stop_tokens,
    )


def compete(
    world: World,
    name: str,
    algorithm: Algorithm,
    params: Any,
    *,
    sample: Sampler,
    part: int,
    map_fn,
    num_steps: int,
) -> tuple[compare_report.Outcome, Any]:
    """Trains an algorithm's population; a result in the run folder is not made again.

    Returns:
      What it did at its best learning rate, and its parameters [S, ...] then.
    """
    config, task = world.config, world.task
    path = world.run_dir / "outcomes" / f"{name}.npz"
    if not path.exists():
        rates = numbers("--tune", config.tune) or (config.learning_rate,)
        make_learner = population.learner(
            task.policy,
            algorithm,
            lambda rate: arithmetic.optimizer(base(config), rate),
            num_steps=num_steps,
            num_minibatches=config.num_minibatches,
        )
        course = population.train(
            task.policy,
            sample,
            task.verify,
            make_learner,
            params,
            world.keys,
            rates,
            *batches(world, part, config.num_prompts, map_fn, num_steps),
            world.test,
            lambda step, asked: print(
                f"{name}, step {step} of {num_steps}: test pass@1 by learning rate",
                ", ".join(f"{100 * x:.1f}" for x in asked[0].mean((1, 2, 3))),
            ),
        )
        valid = world.validation(course.params)[0].mean((1, 2, 3))
        best = int(valid.argmax())
        outcome = compare_report.Outcome(
            rate=rates[best],
            tried={f"{r:g}": float(v) for r, v in zip(rates, valid, strict=True)},
            steps=np.array(course.steps),
            correct=np.stack([asked[0][best] for asked in course.asked]),
            greedy=np.stack([asked[1][best] for asked in course.asked]),
            metrics={k: v[best] for k, v in course.metrics.items()},
        )
        params = jax.tree.map(lambda x: x[best], course.params)
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
            " write them with commas between them."
        )
    return found


def numbers(flag: str, text: str) -> tuple[float, ...]:
    """The numbers in a comma-separated list."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(
            f"{flag} must be numbers with commas between them, got {text!r}; write"
            " them as 4e-4,8e-4."
        ) from None


def levels(config: Config) -> tuple[float, ...]:
    return numbers("--levels", config.levels)
