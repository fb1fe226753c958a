"""GRPO on a decoder of one layer: the smallest program that has every part."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rljax import advantage, loss
from rljax import program as step
from rljax.learn import update
from rljax.model import DecoderConfig, decoder_policy
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    steps_per_dispatch: int = 3
    num_prompts: int = 8
    prompt_tokens: int = 3
    num_samples: int = 2
    max_tokens: int = 2
    num_minibatches: int = 1
    num_microbatches: int = 1
    num_group_parts: int = 1
    num_slots: int | None = None
    d_ff: int = 32
    attention_block: int | None = None


def program(config: Config) -> step.Program:
    decoder = DecoderConfig(
        vocab_size=16,
        num_layers=1,
        d_model=16,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=config.d_ff,
        attention_block=config.attention_block,
    )
    policy = decoder_policy(decoder)
    grpo = advantage.algorithm(
        policy=advantage.Term(
            advantage=advantage.center_by_group(),
            weighting=advantage.token_mean(),
            loss_fn=loss.ppo_clip(0.2, 0.2),
        )
    )
    learner = update.learner(
        policy.measure,
        grpo,
        optax.adam(0.1),
        num_minibatches=config.num_minibatches,
        num_microbatches=config.num_microbatches,
        num_group_parts=config.num_group_parts,
    )
    sample = sampler(
        policy,
        num_samples=config.num_samples,
        max_tokens=config.max_tokens,
        stop_tokens=(1,),
        num_slots=config.num_slots,
    )

    def verify(prompts, samples):
        del prompts
        return Verdict.binary(samples.tokens[..., 0] == 5)

    key = jax.eval_shape(lambda: jax.random.key(0))
    rows = (config.steps_per_dispatch, config.num_prompts)
    return step.Program(
        act=step.actor(policy, sample),
        learner=learner,
        verify=verify,
        state=jax.eval_shape(lambda k: learner.init(policy.init(k), k), key),
        prompts=Prompts(
            tokens=jax.ShapeDtypeStruct((*rows, config.prompt_tokens), jnp.int32),
            length=jax.ShapeDtypeStruct(rows, jnp.int32),
            id=jax.ShapeDtypeStruct(rows, jnp.int32),
        ),
        decoder=decoder,
    )
