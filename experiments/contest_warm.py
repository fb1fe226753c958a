"""What contenders start from: imitation, and what further objectives made of it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import arithmetic, compare_report, contest, population
from experiments import column_addition as addition
from experiments.contest import Config, World
from experiments.task import Task
from rljax import advantage as adv
from rljax import algorithms, loss
from rljax.advantage import Algorithm
from rljax.rollout import mixed
from rljax.types import Prompts, Source


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
        batches = contest.batches(
            world, 1, config.warm_prompts, careless(config, task), config.warm_steps
        )
        learner = arithmetic.warm_learner(contest.base(config), task.policy)
        params = population.imitate(learner, task.policy.init, world.keys, *batches)
        population.save(path, params)
    return population.load(path)


def warm_stage(world: World, params: Any) -> dict[str, Any]:
    """Each objective of --warm from the same start; writes their tables.

    All see the same prompts with the same two stored answers, for the same number of
    optimiser steps; GFT fills its groups with its own samples.
    """
    config = world.config
    stored = mixed.stored_answers()
    outcomes, ends = {}, {}
    for name in contest.names(config.warm, OBJECTIVES, "--warm"):
        own = contest.samples(world, config.num_samples - 2) if name == "gft" else None
        outcomes[name], ends[name] = contest.compete(
            world,
            name,
            OBJECTIVES[name](),
            params,
            sample=stored if own is None else mixed.side_by_side(own, stored),
            part=2,
            map_fn=two_answers(config, world.task),
            num_steps=config.stage_steps,
        )
    folder = world.run_dir / "warm"
    print(compare_report.write(outcomes, folder, contest.levels(config)))
    return ends
