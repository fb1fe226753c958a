"""Trees of trained and frozen parameters, taken apart and put together."""

import jax
import numpy as np
import pytest

from rljax.policy import frozen

TREE = {
    "embed": {"embedding": np.zeros(3)},
    "layers": {"q": {"kernel": np.ones(2), "bias": np.full(2, 2.0)}},
}


def test_a_tree_is_taken_apart_by_name_and_joined_to_the_same():
    trained, kept = frozen.split(TREE, lambda path: path[-1] == "bias")
    # No empty dictionaries: they would be nodes of the checkpoint.
    assert jax.tree.map(np.shape, trained) == {"layers": {"q": {"bias": (2,)}}}
    assert set(kept) == {"embed", "layers"}
    assert set(kept["layers"]["q"]) == {"kernel"}
    both = frozen.joined(trained, kept)
    assert jax.tree.structure(both) == jax.tree.structure(TREE)
    for got, want in zip(jax.tree.leaves(both), jax.tree.leaves(TREE), strict=True):
        assert got is want  # nothing is copied


def test_without_frozen_parameters_a_tree_is_itself():
    assert frozen.joined(TREE) is TREE
    assert frozen.joined(None, TREE) is None  # no reference stays none
    trained, kept = frozen.split(TREE, lambda path: True)
    assert kept == {}
    assert jax.tree.structure(trained) == jax.tree.structure(TREE)


def test_nothing_trained_and_one_name_twice_are_refused():
    with pytest.raises(ValueError, match="at least one parameter of"):
        frozen.split(TREE, lambda path: False)
    with pytest.raises(ValueError, match="both have layers/q/bias"):
        frozen.joined({"layers": {"q": {"bias": 1}}}, TREE)
