"""Laws that every transform of credit obeys, and the table of those held to them.

A new transform is held to all laws by a line in `ALL_TRANSFORMS`; one that needs a
rollout of its own (measured extras, prompt data) by a table of its own:

    @laws.over({"my_transform": my_transform()}, my_rollout)
    def test_my_transforms_obey_the_laws(law, transform, rollout_fn):
        law(transform, rollout_fn())

Laws run op by op: single operations are compiled once for all transforms, and XLA
cannot turn a product with a mask into a selection, which would hide a NaN.
"""

import functools

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage as adv
from rljax import loss, numerics
from rljax.types import Source


def _with_values(transform):
    """For transforms that read values: entropies stand in for them."""

    def update(credit, rollout, state):
        old = rollout.old.replace(extra={"value": rollout.old.entropy})
        return transform.update(credit, rollout.replace(old=old), state)

    return adv.AdvantageTransform(transform.init, update)


ALL_TRANSFORMS = {
    "rescale_reward": adv.rescale_reward(scale=2.0, shift=-1.0),
    "anneal_by_batch_rate": adv.anneal_by_batch_rate(0.5),
    "assign_by_class": adv.assign_by_class(lambda g: 1 / g.p, lambda g: -g.q),
    "assign_lead_of_best": adv.assign_lead_of_best(),
    "center_by": adv.center_by(0.3),
    "center_by_greedy": adv.center_by_greedy(),
    "center_by_group": adv.center_by_group(),
    "center_by_length": adv.center_by_length(),
    "center_by_quantile": adv.center_by_quantile(0.4),
    "center_by_risk": adv.center_by_risk(2.0),
    "chain": adv.chain(),
    "constant_length": adv.constant_length(7),
    "controlled": adv.controlled(
        adv.scale_by_focal_factor, adv.ema(0.3), lambda c, r: jnp.float32(1)
    ),
    "drop_covariant": adv.drop_covariant(
        fraction=1.0, low=0.0, clipped_fn=lambda c, r: r.current.logp < -2
    ),
    "drop_equal_groups": adv.drop_equal_groups(),
    "drop_truncated": adv.drop_truncated(),
    "scale_by_fade": adv.scale_by_fade(),
    "scale_by_fade(everything)": adv.scale_by_fade(
        adv.fade_controller(entropy_target=2.5, h_init=2.0),
        base=adv.chain(adv.center_by_group(), adv.scale_by_group_std()),
        focal_rate_fn=adv.fade.run_rate,
        scale_fn=adv.fade.area_scale,
        reward_range=(-1.0, 1.0),
    ),
    "normalise_by_group": adv.normalise_by_group(),
    "scale_by_focal_factor": adv.scale_by_focal_factor(0.5),
    "follow_teacher_by_entropy": adv.follow_teacher_by_entropy(),
    "assign_gae": _with_values(adv.assign_gae(0.9, 0.8)),
    "weigh_by_importance": adv.weigh_by_importance(),
    "keep_correct": adv.keep_correct(),
    "keep_covariant": adv.keep_covariant(0.1),
    "keep_incorrect": adv.keep_incorrect(),
    "keep_rows": adv.keep_rows(lambda rollout: rollout.samples.finished),
    "keep_top_entropy": adv.keep_top_entropy(),
    "center_by_leave_one_out": adv.center_by_leave_one_out(),
    "log_mismatch": adv.log_mismatch(),
    "weigh_by_normalised_importance": adv.weigh_by_normalised_importance(
        adv.importance.truncate(1.5)
    ),
    "punish_overlong": adv.punish_overlong(max_tokens=5, buffer=3),
    "assign_pass_at_k_training": adv.assign_pass_at_k_training(2),
    "assign_pkpo": adv.assign_pkpo(2),
    "center_by_pkpo_leave_one_out": adv.center_by_pkpo_leave_one_out(2),
    "assign_pkpo_minus_one": adv.assign_pkpo_minus_one(2),
    "punish_confident_errors": adv.chain(
        adv.center_by_group(), adv.punish_confident_errors()
    ),
    "reject": adv.reject(adv.importance.geometric, low=0.9, high=1.1),
    "assign_return_to_go": adv.assign_return_to_go(0.9),
    "scale_by_group_norm": adv.scale_by_group_norm(1.0),
    "scale_by_group_norm(inf)": adv.scale_by_group_norm(float("inf")),
    "scale_by_group_std": adv.scale_by_group_std(),
    "scale_by_group_std(ddof=1)": adv.scale_by_group_std(ddof=1, epsilon=1e-6),
    "scale_by_history": adv.chain(adv.center_by_group(), adv.scale_by_history(4)),
    "scale_by_mixed_share": adv.scale_by_mixed_share(),
    "scale_by_rate": adv.chain(
        adv.center_by_group(), adv.scale_by_rate(lambda p: 1 / p)
    ),
    "scale_negative": adv.scale_negative(2.0),
    "scale_weight": adv.scale_weight(0.1),
    "prompt_mean": adv.prompt_mean(),
    "sequence_mean": adv.sequence_mean(),
    "assign_constant": adv.assign_constant(0.3),
    "silence_spurious": adv.silence_spurious(max_prob=0.5, entropy_quantile=0.6),
    "stateless": adv.stateless(lambda credit, rollout: credit),
    "token_mean": adv.token_mean(),
    "assign_value_target": _with_values(adv.assign_value_target(0.9, 0.8)),
    "whiten_by_batch": adv.whiten_by_batch(),
    "whiten_by_batch(ddof=1)": adv.whiten_by_batch(ddof=1, share_fn=adv.by_row),
}

