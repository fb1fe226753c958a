"""Chains, terms, algorithms, and the laws of all transforms."""

import inspect

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
import pytest

from rljax import advantage as adv
from rljax.advantage import AdvantageTransform, Term, algorithm, chain, stateless
from rljax.types import Missing, NotMeasured

pytestmark = pytest.mark.usefixtures("strict")

LOSS = lambda now, credit, rollout: -credit.advantage * now.logp  # noqa: E731


@laws.over(laws.ALL_TRANSFORMS)
def test_every_transform_obeys(law, transform, rollout_fn):
    law(transform, rollout_fn())


@laws.over(laws.MIXED_TRANSFORMS, laws.mixed_rollout)
def test_every_transform_of_mixed_groups_obeys(law, transform, rollout_fn):
    law(transform, rollout_fn())


def test_every_exported_transform_is_held_to_the_laws():
    exported = {
        name
        for name in adv.__all__
        if inspect.isfunction(getattr(adv, name))
        and inspect.signature(getattr(adv, name)).return_annotation
        in (AdvantageTransform, "AdvantageTransform")
    }
    held = [*laws.ALL_TRANSFORMS, *laws.MIXED_TRANSFORMS]
    assert exported <= {name.split("(")[0] for name in held}


def test_a_transform_that_breaks_a_law_is_caught():
    # Laws that nothing can break would prove nothing: each must reject its culprit.
    def leaky(fn):
        return stateless(lambda c, r: c.replace(advantage=fn(c, r)))

    culprits = {
        laws.keeps_structure: leaky(lambda c, r: c.advantage[..., 0]),
        laws.traces_once: AdvantageTransform(lambda: 0.0, lambda c, r, s: (c, 1.0)),
        laws.follows_prompts: leaky(lambda c, r: c.advantage - c.advantage[:1]),
        laws.follows_samples: leaky(lambda c, r: c.advantage - c.advantage[:, :1]),
        laws.ignores_padding: leaky(
            lambda c, r: jnp.sum(r.old.logp * c.weight, -1, keepdims=True)
        ),
        laws.stays_finite: leaky(
            lambda c, r: c.advantage / jnp.std(c.advantage, 1, keepdims=True)
        ),
        laws.takes_one_sample_or_says_no: leaky(
            lambda c, r: c.advantage / jnp.std(c.advantage, 1, keepdims=True)
        ),
    }
    for law, culprit in culprits.items():
        with pytest.raises((AssertionError, ValueError, TypeError)):
            law(culprit, fakes.rollout())


def test_start_is_reward_and_mask_without_failed_rows():
    rows = fakes.rollout(1, 2, 3, reward=[[1, 0.5]], length=[[3, 2]])
    rows = rows.replace(verdict=rows.verdict.replace(failed=jnp.array([[False, True]])))
    credit = adv.initial_credit(rows)
    # The failed row says 0.5, which nobody may read.
    chex.assert_trees_all_equal(credit.advantage, jnp.array([[[1.0], [0.0]]]))
    chex.assert_trees_all_equal(credit.weight, jnp.array([[[1.0, 1, 1], [0, 0, 0]]]))
    chex.assert_trees_all_equal(credit.member, jnp.array([[[True], [False]]]))


def test_start_without_a_verdict_rewards_every_row_with_one():
    rows = fakes.rollout().replace(verdict=Missing("verdict", "a verifier"))
    assert bool(jnp.all(adv.initial_credit(rows).advantage == 1))
    assert bool(jnp.all(adv.initial_credit(rows).member))


def test_chain_runs_from_left_to_right():
    # (r + 1) * 2 for a reward of 1 is 4; from right to left it is 3.
    def change(fn):
        return stateless(lambda c, r: c.replace(advantage=fn(c.advantage)))

    rows = fakes.rewards([1, 1])
    credit, _ = laws.apply(
        chain(change(lambda a: a + 1), change(lambda a: a * 2)), rows
    )
    assert float(credit.advantage[0, 0, 0]) == 4


def test_chains_nest():
    rows = fakes.rollout()
    parts = adv.center_by_group(), adv.scale_by_group_std(), adv.scale_negative(2.0)
    flat, _ = laws.op_by_op(chain(*parts), rows)
    nested, _ = laws.op_by_op(chain(parts[0], chain(*parts[1:])), rows)
    chex.assert_trees_all_equal(flat, nested)


def test_chain_refuses_the_state_of_another_chain():
    with pytest.raises(ValueError, match="chain's own init"):
        chain(adv.token_mean()).update(None, None, ())


def test_a_filter_before_a_reduction_renormalises_and_after_it_does_not():
    # 3 + 1 tokens, the second row dropped: 1/3 before the mean, 1/4 after it.
    rows = fakes.rollout(1, 2, 3, reward=[[1, 0]], length=[[3, 1]])
    drop = stateless(lambda c, r: c.replace(weight=c.weight * c.advantage))
    before, _ = laws.apply(chain(drop, adv.token_mean()), rows)
    after, _ = laws.apply(chain(adv.token_mean(), drop), rows)
    chex.assert_trees_all_close(before.weight[0, 0], jnp.full(3, 1 / 3))
    chex.assert_trees_all_close(after.weight[0, 0], jnp.full(3, 1 / 4))


