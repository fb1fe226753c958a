"""Which rows and prompts learn, by source, success, group and truncation."""

import fakes
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from mixed import (
    DEMONSTRATION,
    OWN,
    TEACHER,
    Row,
    group,
)

from rljax import advantage as adv


def kept(transform, rollout):
    """bool[P, G]: rows that still weigh something."""
    credit, _ = transform.update(adv.initial_credit(rollout), rollout, transform.init())
    return jnp.any(credit.weight > 0, -1).tolist()


def test_rows_are_kept_by_source():
    rollout = laws.mixed_rollout()
    assert kept(adv.keep_source(OWN), rollout) == [[True, True, False, False]] * 3
    assert kept(adv.keep_stored(), rollout) == [[False, False, True, True]] * 3
    assert kept(adv.keep_source(OWN, TEACHER), rollout)[0] == [
        True,
        True,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="at least one source"):
        kept(adv.keep_source(), rollout)


def test_prompts_are_kept_by_the_success_of_their_own_rollouts():
    # Prompt 0: the demonstration alone is right, which must not open the gate.
    _, rollout = group(
        [Row((0.5,), 0.0), Row((0.5,), 0.0), Row((0.5,), 1.0, DEMONSTRATION)],
        [Row((0.5,), 0.0), Row((0.5,), 1.0), Row((0.5,), 1.0, DEMONSTRATION)],
    )
    transform = adv.keep_prompts(lambda solved: solved > 0)
    assert kept(transform, rollout) == [[False] * 3, [True] * 3]
    credit, _ = transform.update(adv.initial_credit(rollout), rollout, ())
    assert credit.metrics["kept_prompts"] == 0.5


def test_dynamic_sampling_drops_groups_that_agree():
    # Four groups of four with 0, 1, 3 and 4 successes: the middle ones stay, and a mean
    # placed after the filter divides by their 8 tokens, not by 16.
    rows = fakes.solved(4, 0, 1, 3, 4)
    drop = adv.chain(adv.drop_equal_groups(), adv.token_mean())
    credit, _ = laws.apply(drop, rows)
    np.testing.assert_allclose(
        credit.weight[:, :, 0], [[0] * 4, *[[1 / 8] * 4] * 2, [0] * 4]
    )
    assert float(credit.metrics["dropped_share"]) == 0.5


def test_a_failed_row_does_not_make_a_group_mixed():
    rows = fakes.solved(4, 3)
    failed = jnp.array([[False, False, False, True]])
    rows = rows.replace(verdict=rows.verdict.replace(failed=failed))
    credit, _ = laws.apply(adv.drop_equal_groups(), rows)
    assert float(jnp.sum(credit.weight)) == 0


def test_overlong_filtering_keeps_the_groups_statistics():
    # The cut sample's reward still shapes the baseline: 1 - 1/2 for the finished one.
    rows = fakes.rollout(1, 2, 3, reward=[[1, 0]], length=[[2, 3]])
    credit, _ = laws.apply(adv.chain(adv.drop_truncated(), adv.center_by_group()), rows)
    np.testing.assert_allclose(credit.advantage[0, :, 0], [0.5, -0.5])
    assert credit.weight[0].tolist() == [[1, 1, 0], [0, 0, 0]]
