"""Controllers are state machines: their sequences, by hand."""

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import optax
import pytest
from mixed import (
    Row,
    group,
    sampling,
    step,
    task,
    verify,
)

from rljax import advantage as adv
from rljax import program
from rljax.learn import update
from rljax.loss import nll, reinforce

pytestmark = pytest.mark.usefixtures("strict")


def outputs(controller, *measurements):
    value, state = controller.init()
    values = [float(value)]
    for x in measurements:
        value, state = controller.update(jnp.float32(x), state)
        values.append(float(value))
    return values


def test_ema_weighs_the_new_value_with_its_rate():
    # The opposite convention would give 3.6 after the first measurement.
    got = outputs(adv.ema(0.1, initial=0.0), 4, 4)
    assert got == pytest.approx([0, 0.4, 0.76])


def test_ema_without_initial_value_starts_at_the_first_measurement():
    assert outputs(adv.ema(0.1), 4, 0)[1:] == pytest.approx([4, 3.6])


def test_ema_refuses_a_rate_outside_its_range():
    with pytest.raises(ValueError, match="rate must lie in"):
        adv.ema(0.0)


def test_pid_terms():
    # Errors 1 - x = 1, 0.5, -1; the derivative starts from an error of 0.
    x = 0.0, 0.5, 2.0
    assert outputs(adv.pid(1.0, initial=3.0, proportional=2.0), *x) == pytest.approx(
        [3, 5, 4, 1]
    )
    assert outputs(adv.pid(1.0, integral=2.0), *x) == pytest.approx([0, 2, 3, 1])
    assert outputs(adv.pid(1.0, derivative=2.0), *x) == pytest.approx([0, 2, -1, -3])


def test_pid_does_not_wind_up_while_it_is_clipped():
    # Five errors of 1 against a bound of 2; then one of -1 must show at once. A sum
    # that went on growing to 5 would hold the output at 2 for three more steps.
    controller = adv.pid(1.0, integral=1.0, low=0.0, high=2.0)
    got = outputs(controller, 0, 0, 0, 0, 0, 2)
    assert got == pytest.approx([0, 1, 2, 2, 2, 2, 1])


def test_pid_steers_a_plant_to_its_target():
    # x follows the output with gain 0.5 and an unknown offset; only an integral ends
    # at the target exactly.
    controller = adv.pid(1.0, proportional=0.2, integral=0.3)
    value, state = controller.init()
    for _ in range(60):
        value, state = controller.update(0.5 * value + 0.1, state)
    assert float(0.5 * value + 0.1) == pytest.approx(1.0, abs=1e-3)


def test_pid_refuses_crossed_bounds():
    with pytest.raises(ValueError, match="low <= high"):
        adv.pid(1.0, low=1.0, high=0.0)


def test_a_schedule_counts_updates_from_zero():
    controller = adv.schedule(optax.linear_schedule(1.0, 0.0, 4))
    with jax.numpy_dtype_promotion("standard"):  # optax divides an int by a float
        assert outputs(controller, 0, 0, 0)[1:] == pytest.approx([1, 0.75, 0.5])


def test_constant_is_constant():
    assert outputs(adv.constant(2.0), 5, 6) == [2, 2, 2]


def mean_reward(credit, rollout):
    return jnp.mean(rollout.verdict.reward)


def test_controlled_measures_first_and_shapes_the_same_batch():
    # Rate 1: the value is this batch's mean reward 1/4, not the initial 9.
    transform = adv.controlled(
        adv.scale_negative, adv.ema(1.0, initial=9.0), mean_reward
    )
    transform = adv.chain(adv.center_by_group(), transform)
    credit, state = laws.apply(transform, fakes.solved(4, 1))
    chex.assert_trees_all_close(credit.advantage[0, :2, 0], jnp.array([0.75, -0.0625]))
    assert float(credit.metrics["value"]) == 0.25
    assert int(state[1].controller.count) == 1


def test_controlled_carries_the_state_of_what_it_drives():
    inner = adv.AdvantageTransform(
        lambda: jnp.zeros((), jnp.int32), lambda c, r, s: (c, s + 1)
    )
    transform = adv.controlled(lambda v: inner, adv.constant(1.0), mean_reward)
    state = laws.init(transform)
    for _ in range(3):
        _, state = transform.update(
            adv.initial_credit(fakes.rollout()), fakes.rollout(), state
        )
    assert int(state.transform) == 3


def test_a_coefficient_may_be_controlled_in_the_weighting():
    # What drives a transform drives a term's coefficient: after the mean, 0.5 of it.
    weighting = adv.chain(
        adv.token_mean(),
        adv.controlled(adv.scale_weight, adv.constant(jnp.float32(0.5)), mean_reward),
    )
    credit, _ = laws.apply(weighting, fakes.rollout())
    assert float(jnp.sum(credit.weight)) == pytest.approx(0.5)


# One controller over several terms.


def shared(loss_fn=None):
    """Two terms with shares v and 1 - v, v counting steps in tenths."""

    def make(value):
        fn = nll() if loss_fn is None else loss_fn(value)
        return adv.algorithm(
            a=adv.Term(
                weighting=adv.chain(adv.token_mean(), adv.scale_weight(value)),
                loss_fn=fn,
            ),
            b=adv.Term(
                weighting=adv.chain(adv.token_mean(), adv.scale_weight(1 - value)),
                loss_fn=reinforce(),
            ),
        )

    controller = adv.schedule(lambda step: 0.1 * (1 + step.astype(jnp.float32)))
    return adv.controlled_algorithm(make, controller, lambda credits, rollout: ())


def test_a_controlled_algorithm_shares_one_number_between_terms():
    # Losses 0.5 ln 2 and ln 2 at the first step's v = 0.1 and the second's 0.2.
    now, rollout = group([Row((0.5,), 2.0)])
    algorithm, state = shared(), None
    for v in (0.1, 0.2):
        loss, _, state, metrics = step(algorithm, now, rollout, state)
        np.testing.assert_allclose(loss, (v + 2 * (1 - v)) * np.log(2), rtol=1e-6)
        np.testing.assert_allclose(metrics["control/value"], v, rtol=1e-6)
    assert state.controller == 2


def test_a_loss_function_must_not_hide_the_controlled_value():
    # It would keep the first value for ever, without a word.
    now, rollout = group([Row((0.5,))])
    scaled = lambda v: lambda now, credit, rollout: -v * now.logp  # noqa: E731
    with pytest.raises(ValueError, match="must not depend on the controlled value"):
        step(shared(scaled), now, rollout)


def test_a_controlled_algorithms_state_has_one_structure():
    now, rollout = group([Row((0.5,))])
    algorithm = shared()
    _, _, state, _ = step(algorithm, now, rollout)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, algorithm.init())


def test_a_refused_step_leaves_the_controller_where_it_was():
    bandit = fakes.bandit(8, 3, 6)
    learner = update.learner(bandit.measure, shared(), optax.sgd(1.0))
    state = learner.init(bandit.init(None), jax.random.key(0))
    broken = state.replace(params={"logits": jnp.full((8, 3, 6), jnp.nan)})
    run = program.fused(program.actor(bandit, sampling(bandit)), learner, verify)
    # The sampler and optax promote; only credit and losses are held to strict rules.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        after, metrics = jax.jit(run)(broken, task(2))
    assert metrics["update/refused"].tolist() == [1, 1]
    assert after.algorithm.controller == 0