# Held to the laws on groups of rows from several sources.
MIXED_TRANSFORMS = {
    "constant_sum": adv.constant_sum(7),
    "skip_groups_of_one": adv.skip_groups_of_one(
        adv.center_by_group(), adv.scale_by_group_std(ddof=1)
    ),
    "keep_prompts": adv.keep_prompts(lambda solved: solved > 0),
    "keep_source": adv.keep_source(Source.OWN, Source.TEACHER),
    "keep_stored": adv.keep_stored(),
    "restrict_members": adv.chain(
        adv.restrict_members(Source.OWN), adv.center_by_group()
    ),
    "weighted_sequence_mean": adv.weighted_sequence_mean(
        lambda rollout: 1 + rollout.verdict.reward
    ),
}


def mixed_rollout():
    """`fakes.rollout` with every source in each group and stored answers."""
    rollout = fakes.rollout()
    sources = [Source.OWN, Source.OWN, Source.DEMONSTRATION, Source.TEACHER]
    data = {"answers": jnp.zeros((3, 2, 5), jnp.int32)}
    return rollout.replace(
        samples=rollout.samples.replace(source=jnp.tile(jnp.asarray(sources), (3, 1))),
        prompts=rollout.prompts.replace(data=data),
    )


def init(transform):
    return numerics.strongly_typed(transform.init())


def op_by_op(transform, rollout):
    """(credit, state) of the transform's first update."""
    return transform.update(adv.initial_credit(rollout), rollout, init(transform))


# The same as one program, for numbers by hand: each has a shape of its own, for which
# every single operation would be compiled.
apply = jax.jit(op_by_op, static_argnums=0)


def keeps_structure(transform, rollout):
    # A state that changes type cannot be carried by a scan, nor be restored.
    P, G, T = rollout.samples.mask.shape
    before = init(transform)
    credit, after = op_by_op(transform, rollout)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    assert credit.advantage.shape in {(P, G, 1), (P, G, T)}
    assert credit.weight.shape == (P, G, T) and credit.member.shape == (P, G, 1)
    assert credit.advantage.dtype == credit.weight.dtype == jnp.float32
    assert credit.member.dtype == bool
    assert bool(jnp.all(credit.weight >= 0))
    assert all(m.shape == () for m in jax.tree.leaves(credit.metrics))

    def step(state, _):
        credit, state = transform.update(adv.initial_credit(rollout), rollout, state)
        return state, credit

    jax.eval_shape(lambda state: jax.lax.scan(step, state, length=2), before)


def traces_once(transform, rollout):
    # A weak type in the state would compile every program a second time. That shows
    # when it is traced; nothing is compiled here.
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(transform.update, n=1))
    credit = adv.initial_credit(rollout)
    _, state = jax.eval_shape(update, credit, rollout, init(transform))
    jax.eval_shape(update, credit, rollout, state)


def is_the_same_under_jit(transform, rollout):
    plain = op_by_op(transform, rollout)
    jitted = apply(transform, rollout)
    chex.assert_trees_all_close(plain, jitted, rtol=1e-5, atol=1e-6)


def follows_prompts(transform, rollout):
    # Fails if a group's statistics leak into its neighbour's.
    order = np.roll(np.arange(rollout.samples.mask.shape[0]), 1)
    credit, state = op_by_op(transform, rollout)
    moved = op_by_op(transform, jax.tree.map(lambda x: x[order], rollout))
    _same(moved, (_over_rows(lambda x: x[order], credit), state))