def test_algorithm_without_terms_is_refused():
    with pytest.raises(ValueError, match="at least one term"):
        algorithm()


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (chain(), "'policy' needs exactly one reduction"),
        (chain(adv.token_mean(), adv.sequence_mean()), "got reduced ones"),
    ],
)
def test_a_term_takes_exactly_one_reduction(weighting, message):
    rows, method = (
        fakes.rollout(),
        algorithm(policy=Term(weighting=weighting, loss_fn=LOSS)),
    )
    credits, state, _ = method.credit(rows, method.init())
    with pytest.raises(ValueError, match=message):
        method.weigh(credits, rows, state)


def test_the_loss_is_the_weighted_sum_over_terms():
    rows = fakes.rollout(1, 2, 2, reward=[[1, 0]], length=[[2, 1]])
    method = algorithm(
        a=Term(weighting=adv.token_mean(), loss_fn=LOSS),
        b=Term(
            weighting=chain(adv.token_mean(), adv.scale_weight(0.5)),
            loss_fn=lambda n, c, r: n.logp**2,
        ),
    )
    credits, state, _ = method.credit(rows, method.init())
    credits, _, _ = method.weigh(credits, rows, state)
    logp = rows.current.logp
    want = -(logp[0, 0, 0] + logp[0, 0, 1]) / 3
    want += (logp[0, 0, 0] ** 2 + logp[0, 0, 1] ** 2 + logp[0, 1, 0] ** 2) / 6
    chex.assert_trees_all_close(
        method.loss(rows.current, credits, rows), want, rtol=1e-6
    )


def test_what_weighs_nothing_may_be_nan():
    rows = fakes.pad_tokens(fakes.rollout(), by=2)
    method = algorithm(policy=Term(weighting=adv.token_mean(), loss_fn=LOSS))
    credits, state, _ = method.credit(rows, method.init())
    credits, _, _ = method.weigh(credits, rows, state)
    assert bool(jnp.isfinite(method.loss(rows.current, credits, rows)))


def test_each_term_has_credit_state_and_metric_names_of_its_own():
    rows = fakes.rollout()
    log = stateless(lambda c, r: c.log(level=jnp.mean(c.advantage)))
    method = algorithm(
        policy=Term(
            advantage=chain(adv.scale_by_fade(), log),
            weighting=chain(log, adv.token_mean()),
            loss_fn=LOSS,
        ),
        extra=Term(advantage=log, weighting=adv.token_mean(), loss_fn=LOSS),
    )
    credits, state, metrics = method.credit(rows, method.init())
    assert {"policy/alpha", "policy/level", "extra/level"} <= set(metrics)
    assert not any(c.metrics for c in credits)
    chex.assert_trees_all_close(metrics["extra/level"], jnp.mean(rows.verdict.reward))
    _, after, metrics = method.weigh(credits, rows, state)
    assert set(metrics) == {"policy/level"}
    # Weighing must not rewind what the advantage chain has learned.
    chex.assert_trees_all_equal(after.advantage, state.advantage)
    assert int(state.advantage[0][0].controller.step) == 1


def test_a_chain_that_reads_current_is_found_by_tracing():
    def weigh_by(name):
        def weight(c, r):
            return c.replace(weight=c.weight * jnp.exp(getattr(r, name).logp))

        return algorithm(
            policy=Term(
                weighting=chain(stateless(weight), adv.token_mean()), loss_fn=LOSS
            )
        )

    rows = fakes.rollout()
    for name, want in (("current", True), ("old", False)):
        method = weigh_by(name)
        credits, state, _ = method.credit(rows, method.init())
        assert adv.reads_current(method, credits, rows, state) is want
    blind = rows.replace(reference=Missing("reference", "measure it"))
    with pytest.raises(NotMeasured, match="measure it"):
        adv.reads_current(weigh_by("reference"), credits, blind, state)


def test_hyperparameters_may_be_traced_so_a_population_is_a_vmap():
    rows = fakes.solved(4, 1)

    def advantage(alpha, delta):
        parts = (
            adv.center_by_group(),
            adv.scale_by_focal_factor(alpha - 1),
            adv.scale_negative(1 / delta),
        )
        return laws.op_by_op(chain(*parts), rows)[0].advantage[0, :2, 0]

    out = jax.vmap(advantage)(jnp.array([1.0, 3.0]), jnp.array([1.0, 0.5]))
    # p = 1/4: (3/4, -1/4), and times (3/4)^2 with the failure doubled.
    chex.assert_trees_all_close(
        out, jnp.array([[0.75, -0.25], [0.421875, -0.28125]]), rtol=1e-6
    )
