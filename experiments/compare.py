"""Algorithms side by side on column addition, with learning rates tuned for each.

All seeds and learning rates of an algorithm train as one vmapped program, from the same
warm starts and on the same prompts as those of the others. Writes table.md,
results.json, curves.png and schedule.png into the run folder.

Result: see LOG.md.
Run:   python -m experiments.compare --setting hard --tune 4e-4,8e-4,1.6e-3
       python -m experiments.compare --warm gft,sft,sft_right,dft --algorithms dr_grpo
Smoke: python -m experiments.compare --quick
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from experiments import arithmetic, cli, compare_report, population
from experiments import column_addition as addition
from experiments.task import Task, build_addition
from rljax import advantage as adv
from rljax import algorithms, folder, loss, mix
from rljax.advantage import Algorithm
from rljax.sample import Sampler, sampler
from rljax.types import Prompts, Source


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


SETTINGS = {
    "demo": Config(),
    # A quarter of the digits slip: after the warm start pass@1 is about 0.05, pass@8
    # 0.3 and the entropy 1.0 nat (seed 0). FADE's alpha then climbs from 1.5 to 3 by
    # step 40; delta leaves 1 when the running average of the entropy has halved.
    "hard": Config(setting="hard", slip=0.25, num_steps=320),
}

QUICK = {
    "algorithms": "fade,grpo",
    "seeds": 2,
    "num_layers": 1,
    "d_model": 32,
    "num_heads": 2,
    "d_ff": 32,
    "warm_steps": 60,
    "warm_prompts": 32,
    "stage_steps": 4,
    "num_steps": 8,
    "num_prompts": 8,
    "num_samples": 4,
    "evaluate_every": 4,
    "num_validation": 16,
    "num_test": 32,
    "tune": "4e-4,8e-4",
}

ALGORITHMS: dict[str, Callable[[Config], Algorithm]] = {
    "fade": lambda c: algorithms.fade(clip=c.clip),
    "grpo": lambda c: algorithms.grpo(clip=c.clip),
    "dr_grpo": lambda c: algorithms.dr_grpo(c.max_tokens, clip=c.clip),
    "power": lambda c: algorithms.power(2.0, clip=c.clip),
    "asym_grpo": lambda c: algorithms.asym_grpo(0.5, clip=c.clip),
    "stapo": lambda c: algorithms.stapo(low=c.clip),
}


def sft_right() -> Algorithm:
    """SFT on the stored answers that the verifier accepts: what GFT's verifier alone
    is worth."""
    kept = adv.chain(adv.mixing.keep_stored(), adv.keep_correct(), adv.token_mean())
    return adv.algorithm(sft=adv.Term(loss.nll(), weighting=kept))


OBJECTIVES: dict[str, Callable[[], Algorithm]] = {
    "gft": algorithms.gft,
    "sft": algorithms.sft,
    "sft_right": sft_right,
    "dft": algorithms.dft,
}


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
            stop_tokens=(task.tokenizer.eos_token_id,),
        )

    keys = population.keys(config.seed, config.seeds)
    return World(config, task, keys, judge(task.validation), judge(task.test), run_dir)


def careless(config: Config, task: Task):
    """(prompts, rng) -> prompts with careless demonstrations: carries are forgotten,
    and then digits slip."""
    digits = np.array(task.tokenizer.convert_tokens_to_ids(list("0123456789")))

    def demonstrate(prompts: Prompts, rng: np.random.Generator) -> Prompts:
        prompts = addition.demonstrate(prompts, rng, config.forget)
        written = prompts.data["completion"]
        slips = (rng.random(written.shape) < config.slip) & np.isin(written, digits)
        written = np.where(slips, rng.choice(digits, written.shape), written)
        return prompts.replace(
            data={**prompts.data, "completion": written.astype(np.int32)}
        )

    return demonstrate


def two_answers(config: Config, task: Task):
    """(prompts, rng) -> prompts that store a right and a careless answer."""
    demonstrate = careless(config, task)

    def store(prompts: Prompts, rng: np.random.Generator) -> Prompts:
        right = addition.demonstrate(prompts, rng, 0.0).data
        other = demonstrate(prompts, rng).data
        source = np.array([Source.DEMONSTRATION, Source.TEACHER], np.int32)
        answers = {
            "answers": np.stack([right["completion"], other["completion"]], -2),
            "answers_mask": np.stack(
                [right["completion_mask"], other["completion_mask"]], -2
            ),
            "answers_source": np.tile(source, (len(prompts.id), 1)),
        }
        return prompts.replace(data={**prompts.data, **answers})

    return store


def warm_start(world: World) -> Any:
    """Parameters [S, ...] after imitation; made once per run folder."""
    config, task = world.config, world.task
    path = world.run_dir / "warm.npz"
    if not path.exists():
        print(f"warm start, {config.warm_steps} steps for {config.seeds} seeds")
        batches = _batches(
            world, 1, config.warm_prompts, careless(config, task), config.warm_steps
        )
        learner = arithmetic.warm_learner(base(config), task.policy)
        params = population.imitate(learner, task.policy.init, world.keys, *batches)
        population.save(path, params)
    return population.load(path)


def _batches(world, part, num_prompts, map_fn, num_steps):
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
        stop_tokens=(world.task.tokenizer.eos_token_id,),
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
        rates = numbers(config.tune) or (config.learning_rate,)
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
            *_batches(world, part, config.num_prompts, map_fn, num_steps),
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


def warm_stage(world: World, params: Any) -> dict[str, Any]:
    """Each objective of --warm from the same start; writes their tables.

    All see the same prompts with the same two stored answers, for the same number of
    optimiser steps; GFT fills its groups with its own samples.
    """
    config = world.config
    stored = mix.stored()
    outcomes, ends = {}, {}
    for name in names(config.warm, OBJECTIVES, "--warm"):
        own = samples(world, config.num_samples - 2) if name == "gft" else None
        outcomes[name], ends[name] = compete(
            world,
            name,
            OBJECTIVES[name](),
            params,
            sample=stored if own is None else mix.joined(own, stored),
            part=2,
            map_fn=two_answers(config, world.task),
            num_steps=config.stage_steps,
        )
    print(compare_report.write(outcomes, world.run_dir / "warm", levels(config)))
    return ends


def names(text: str, known: dict, flag: str) -> list[str]:
    """The names in a comma-separated list."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [name for name in found if name not in known]
    if wrong or len(set(found)) < len(found):
        raise ValueError(
            f"{flag} must name some of {', '.join(known)}, each once, got {text!r}."
        )
    return found


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part.strip())