def follows_samples(transform, rollout):
    order = np.roll(np.arange(rollout.samples.mask.shape[1]), 1)
    credit, state = op_by_op(transform, rollout)
    moved = op_by_op(transform, fakes.over_rows(lambda x: x[:, order], rollout))
    _same(moved, (_over_rows(lambda x: x[:, order], credit), state))


def ignores_padding(transform, rollout):
    # The padding is NaN: multiplying by a mask instead of selecting shows.
    T = rollout.samples.mask.shape[-1]
    credit, state = op_by_op(transform, fakes.pad_tokens(rollout, by=3))
    assert bool(jnp.all(credit.weight[..., T:] == 0))
    _same(
        (_over_rows(lambda x: x[..., :T], credit), state), op_by_op(transform, rollout)
    )


def stays_finite(transform, rollout):
    # Groups of one reward, rows without tokens, rows whose verifier failed.
    verdict, samples = rollout.verdict, rollout.samples
    one, none = jnp.ones_like(verdict.reward), jnp.zeros_like(samples.mask)
    for rows in (
        rollout.replace(verdict=verdict.replace(reward=one, correct=one > 0)),
        rollout.replace(verdict=verdict.replace(reward=0 * one, correct=one < 0)),
        rollout.replace(samples=samples.replace(mask=none)),
        rollout.replace(verdict=verdict.replace(failed=one > 0)),
    ):
        chex.assert_tree_all_finite(op_by_op(transform, rows))


def never_reads_failed_rows(transform, rollout):
    # What a verifier that failed has written may be NaN, and be called correct.
    failed = jnp.zeros_like(rollout.verdict.failed).at[:, 1].set(True)
    verdict = rollout.verdict.replace(failed=failed)
    rows = rollout.replace(verdict=verdict)
    said = verdict.replace(
        reward=jnp.where(failed, jnp.nan, verdict.reward),
        correct=verdict.correct | failed,
    )
    want, state = op_by_op(transform, rows)
    got, after = op_by_op(transform, rows.replace(verdict=said))

    def learned(credit):
        return jnp.where(credit.weighs, credit.advantage, 0.0)

    chex.assert_trees_all_equal(
        (learned(got), got.weight, got.member, got.metrics, after),
        (learned(want), want.weight, want.member, want.metrics, state),
    )


def takes_one_sample_or_says_no(transform, rollout):
    # A quiet NaN would be found after hours, as a collapsed policy.
    try:
        out = op_by_op(transform, fakes.over_rows(lambda x: x[:, :1], rollout))
    except ValueError as error:
        assert "num_samples" in str(error)
    else:
        chex.assert_tree_all_finite(out)


def sends_no_gradient(transform, rollout):
    # As part of an algorithm; a leak would add a term that no paper has.
    reduced = op_by_op(transform, rollout)[0].reduced
    reduction = () if reduced else (adv.token_mean(),)
    term = adv.Term(weighting=adv.chain(transform, *reduction), loss_fn=loss.nll())
    algorithm = adv.algorithm(term=term)

    def total(current):
        rows = rollout.replace(current=current, old=current)
        credits, state, _ = algorithm.credit(rows, algorithm.init())
        (credit,), _, _ = algorithm.weigh(credits, rows, state)
        return jnp.sum(credit.advantage * credit.weight)

    grads = jax.grad(total)(rollout.current)
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))


LAWS = (
    keeps_structure,
    traces_once,
    is_the_same_under_jit,
    follows_prompts,
    follows_samples,
    ignores_padding,
    stays_finite,
    never_reads_failed_rows,
    takes_one_sample_or_says_no,
    sends_no_gradient,
)


def over(table, rollout_fn=fakes.rollout):
    """Parametrises a test `(law, transform, rollout_fn)` over a table and all laws."""
    rollout_fn = functools.cache(rollout_fn)  # made once for all
    cases = [
        pytest.param(law, transform, rollout_fn, id=f"{name}-{law.__name__}")
        for name, transform in table.items()
        for law in LAWS
    ]
    return pytest.mark.parametrize(("law", "transform", "rollout_fn"), cases)


def _over_rows(fn, credit):
    return credit.replace(
        advantage=fn(credit.advantage),
        weight=fn(credit.weight),
        member=fn(credit.member),
    )


def _same(got, want):
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
