"""Methods, a rollout off policy and one step of it, for tests of the update.

Methods, learners and steps are made once, so that tests share what is compiled.
"""

import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import advantage as adv
from rljax import algorithms, loss
from rljax.advantage import Term, algorithm, chain, stateless
from rljax.learn import update
from rljax.learn.gradient import of_minibatch
from rljax.learn.microbatch import Pieces

TABLE = fakes.bandit(num_prompts=8, num_tokens=4, vocab_size=16)
DECODER = fakes.decoder()
KEY = jax.random.key(0)


def parameters(policy):
    shapes = jax.eval_shape(policy.init, KEY)
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(draw.normal(0, 0.5, x.shape), jnp.float32), shapes
    )


def off_policy(policy, params):
    """8 prompts x 2 samples whose `old` is near the policy: some tokens clip."""
    rows = fakes.rollout(8, 2, 4)
    rows = rows.replace(prompts=fakes.prompts(8))
    now = jax.jit(policy.measure)(params, rows.prompts, rows.samples)
    noise = np.random.default_rng(1).normal(0, 0.4, (3, 8, 2, 4)).astype(np.float32)
    old = now.replace(logp=now.logp + noise[0], entropy=now.entropy + noise[1])
    reference = now.replace(logp=now.logp + noise[2])
    return rows.replace(old=old, reference=reference).without("current")


def uncertain_tokens(share, name="current"):
    """Keeps the tokens above a quantile of entropy over all prompts (for tests)."""

    def keep(credit, rollout):
        entropy = getattr(rollout, name).entropy
        seen = jnp.where(rollout.samples.mask, entropy, jnp.nan)
        high = entropy >= jnp.nanquantile(seen, 1 - share)
        return credit.replace(weight=jnp.where(high, credit.weight, 0.0))

    return stateless(keep)


@functools.cache
def fade():
    term = Term(
        advantage=adv.scale_by_fade(),
        weighting=adv.token_mean(),
        loss_fn=loss.ppo_clip(),
    )
    return algorithm(policy=term)


@functools.cache
def grpo_with_kl_and_entropy():
    advantage = chain(adv.center_by_group(), adv.scale_by_group_std())
    return algorithm(
        policy=Term(
            advantage=advantage,
            weighting=adv.sequence_mean(),
            loss_fn=loss.ppo_clip(0.2, 0.28),
        ),
        kl=Term(
            weighting=chain(adv.token_mean(), adv.scale_weight(0.1)),
            loss_fn=loss.kl_k3(),
        ),
        entropy=Term(
            weighting=chain(adv.constant_length(4), adv.scale_weight(0.05)),
            loss_fn=loss.entropy_bonus(),
        ),
    )


@functools.cache
def quantile(name="current"):
    weighting = chain(uncertain_tokens(0.4, name), adv.token_mean())
    return algorithm(
        policy=Term(
            advantage=adv.center_by_group(),
            weighting=weighting,
            loss_fn=loss.ppo_clip(),
        )
    )


def gradient(
    policy, method, num_micro, rollout, params, first=False, lengths=1, groups=1
):
    """(gradient, coefficient, metrics) of one optimiser step."""
    run = _step(policy, method, Pieces(num_micro, lengths, groups))
    return run(params, rollout, jnp.asarray(first))


@functools.cache
def _step(policy, method, pieces):
    @jax.jit
    def run(params, rollout, first):
        learner = update.learner(policy.measure, method, optax.sgd(1.0))
        state = learner.init(params, KEY)
        credits, algorithm_state, _ = method.credit(rollout, state.algorithm)
        state = state.replace(algorithm=algorithm_state)
        found = of_minibatch(
            policy.measure, method, pieces, credits, rollout, state, first
        )
        return found.grads, found.coefficient, found.metrics | {"loss": found.loss}

    return run


PARAMS = parameters(TABLE)
ROLLOUT = off_policy(TABLE, PARAMS)


ADAM = optax.adam(0.1)


def learner(method, optimizer=ADAM, **options):
    made, learn = _learner(method, optimizer, **options)
    return made.init(PARAMS, KEY), learn


@functools.cache
def _learner(method, optimizer, **options):
    made = update.learner(TABLE.measure, method, optimizer, **options)
    return made, jax.jit(made.learn)


def long_and_short(policy, params):
    """8 prompts x 4 samples of 1 to 16 tokens, most of them short; masks have holes."""
    draw = np.random.default_rng(3)
    length = np.minimum(1 + draw.geometric(0.25, (8, 4)), 16)
    rows = fakes.rollout(8, 4, 16, length=length).replace(prompts=fakes.prompts(8))
    mask = rows.samples.mask.at[:, 1, 1].set(False)
    rows = rows.replace(samples=rows.samples.replace(mask=mask))
    now = jax.jit(policy.measure)(params, rows.prompts, rows.samples)
    noise = draw.normal(0, 0.4, (3, 8, 4, 16)).astype(np.float32)
    return rows.replace(
        old=now.replace(logp=now.logp + noise[0], entropy=now.entropy + noise[1]),
        reference=now.replace(logp=now.logp + noise[2]),
    ).without("current")


BY_LENGTH = {
    "fade": fade(),
    "grpo": grpo_with_kl_and_entropy(),
    "quantile": quantile(),
    "minpro": algorithms.minpro(),
}
WIDE = fakes.bandit(8, 16, 16)
