"""Laws that every loss function obeys, and the table of those held to them.

A new loss function is held to all laws by a line in `ALL_LOSSES`; users hold theirs by

    @loss_laws.over({"my_loss": my_loss()})
    def test_my_loss_obeys_the_laws(law, loss_fn, rollout):
        law(loss_fn, rollout)

Laws run op by op: nothing is compiled but single operations, which all losses share.
"""

import itertools

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage as adv
from rljax import loss
from rljax.loss import sequence_ratio, supervised
from rljax.types import TokenStats

P, G, T = 3, 4, 5
EXACT = ("kl_reverse", "kl_forward", "chi_squared")

ALL_LOSSES = {
    "against_behaviour": loss.against_behaviour(loss.cispo()),
    "against_old": loss.against_old(loss.kl_absolute()),
    "with_behaviour_prob_one": supervised.with_behaviour_prob_one(loss.ppo_clip()),
    "chi_squared": loss.chi_squared(),
    "chi_squared_exact": loss.chi_squared_exact(),
    "chi_squared_straight_through": loss.chi_squared_straight_through(),
    "cispo": loss.cispo(),
    "cispo_band": loss.cispo_band(0.2, 0.28),
    "ppo_clip": loss.ppo_clip(),
    "clipping_bias": loss.clipping_bias(),
    "clipping_bias(token_ratio)": loss.clipping_bias(loss.token_ratio),
    "consistency": supervised.consistency(),
    "dual_clip": loss.dual_clip(),
    "entropy_bonus": loss.entropy_bonus(),
    "entropy_bonus_sampled": loss.entropy_bonus_sampled(),
    "gmpo": loss.gmpo(),
    "gmpo(clipped_sum)": loss.gmpo(sequence_ratio.clipped_sum()),
    "gmpo(mean_unclipped)": loss.gmpo(sequence_ratio.mean_unclipped),
    "gmpo(sum_of_clipped)": loss.gmpo(sequence_ratio.sum_of_clipped()),
    "gspo": loss.gspo(0.1, 0.1),
    "gspo_token": loss.gspo_token(0.1, 0.1),
    "kl_absolute": loss.kl_absolute(),
    "kl_forward_exact": loss.kl_forward_exact(),
    "kl_k1": loss.kl_k1(),
    "kl_k2": loss.kl_k2(),
    "kl_k3": loss.kl_k3(),
    "kl_k3_straight_through": loss.kl_k3_straight_through(),
    "kl_reverse_exact": loss.kl_reverse_exact(),
    "minpro": loss.minpro(),
    "nll": loss.nll(),
    "unclipped_ratio": loss.unclipped_ratio(),
    "unless_clipped": loss.unless_clipped(loss.cispo()),
    "reweighted(entropy_weight)": supervised.reweighted(
        loss.nll(), supervised.entropy_weight(0.5, -1.0)
    ),
    "reweighted(probability)": supervised.reweighted(
        loss.nll(), supervised.probability
    ),
    "reweighted(sequence_importance)": supervised.reweighted(
        loss.nll(), supervised.sequence_importance()
    ),
    "reweighted(threshold)": supervised.reweighted(
        loss.reinforce(), supervised.threshold()
    ),
    "reweighted(token_importance)": supervised.reweighted(
        loss.nll(), supervised.token_importance()
    ),
    "reweighted(uncertainty)": supervised.reweighted(
        loss.nll(), supervised.uncertainty
    ),
    "reweighted(unit)": supervised.reweighted(loss.nll(), supervised.unit),
    "reinforce": loss.reinforce(),
    "sapo": loss.sapo(),
    "shaped_probability": supervised.shaped_probability(),
    "times_advantage": loss.times_advantage(loss.kl_k3()),
    "times_ratio": loss.times_ratio(loss.kl_k3()),
    "turn_ppo": loss.turn_ppo(),
    "value_loss": loss.value_loss(),
}


def measured(stats: TokenStats, seed: int) -> TokenStats:
    """The statistics with every extra that a loss may ask for."""
    draw = np.random.default_rng(seed)
    names = ("value", "consistency", *EXACT)
    return stats.replace(
        extra={
            k: jnp.asarray(draw.random(stats.logp.shape), jnp.float32) for k in names
        }
    )


def rollout(num_prompts=P, num_samples=G, num_tokens=T):
    """A policy that has moved from the old one by up to 0.5 nats per token.

    The first row has a hole (a turn's end), the last one no token at all.
    """
    rows = fakes.rollout(num_prompts, num_samples, num_tokens)
    mask = rows.samples.mask.at[0, 0].set(jnp.arange(num_tokens) != 1)
    mask = mask.at[-1, -1].set(False)
    moved = fakes.token_stats(mask.shape, seed=7).logp / 6
    return rows.replace(
        samples=rows.samples.replace(mask=mask),
        current=measured(rows.old.replace(logp=rows.old.logp + moved), seed=1),
        old=measured(rows.old, seed=2),
    )


def credit(rows):
    """Advantages of both signs, and 0, in rows of all lengths."""
    start = adv.initial_credit(rows)
    signs = np.arange(start.advantage.size).reshape(start.advantage.shape) % 3 - 1
    return start.replace(advantage=jnp.asarray(signs, jnp.float32))