def levels(config: Config) -> tuple[float, ...]:
    return numbers(config.levels)


def check(config: Config) -> list[str]:
    """The algorithms asked for; raises ValueError for numbers that do not fit."""
    found = names(config.algorithms, ALGORITHMS, "--algorithms")
    if not found or config.seeds < 1:
        raise ValueError("a comparison needs an algorithm and a seed; name some.")
    whole = {
        "--warm-steps": (config.warm_steps, config.evaluate_every),
        "--stage-steps": (config.stage_steps, config.evaluate_every),
        "--num-steps": (config.num_steps, config.evaluate_every),
        "--num-test": (config.num_test, config.num_validation),
    }
    for flag, (number, part) in whole.items():
        if number < part or number % part:
            raise ValueError(
                f"{flag} must be a multiple of {part} (--evaluate-every for steps,"
                f" --num-validation for problems), got {number}."
            )
    if "gft" in names(config.warm, OBJECTIVES, "--warm") and config.num_samples < 3:
        raise ValueError(
            "gft fills groups of 2 stored answers with its own samples, so"
            f" --num-samples must be at least 3, got {config.num_samples}."
        )
    return found


def main(
    config: Config, run_dir: pathlib.Path, resume: bool
) -> dict[str, compare_report.Outcome]:
    """Compares algorithms on column addition: all seeds of each in one program,
    learning rates tuned on validation problems, bootstrap intervals on test problems.
    """
    found = check(config)
    run_dir = folder.open_run(run_dir, config, resume=resume)
    world = build(config, run_dir)
    params = warm_start(world)
    starts = {"": params}
    if config.warm:
        ends = warm_stage(world, params)
        starts = {f"{name}+": end for name, end in ends.items()}
    outcomes = {
        f"{start}{name}": compete(
            world,
            f"{start}{name}",
            ALGORITHMS[name](config),
            begin,
            sample=samples(world, config.num_samples),
            part=3,
            map_fn=lambda prompts, rng: prompts,
            num_steps=config.num_steps,
        )[0]
        for start, begin in starts.items()
        for name in found
    }
    print(compare_report.write(outcomes, run_dir, levels(config)))
    print(f"run folder: {run_dir}")
    return outcomes


def setting(arguments: list[str]) -> Config:
    """The setting that the command line names: what its other flags change."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--setting", default="demo")
    name = parser.parse_known_args(arguments)[0].setting
    return SETTINGS.get(name, SETTINGS["demo"])  # the real parser refuses others


if __name__ == "__main__":
    chosen = setting(sys.argv[1:])
    cli.start("compare", main, chosen, dataclasses.replace(chosen, **QUICK))
