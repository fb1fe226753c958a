"""Core types: they pass through JAX, and what was not measured says so."""

import copy
import dataclasses
import pickle

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.types import Missing, NotMeasured, Rollout, TokenStats, Verdict, require

READS = {
    "attribute": lambda x: x.logp,
    "array minus it": lambda x: jnp.ones(2) - x,
    "number times it": lambda x: 2.0 * x,
    "it times number": lambda x: x * 2.0,
    "negation": lambda x: -x,
    "comparison": lambda x: x > 0,
    "index": lambda x: x[0],
    "loop": list,
    "truth": bool,
    "jnp": jnp.exp,
    "numpy": np.asarray,
    "under jit": lambda x: jax.jit(lambda y: y * x)(1.0),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_what_was_not_measured_names_it_and_its_supplier(read):
    # A TypeError from somewhere inside would not say what to do.
    with pytest.raises(NotMeasured, match=r"`teacher` .*pass a teacher to the actor"):
        read(
            fakes.rollout()
            .replace(teacher=Missing("teacher", "pass a teacher to the actor"))
            .teacher
        )


def test_every_statistic_of_a_rollout_is_missing_until_supplied():
    bare = Rollout(prompts=fakes.prompts(), samples=fakes.rollout().samples)
    for name in ("verdict", "old", "reference", "teacher", "current"):
        with pytest.raises(NotMeasured, match=f"`{name}`"):
            _ = getattr(bare, name).logp
    with pytest.raises(NotMeasured, match="entropy"):
        _ = TokenStats(logp=jnp.zeros(1)).entropy + 1


def test_missing_travels_through_jit_scan_vmap_copy_and_pickle():
    rows = fakes.rollout().replace(teacher=Missing("teacher", "pass one"))
    out = jax.jit(lambda r: r)(rows)
    assert out.teacher == rows.teacher
    _, out = jax.lax.scan(lambda c, r: (c, r), 0, rows)
    assert out.teacher == rows.teacher
    assert jax.vmap(lambda r: r)(rows).teacher == rows.teacher
    for again in (copy.deepcopy(rows), pickle.loads(pickle.dumps(rows))):
        assert again.teacher == rows.teacher


def test_a_minibatch_of_prompts_is_a_rollout():
    rows = jax.tree.map(lambda x: x[1:], fakes.rollout(num_prompts=3))
    assert isinstance(rows, Rollout)
    assert {x.shape[0] for x in jax.tree.leaves(rows)} == {2}


def test_core_types_are_frozen_and_take_keywords_only():
    rows = fakes.rollout()
    with pytest.raises(dataclasses.FrozenInstanceError):
        rows.old = None
    with pytest.raises(TypeError):
        TokenStats(jnp.zeros(1))


def test_length_counts_the_mask_and_not_the_end_of_it():
    # A mask with a hole: 3 tokens of the policy, though the row ends at 4.
    samples = fakes.rollout(1, 1, 5).samples
    samples = samples.replace(mask=jnp.array([[[1, 1, 0, 1, 0]]], bool))
    assert samples.length.tolist() == [[3]]


def test_a_binary_verdict_is_reward_one_where_correct():
    verdict = Verdict.binary(jnp.array([[True, False]]))
    chex.assert_trees_all_equal(verdict.reward, jnp.array([[1.0, 0.0]]))
    assert not bool(jnp.any(verdict.failed))


def test_credit_logs_float32_scalars_and_keeps_earlier_ones():
    credit = fakes.credit_of(fakes.rollout(), jnp.ones((3, 4)))
    credit = credit.log(a=1).log(b=jnp.int32(2))
    assert credit.metrics == {"a": 1.0, "b": 2.0}
    assert all(m.dtype == jnp.float32 for m in credit.metrics.values())


def test_what_prompts_must_carry_is_asked_for_by_name_and_with_what_supplies_it():
    # A bare KeyError would not say which data the prompts have nor how to add more.
    assert require({"answer": 3}, "answer", "add answers") == 3
    wanted = r"data must hold 'weight', got \['answer'\]; add weights\."
    with pytest.raises(ValueError, match=wanted):
        require({"answer": 3}, "weight", "add weights")
