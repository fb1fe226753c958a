"""FADE on column addition with intermediate steps: the demo to copy.

A small new decoder first imitates demonstrations that forget most carries. RL then
trains it against a verifier in the compiled program. All numbers are in `Config`; all
functions are chosen in `build`.

Result: LOG.md, 2026-11-21. Cost: two minutes on two CPU cores.
Run:    python -m experiments.addition
Smoke:  python -m experiments.addition --quick
"""

import dataclasses
import functools
from typing import Any

from experiments import cli, optimizer, ranges
from rljax import algorithms, data, evaluate, loss, program
from rljax.advantage import Term, algorithm, token_mean
from rljax.experiment import Experiment
from rljax.learn import update
from rljax.rollout import mixed
from rljax.rollout.sample import sampler
from rljax.task import addition


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the run."""

    seed: int = 0  # for parameters, data order and sampling

    # The policy
    num_layers: int = 2  # layers of the decoder
    d_model: int = 64  # width of the decoder
    num_heads: int = 4  # attention heads
    d_ff: int = 128  # width of the feed-forward layers

    # Warm start on demonstrations
    warm_steps: int = 1000  # training steps of the warm start; 0 for none
    warm_prompts: int = 128  # demonstrations per step
    warm_learning_rate: float = 3e-3  # peak; 30 steps warm-up, then cosine to 5 %
    forget: float = 0.7  # probability that a demonstration forgets a carry

    # Reinforcement learning
    num_steps: int = 240  # training steps: rollout batches
    steps_per_dispatch: int = 20  # training steps per call of the compiled program
    num_prompts: int = 128  # prompts per step
    num_samples: int = 8  # samples per prompt: the group
    max_tokens: int = 12  # longest completion, tokens, with the end token
    temperature: float = 1.0  # of the policy, in sampling and training; above 0
    num_minibatches: int = 2  # optimiser steps per rollout batch
    num_microbatches: int = 1  # parts of a minibatch, computed in turn to save memory
    num_lengths: int = 1  # further parts, sorted by length; divides --num-samples
    num_slots: int | None = None  # completions sampled at a time; None: all at once
    learning_rate: float = 8e-4  # peak; 10 steps warm-up, then linear to 10 %
    gradient_clip: float = 1.0  # maximum global norm of a gradient
    clip: float = 0.2  # ratios further than this from 1 are clipped
    entropy_target: float | None = None  # FADE's H*, nats; None: half of the initial

    # Evaluation and checkpoints
    evaluate_every: int = 40  # training steps between evaluations
    evaluation_temperature: float = 1.0  # of samples in evaluations, above 0
    num_validation: int = 256  # held-out problems per evaluation
    num_test: int = 1024  # held-out problems for the table at the end
    checkpoint_every: int = 40  # training steps between checkpoints
    keep: int = 3  # checkpoints to keep


QUICK = Config(
    warm_steps=200,
    num_steps=8,
    steps_per_dispatch=4,
    num_prompts=16,
    warm_prompts=32,
    num_validation=64,
    num_test=64,
    evaluate_every=4,
    checkpoint_every=4,
)


def build(c: Config) -> list[Experiment]:
    """A warm start by imitation, if there are warm steps, and FADE.

    Raises:
      ValueError: if a number is out of range, before anything is made.
    """
    ranges.addition(c)
    task = addition.task(c.num_validation, c.num_test)
    model = addition.new_model(c.num_layers, c.d_model, c.num_heads, c.d_ff)
    policy = model.policy(c.temperature)
    sample = sampler(
        policy,
        num_samples=c.num_samples,
        max_tokens=c.max_tokens,
        stop_tokens=model.stop_tokens,
        num_slots=c.num_slots,
    )
    rate = optimizer.linear_decay(c.learning_rate, c.num_steps * c.num_minibatches)
    shared = {
        "model": model,
        "task": task,
        "steps_per_dispatch": c.steps_per_dispatch,
        "evaluation": evaluate.held_out(
            model.policy(c.evaluation_temperature),
            task,
            model.tokenizer,
            max_tokens=c.max_tokens,
            stop_tokens=model.stop_tokens,
            batch_size=c.num_validation,
            note=f"Sampled at temperature {c.evaluation_temperature:g}.",
        ),
    }
    rl = Experiment(
        act=program.actor(policy, sample),
        learner=update.learner(
            policy.measure,
            algorithms.fade(entropy_target=c.entropy_target, clip=c.clip),
            optimizer.adamw(rate, c.gradient_clip),
            num_minibatches=c.num_minibatches,
            num_microbatches=c.num_microbatches,
            num_lengths=c.num_lengths,
        ),
        verify=task.verify,
        prompts=data.stream(
            task.train,
            num_prompts=c.num_prompts,
            seed=c.seed,
            steps_per_dispatch=c.steps_per_dispatch,
        ),
        num_steps=c.num_steps,
        evaluate_every=c.evaluate_every,
        seed=c.seed,
        checkpoint_every=c.checkpoint_every,
        keep=c.keep,
        **shared,
    )
    return [warm_start(c, shared), rl] if c.warm_steps else [rl]


def warm_start(c: Config, shared: dict[str, Any]) -> Experiment:
    """Imitation of demonstrations that forget carries."""
    policy = shared["model"].policy()
    sft = algorithm(nll=Term(weighting=token_mean(), loss_fn=loss.nll()))
    rate = optimizer.cosine_decay(c.warm_learning_rate, c.warm_steps)
    return Experiment(
        name="warm start",
        act=program.actor(policy, mixed.stored_answers()),
        learner=update.learner(
            policy.measure, sft, optimizer.adamw(rate, c.gradient_clip)
        ),
        prompts=data.stream(
            shared["task"].train,
            num_prompts=c.warm_prompts,
            seed=c.seed + 1,
            steps_per_dispatch=c.steps_per_dispatch,
            map_fn=functools.partial(addition.demonstrate, forget=c.forget),
        ),
        num_steps=c.warm_steps,
        evaluate_every=max(c.warm_steps // 2, 1),
        **shared,
    )


if __name__ == "__main__":
    cli.main("addition", build, Config(), QUICK, __doc__)
