"""A coefficient that is negative or NaN never removes its term without a word."""

import jax
import jax.numpy as jnp
import loss_laws
import numpy as np
import pytest
from algorithm_cases import CASES
from recipe_step import rollout, step

from rljax import advantage as adv
from rljax import algorithms, loss

NAN = float("nan")


def entropy_term(coefficient, *after):
    scale = adv.scale_weight(coefficient)
    weighting = adv.chain(adv.token_mean(), scale, *after)
    return adv.algorithm(
        entropy=adv.Term(weighting=weighting, loss_fn=loss.entropy_bonus())
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: adv.scale_weight(-0.5),
        lambda: adv.scale_weight(NAN),
        lambda: algorithms.grpo_kl(beta=-1),
        lambda: algorithms.grpo_kl(beta=NAN),
        lambda: algorithms.tis(cap=0),
        lambda: algorithms.tis(cap=NAN),
        lambda: algorithms.mixture(2.0),
        lambda: algorithms.mixture(NAN),
        lambda: algorithms.kl_cov(beta=-1.0),
        lambda: algorithms.ppo(value_coefficient=-0.1),
        lambda: algorithms.lfu(-1.0),
        lambda: algorithms.asft(-0.1),
        lambda: algorithms.uft(entropy=-0.1),
        lambda: algorithms.luffy(max_tokens=4, entropy=-0.1),
        lambda: algorithms.hpt(max_tokens=4, coefficient=-1.0),
    ],
)
def test_a_concrete_coefficient_out_of_range_is_refused_at_build(make):
    with pytest.raises(ValueError, match="must lie in"):
        make()


@pytest.mark.parametrize("coefficient", [-0.5, NAN])
def test_a_traced_coefficient_out_of_range_shows_as_nan(coefficient):
    # Kept by its sign, the term was gone: loss 0, gradient 0, nothing refused.
    rows = loss_laws.rollout()
    lost, pull, _, _ = jax.jit(lambda c: step(entropy_term(c), rows))(coefficient)
    assert jnp.isnan(lost) and jnp.any(jnp.isnan(pull.entropy))
    # A filter behind it must not take the NaN for what it leaves out either.
    after = adv.keep_top_entropy(0.5)
    lost, _, _, _ = jax.jit(lambda c: step(entropy_term(c, after), rows))(coefficient)
    assert jnp.isnan(lost)


def test_a_coefficient_of_zero_removes_its_term_even_from_infinity():
    rows = loss_laws.rollout()
    rows = rows.replace(
        current=rows.current.replace(entropy=rows.current.entropy + jnp.inf)
    )
    lost, pull, _, _ = step(entropy_term(0.0), rows)
    assert lost == 0 and np.all(np.asarray(pull.entropy) == 0)


def test_a_scheduled_mixture_beyond_one_shows_as_nan():
    # 1 - mu = -1: the reinforcement term was lost, the rest went on.
    case = CASES["chord"]
    rows = rollout(case)
    wrong = algorithms.chord(mu_fn=lambda step: 2.0 + 0.0 * step)
    lost, _, _, _ = jax.jit(lambda rows: step(wrong, rows))(rows)
    assert jnp.isnan(lost)


@pytest.mark.parametrize("bound", ["floor", "cap"])
@pytest.mark.parametrize("name", ["icepop", "geometric_rejection", "sequence_mask_tis"])
def test_a_traced_bound_of_nan_shows_as_nan(name, bound):
    # No ratio lies inside or outside: all tokens were dropped, and nothing learned.
    rows = rollout(CASES[name])
    make = getattr(algorithms, name)
    lost, _, _, _ = jax.jit(lambda x: step(make(**{bound: x}), rows))(NAN)
    assert jnp.isnan(lost)


def test_hpt_learns_one_of_its_terms_whatever_its_gate():
    # Neither `solved > nan` nor `solved <= nan` holds: both terms were lost.
    case = CASES["hpt"]
    rows = rollout(case)

    def loss_at(gate):
        return step(algorithms.hpt(max_tokens=4, gate=gate), rows)[1].logp

    pull = jax.jit(loss_at)(jnp.nan)
    assert np.linalg.norm(pull) > 0


def test_rows_without_weight_may_have_any_advantage():
    # A user's transform divides by a deviation of 0 and drops the group afterwards.
    def divide(credit, rollout):
        deviation = jnp.std(credit.advantage, 1, keepdims=True)
        weight = jnp.where(deviation > 0, credit.weight, 0.0)
        return credit.replace(advantage=credit.advantage / deviation, weight=weight)

    rows = loss_laws.rollout()
    reward = rows.verdict.reward.at[0].set(0.0).at[1].set(jnp.array([0.0, 1, 1, 0]))
    rows = rows.replace(verdict=rows.verdict.replace(reward=reward))
    algorithm = adv.algorithm(
        policy=adv.Term(
            advantage=adv.stateless(divide),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(),
        )
    )
    lost, pull, _, _ = step(algorithm, rows)
    assert jnp.isfinite(lost) and bool(jnp.all(jnp.isfinite(pull.logp)))
    assert np.linalg.norm(pull.logp[1]) > 0
