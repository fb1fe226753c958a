"""Advantages of groups that are given by their rewards alone."""

import chex
import fakes
import jax.numpy as jnp
import laws

apply = laws.apply


def advantage(transform, *groups):
    """f32[P, G] from one list of rewards per prompt."""
    return apply(transform, fakes.rewards(*groups))[0].advantage[..., 0]


def equal(got, *groups, atol=2e-6):
    chex.assert_trees_all_close(got, jnp.asarray(groups, jnp.float32), atol=atol)
