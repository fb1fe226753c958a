"""Every loss function is local to its row, ignores padding, bears a far token."""

import jax
import jax.numpy as jnp
import loss_laws
import pytest

from rljax import loss

pytestmark = pytest.mark.usefixtures("strict")


@loss_laws.over(loss_laws.ALL_LOSSES)
def test_loss_functions_obey_the_laws(law, loss_fn, rollout):
    law(loss_fn, rollout)


def test_every_exported_loss_function_is_held_to_the_laws():
    functions = {"is_clipped", "log_ratio", "token_ratio"}
    modules = {"sequence_ratio", "supervised"}
    exported = set(loss.__all__) - functions - modules
    assert exported <= {name.split("(")[0] for name in loss_laws.ALL_LOSSES}


@pytest.mark.parametrize(
    ("law", "wrong"),
    [
        # Centred over the batch: every row knows of every other.
        (
            loss_laws.is_local_to_its_row,
            lambda now, c, r: -c.advantage * (now.logp - jnp.mean(now.logp)),
        ),
        # A coefficient that another row's log-probability sets.
        (
            loss_laws.is_local_to_its_row,
            lambda now, c, r: now.logp * jnp.roll(now.logp, 1, 1),
        ),
        # By the weight, as XLA makes a selection of a product with a converted mask.
        (
            loss_laws.ignores_what_lies_outside_the_mask,
            lambda now, c, r: jnp.sum(now.logp * c.weight, -1, keepdims=True),
        ),
        (
            loss_laws.bears_a_far_token,
            lambda now, c, r: (
                -c.advantage * jnp.minimum(jnp.exp(now.logp - r.old.logp), 2.0)
            ),
        ),
        (
            loss_laws.has_the_type_of_a_loss,
            lambda now, c, r: -(c.advantage * now.logp)[..., 0],
        ),
    ],
)
def test_the_laws_find_what_breaks_them(law, wrong):
    rows = loss_laws.rollout()
    with pytest.raises(AssertionError), jax.numpy_dtype_promotion("standard"):
        law(wrong, rows)
