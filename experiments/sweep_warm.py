"""Warm starts of a sweep: imitation, and then further supervised objectives."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments import compare_report, optimizer, population, sweep
from experiments.sweep import Config, Setup
from rljax import advantage as adv
from rljax import algorithms, loss
from rljax.advantage import Algorithm
from rljax.learn import update
from rljax.model import Model
from rljax.rollout import mixed
from rljax.task import addition
from rljax.types import Prompts, Source


def sft_right() -> Algorithm:
    """SFT on the stored answers that the verifier accepts.

    The comparison with GFT shows the effect of the verifier alone.
    """
    kept = adv.chain(adv.keep_stored(), adv.keep_correct(), adv.token_mean())
    return adv.algorithm(sft=adv.Term(weighting=kept, loss_fn=loss.nll()))


OBJECTIVES: dict[str, Callable[[], Algorithm]] = {
    "gft": algorithms.gft,
    "sft": algorithms.sft,
    "sft_right": sft_right,
    "dft": algorithms.dft,
}


def forgetful(config: Config, model: Model):
    """Makes (prompts, rng) -> prompts with careless demonstrations.

    They forget carries with probability `config.forget`; then each digit is replaced by
    a random one with probability `config.slip`.
    """
    digits = np.array(model.tokenizer.convert_tokens_to_ids(list("0123456789")))

    def demonstrate(prompts: Prompts, rng: np.random.Generator) -> Prompts:
        prompts = addition.demonstrate(prompts, rng, config.forget)
        written = prompts.data["completion"]
        slips = (rng.random(written.shape) < config.slip) & np.isin(written, digits)
        written = np.where(slips, rng.choice(digits, written.shape), written)
        return prompts.replace(
            data={**prompts.data, "completion": written.astype(np.int32)}
        )

    return demonstrate


def right_and_forgetful(config: Config, model: Model):
    """Makes (prompts, rng) -> prompts that store a right and a careless answer."""
    demonstrate = forgetful(config, model)

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


def warm_start(setup: Setup) -> Any:
    """Parameters [S, ...] after imitation; trained once and kept in the run folder."""
    config, policy = setup.config, setup.policy
    path = setup.run_dir / "warm.npz"
    if not path.exists():
        print(f"warm start, {config.warm_steps} steps for {config.seeds} seeds")
        batches = sweep.batches(
            setup,
            1,
            config.warm_prompts,
            forgetful(config, setup.model),
            config.warm_steps,
        )
        rate = optimizer.cosine_decay(config.warm_learning_rate, config.warm_steps)
        learner = update.learner(
            policy.measure,
            adv.algorithm(nll=adv.Term(weighting=adv.token_mean(), loss_fn=loss.nll())),
            optimizer.adamw(rate, config.gradient_clip),
        )
        params = population.imitate(policy, learner, setup.keys, *batches)
        population.save(path, params)
    return population.load(path)


def warm_stage(setup: Setup, params: Any) -> dict[str, Any]:
    """Trains each objective of --warm from the same start, and writes their report.

    All see the same prompts with the same two stored answers, for the same number of
    optimiser steps. GFT fills its groups with its own samples.

    Args:
      setup: of the sweep.
      params: [S, ...], initial parameters.

    Returns:
      Objective -> final parameters [S, ...].
    """
    config = setup.config
    stored = mixed.stored_answers()
    outcomes, ends = {}, {}
    for name in sweep.names(config.warm, OBJECTIVES, "--warm"):
        own = sweep.samples(setup, config.num_samples - 2) if name == "gft" else None
        outcomes[name], ends[name] = sweep.train_population(
            setup,
            name,
            OBJECTIVES[name](),
            params,
            sample=stored if own is None else mixed.side_by_side(own, stored),
            part=2,
            map_fn=right_and_forgetful(config, setup.model),
            num_steps=config.stage_steps,
        )
    folder = setup.run_dir / "warm"
    print(compare_report.write(outcomes, folder, sweep.levels(config)))
    return ends