def value_and_pull(loss_fn, rows, weight=None):
    """(loss f32[P, G, T], its gradient): each token with the weight of its credit."""
    given = credit(rows)
    if weight is not None:
        given = given.replace(weight=weight)

    def total(now):
        value = loss_fn(now, given, rows)
        weighed = jnp.where(given.weight != 0, given.weight * value, 0.0)
        return jnp.sum(weighed), weighed

    (_, value), pull = jax.value_and_grad(total, has_aux=True)(rows.current)
    mask = rows.samples.mask
    return value, jax.tree.map(lambda x: jnp.where(mask, x, 0.0), pull)


def has_the_type_of_a_loss(loss_fn, rows):
    # Of rank 2 it would broadcast over prompts as if they were samples.
    value = jax.eval_shape(loss_fn, rows.current, credit(rows), rows)
    shape = rows.samples.mask.shape
    assert value.shape in {shape, (*shape[:2], 1)}
    assert value.dtype == jnp.float32


def is_local_to_its_row(loss_fn, rows):
    # What couples rows makes microbatches not add up: a mean over the batch, a
    # baseline, a quantile. Everything of one row changes; the others must not notice.
    j = (1, 2)
    other = fakes.rollout(*rows.samples.mask.shape, seed=5)
    other = other.replace(
        current=measured(other.current, seed=3), old=measured(other.old, seed=4)
    )

    def replaced(x, y):
        return x.at[j].set(y[j]) if x.ndim > 1 else x

    changed = jax.tree.map(replaced, rows, other).replace(prompts=rows.prompts)
    weight = credit(rows).weight.at[j].set(0.0)
    want, want_pull = value_and_pull(loss_fn, rows, weight)
    got, pull = value_and_pull(loss_fn, changed, weight)
    chex.assert_trees_all_equal((got, pull), (want, want_pull))
    # Nor does the loss of the others push that row.
    assert all(bool(jnp.all(x[j] == 0)) for x in jax.tree.leaves(pull))


def ignores_what_lies_outside_the_mask(loss_fn, rows):
    # There it is NaN: multiplying by a mask instead of selecting shows.
    mask = rows.samples.mask

    def spoilt(stats):
        return jax.tree.map(lambda x: jnp.where(mask, x, jnp.nan), stats)

    names = ("old", "reference", "teacher", "current")
    rows = rows.replace(**{name: spoilt(getattr(rows, name)) for name in names})
    drawn = spoilt(rows.samples.behaviour)
    rows = rows.replace(samples=rows.samples.replace(behaviour=drawn))
    chex.assert_trees_all_equal(
        value_and_pull(loss_fn, rows), value_and_pull(loss_fn, rollout())
    )
    padded = fakes.pad_tokens(rows, by=3)
    value, pull = value_and_pull(loss_fn, padded)
    cut = jax.tree.map(lambda x: x[..., :T], (value, pull))
    chex.assert_trees_all_close(cut, value_and_pull(loss_fn, rows), atol=1e-6)


def stays_finite_where_nothing_weighs(loss_fn, rows):
    # Failed rows have weight 0; 0 times an infinite slope would be NaN.
    out = value_and_pull(loss_fn, rows, jnp.zeros(rows.samples.mask.shape))
    chex.assert_trees_all_equal(out, jax.tree.map(jnp.zeros_like, out))


FAR = (100.0, -100.0, 1e4, -1e4, 1e18, -1e18)


def bears_a_far_token(loss_fn, rows):
    # e^100 is infinite in float32 and 0 * inf is NaN: behind a clip, a bound, a weight
    # or an advantage of 0. One token per row is far from one of the other policies.
    names = ("old", "reference", "behaviour")
    at = jnp.zeros(rows.samples.mask.shape).at[..., 0].set(1.0)

    def moved(which, by):
        def stats(name, x):
            return x.replace(logp=x.logp - by * at) if names[which] == name else x

        changed = {n: stats(n, getattr(rows, n)) for n in names[:2]}
        drawn = stats("behaviour", rows.samples.behaviour)
        samples = rows.samples.replace(behaviour=drawn)
        return rows.replace(samples=samples, **changed)

    # One by one: mapped over them, every operation would be compiled a second time.
    for which, by in itertools.product(range(3), FAR):
        chex.assert_tree_all_finite(value_and_pull(loss_fn, moved(which, by)))


LAWS = (
    has_the_type_of_a_loss,
    is_local_to_its_row,
    ignores_what_lies_outside_the_mask,
    stays_finite_where_nothing_weighs,
    bears_a_far_token,
)


def over(table, rollout_fn=rollout):
    """Parametrises a test `(law, loss_fn, rollout)` over a table and all laws."""
    rows = rollout_fn()
    cases = [
        pytest.param(law, loss_fn, rows, id=f"{name}-{law.__name__}")
        for name, loss_fn in table.items()
        for law in LAWS
    ]
    return pytest.mark.parametrize(("law", "loss_fn", "rollout"), cases)
