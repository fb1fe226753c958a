"""RL on a real chat model: SmolLM2-135M-Instruct learns small arithmetic.

Sums, differences and products through the model's own chat template. At the start it
talks, and is often wrong where it answers. FADE by default. All numbers stand in
`Config`, all functions are chosen in `build`.

Run:    python -m experiments.real [--model FOLDER]
Smoke:  python -m experiments.real --quick
"""

import dataclasses
import pathlib
from typing import Literal

import jax.numpy as jnp

from experiments import cli, formats, optimizer, ranges
from rljax import algorithms, data, evaluate, program
from rljax.advantage import Algorithm
from rljax.data import tokenizer
from rljax.experiment import Experiment
from rljax.learn import update
from rljax.model import DecoderConfig, Model, language_model
from rljax.model.hugging_face import pretrained
from rljax.rollout.sample import sampler
from rljax.task import arithmetic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every number of the run."""

    seed: int = 0  # of data order and sampling
    model: str = "smollm2"
    """smollm2: SmolLM2-135M-Instruct, wherever it can be had; tiny: a new decoder, to
    try the path; else a Hugging Face folder of a chat model."""
    dtype: Literal["float32", "bfloat16"] = dataclasses.field(
        default_factory=formats.fast_dtype
    )
    """Of activations; bfloat16 where this machine multiplies it faster."""

    # The problems
    max_prompt_tokens: int = 56  # that hold every question in the chat template

    # Reinforcement learning
    algorithm: Literal["fade", "grpo", "dr_grpo", "power", "stapo"] = "fade"
    num_steps: int = 40  # training steps: rollout batches
    steps_per_dispatch: int = 1  # training steps per call of the compiled program
    num_prompts: int = 16  # prompts per step
    num_samples: int = 8  # samples per prompt, the group
    max_tokens: int = 12  # longest completion, tokens, the end token included
    temperature: float = 1.0  # of the policy that is sampled and trained, above 0
    num_minibatches: int = 1  # optimiser steps per rollout batch
    num_microbatches: int = 2  # pieces of a minibatch that are in memory at once
    num_lengths: int = 1  # further pieces by length; divides --num-samples
    learning_rate: float = 3e-5  # peak; after 10 optimiser steps linear to 10 %
    gradient_clip: float = 1.0  # largest global norm of a gradient
    entropy_target: float | None = None  # FADE's H*, nats; None: half of the first
    ema_rate: float = 0.2
    """Of FADE's averages, a fraction. The paper's 0.02 remembers 50 steps, more than
    this run has, so that its schedule would hardly move."""

    # Evaluation and checkpoints
    evaluate_every: int = 20  # training steps between evaluations
    evaluation_temperature: float = 1.0  # of the samples that are judged, above 0
    evaluation_batch: int = 40  # held-out problems asked at a time
    checkpoint_every: int = 20  # training steps between checkpoints
    keep: int = 2  # checkpoints kept


QUICK = Config(
    model="tiny",
    dtype="float32",
    max_prompt_tokens=128,
    num_steps=4,
    num_prompts=8,
    num_samples=4,
    max_tokens=4,
    learning_rate=1e-3,
    evaluate_every=2,
    checkpoint_every=2,
)


def build(c: Config) -> list[Experiment]:
    """One stage of RL.

    Raises:
      ValueError: for numbers that no run can begin with, before anything is made.
    """
    ranges.step(c)
    model = make_model(c)
    task = arithmetic.task(
        model,
        max_prompt_tokens=c.max_prompt_tokens,
        chat=data.Chat() if model.tokenizer.chat_template else None,
    )
    policy = model.policy(c.temperature)
    sample = sampler(
        policy,
        num_samples=c.num_samples,
        max_tokens=c.max_tokens,
        stop_tokens=model.stop_tokens,
    )
    rate = optimizer.linear_decay(c.learning_rate, c.num_steps * c.num_minibatches)
    rl = Experiment(
        model=model,
        task=task,
        act=program.actor(policy, sample),
        learner=update.learner(
            policy.measure,
            method(c),
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
        steps_per_dispatch=c.steps_per_dispatch,
        evaluation=evaluate.held_out(
            model.policy(c.evaluation_temperature),
            task,
            model.tokenizer,
            max_tokens=c.max_tokens,
            stop_tokens=model.stop_tokens,
            batch_size=c.evaluation_batch,
            note=f"Sampled at temperature {c.evaluation_temperature:g}.",
        ),
        evaluate_every=c.evaluate_every,
        seed=c.seed,
        checkpoint_every=c.checkpoint_every,
        keep=c.keep,
    )
    return [rl]


def method(c: Config) -> Algorithm:
    """The algorithm that is compared, each with the numbers of its recipe."""
    made = {
        "fade": lambda: algorithms.fade(
            entropy_target=c.entropy_target, ema_rate=c.ema_rate
        ),
        "grpo": algorithms.grpo,
        "dr_grpo": lambda: algorithms.dr_grpo(max_tokens=c.max_tokens),
        "power": lambda: algorithms.power(2.0),
        "stapo": algorithms.stapo,
    }
    return made[c.algorithm]()


def make_model(c: Config) -> Model:
    """The model that the configuration names; its files are read when the run begins.

    Raises:
      ValueError: naming the folder, the file or what else is wrong.
    """
    if c.model == "tiny":
        return language_model.new(_TINY, tokenizer.character_tokenizer(_CHARACTERS))
    folder = pretrained.smollm2() if c.model == "smollm2" else pathlib.Path(c.model)
    # On a CPU bfloat16 layers that keep nothing for the backward pass are faster (2.9
    # against 4.7 s for half a batch): what they would keep is much memory to write.
    narrow = c.dtype == "bfloat16"
    model = language_model.load(folder, dtype=jnp.dtype(c.dtype), remat=narrow)
    print(f"{folder}: {language_model.describe(model)}; activations in {c.dtype}")
    return model


_CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
_TINY = DecoderConfig(
    vocab_size=len(_CHARACTERS) + len(tokenizer.SPECIAL_TOKENS),
    num_layers=1,
    d_model=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    d_ff=32,
)


if __name__ == "__main__":
    cli.main("real", build, Config(), QUICK, __doc__)
