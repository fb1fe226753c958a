"""Advantages assigned by class."""

import chex
import fakes
import jax.numpy as jnp
import laws
import pytest

from rljax import advantage as adv

pytestmark = pytest.mark.usefixtures("strict")


apply = laws.apply


def equal(got, *groups, atol=2e-6):
    chex.assert_trees_all_close(got, jnp.asarray(groups, jnp.float32), atol=atol)


def test_classes_are_read_off_correct_and_not_off_the_reward():
    # Shaped rewards leave p alone: 2 of 4 are correct.
    rows = fakes.rewards([0.2, 0.9, -0.5, 0.0])
    correct = jnp.asarray([[True, True, False, False]])
    rows = rows.replace(verdict=rows.verdict.replace(correct=correct))
    odds = adv.assign_by_class(lambda g: g.p, lambda g: -g.n)
    equal(apply(odds, rows)[0].advantage[..., 0], [0.5, 0.5, -4, -4])
