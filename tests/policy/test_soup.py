"""Soups, with the numbers of SALSA and BAI."""

import jax.numpy as jnp
import numpy as np
import pytest

from rljax.policy import soup

BASE, INSTRUCT, DISTILLED = (
    {"w": jnp.array(x, jnp.float32)} for x in ([0, 0], [1, 2], [3, -2])
)


def test_salsa_by_hand():
    pair = [INSTRUCT, DISTILLED]
    np.testing.assert_allclose(soup(pair)["w"], [2, 0])
    # The other way round it would be [1.5, 1].
    np.testing.assert_allclose(soup(pair, [0.25, 0.75])["w"], [2.5, -1])


def test_bai_by_hand():
    sft = soup([INSTRUCT, DISTILLED])
    np.testing.assert_allclose(sft["w"], [2, 0])
    np.testing.assert_allclose(soup([BASE, sft], [0.6, 0.4])["w"], [0.8, 0])


def test_sums_are_of_float32_and_stored_as_the_first():
    # In bfloat16 1 + .004 is 1, and the mean of 1, 1.0078 would be either of them.
    trees = [{"w": jnp.array([1.0], jnp.bfloat16)}, {"w": jnp.array([1.01])}]
    assert soup(trees)["w"].dtype == jnp.bfloat16
    assert float(soup(trees[::-1])["w"][0]) == pytest.approx(1.005)


@pytest.mark.parametrize("weights", [[1.0], [0.5, 0.6], [0.5, float("nan")]])
def test_weights_that_are_no_mean_are_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        soup([BASE, INSTRUCT], weights)


def test_a_soup_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one tree"):
        soup([])
