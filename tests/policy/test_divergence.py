"""Divergences by enumeration, the measure functions behind them, the value head.

By hand, for pi = (.7, .2, .1) and pi_ref = (.5, .3, .2), with gradients in the logits:

    KL(pi, ref) = .7 log 1.4 + .2 log .667 + .1 log .5     pi (log(pi / ref) - KL)
    KL(ref, pi) = .5 log .714 + .3 log 1.5 + .2 log 2      pi - ref
    chi2        = .49 / .5 + .04 / .3 + .01 / .2 - 1       2 pi (pi / ref - 1 - chi2)
"""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from token_case import case

from rljax import advantage as adv
from rljax import algorithms, loss, program
from rljax.learn import update
from rljax.policy import against_reference, privileged_teacher, with_value_head
from rljax.policy.divergence import divergences
from rljax.rollout.sample import sampler
from rljax.types import NotMeasured, Verdict

PI, REF = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
REVERSE = [0.17594459, -0.09811759, -0.07782700]
FORWARD = [0.2, -0.1, -0.1]
CHI = [0.33133333, -0.19866667, -0.13266667]


def sampled(fn, weight):
    """A loss of each token of the vocabulary, weighted as if it had been drawn."""

    def value(logits):
        logp = jax.nn.log_softmax(logits)
        rows = case(np.ones((1, 3)))
        now = rows.rollout.current.replace(logp=logp[None, None])
        reference = now.replace(logp=jnp.log(jnp.asarray(REF))[None, None])
        rollout = rows.rollout.replace(reference=reference)
        return jnp.sum(jnp.asarray(weight) * fn(now, rows.credit, rollout))

    return value, jax.grad(value)(jnp.log(jnp.asarray(PI)))


@pytest.mark.parametrize(
    ("fn", "value", "slope"),
    [
        (loss.kl_absolute(), 0.38593831, [0.42, -0.28, -0.14]),
        # Differentiated as it stands: half of chi2's gradient plus that of KL(ref, pi).
        (loss.chi_squared(), 0.16333333, np.array(CHI) / 2 + FORWARD),
        (loss.chi_squared_straight_through(), 0.16333333, CHI),
    ],
    ids=["absolute", "chi_squared", "chi_squared_straight_through"],
)
def test_sampled_divergences_in_expectation(fn, value, slope):
    # Enumerated on-policy: weights pi, fixed.
    total, grad = sampled(fn, PI)
    assert float(total(jnp.log(jnp.asarray(PI)))) == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(grad, slope, atol=1e-6)


def test_sampled_chi_squared_of_one_token():
    # e^x + e^-x - 2 at x = .5 and -.5.
    fn = loss.chi_squared()
    for x in (0.5, -0.5):
        rows = case([[1]], logp=-1.0)
        reference = rows.rollout.current.replace(logp=rows.rollout.current.logp - x)
        got = fn(
            rows.rollout.current, rows.credit, rows.rollout.replace(reference=reference)
        )
        assert float(got[0, 0, 0]) == pytest.approx(0.255252, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "slope"),
    [
        ("kl_reverse", 0.08512283, REVERSE),
        ("kl_forward", 0.09203285, FORWARD),
        ("chi_squared", 0.16333333, CHI),
    ],
)
def test_exact_divergences_and_their_gradients(name, value, slope):
    # Any shift of the logits is the same distribution.
    def one(logits):
        return divergences(logits + 3, jnp.log(jnp.asarray(REF)))[name]

    logits = jnp.log(jnp.asarray(PI))
    assert float(one(logits)) == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(jax.grad(one)(logits), slope, atol=1e-6)


def test_divergences_of_equal_distributions_are_zero():
    logits = jnp.array([3.0, -2, 0.1])
    for value in divergences(logits, logits + 1).values():
        assert abs(float(value)) < 1e-6


def decoders():
    policy = fakes.decoder(max_logits=60)
    init = jax.jit(policy.init)
    params, reference = init(jax.random.key(0)), init(jax.random.key(1))
    rows = fakes.rollout(2, 2, 5)
    return policy, params, reference, rows


def test_chunks_change_nothing_and_logp_is_the_policys():
    policy, params, reference, rows = decoders()
    args = params, rows.prompts, rows.samples, reference
    whole = jax.jit(against_reference(policy))(*args)
    parts = jax.jit(against_reference(policy, max_logits=70))(*args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        whole,
        parts,
    )
    plain = jax.jit(policy.measure)(params, rows.prompts, rows.samples)
    np.testing.assert_allclose(whole.logp, plain.logp, rtol=1e-5)
    np.testing.assert_allclose(whole.entropy, plain.entropy, rtol=1e-5)
    assert float(jnp.min(whole.extra["kl_reverse"])) > 0
    # The k3 estimate's mean over the vocabulary is the exact one: here only its sign.
    assert whole.extra.keys() == {"kl_reverse", "kl_forward", "chi_squared"}


def test_the_reference_gets_no_gradient_and_the_policy_the_right_one():
    policy = fakes.bandit(1, 1, 3)
    rows = fakes.rollout(1, 1, 1, length=[[1]])
    rows = rows.replace(
        samples=rows.samples.replace(tokens=jnp.zeros((1, 1, 1), jnp.int32)),
        prompts=rows.prompts.replace(id=jnp.zeros(1, jnp.int32)),
    )
    params, reference = (
        {"logits": jnp.log(jnp.asarray(p, jnp.float32))[None, None]} for p in (PI, REF)
    )

    def total(params, reference):
        measure = against_reference(policy)
        stats = measure(params, rows.prompts, rows.samples, reference)
        return jnp.sum(stats.extra["kl_reverse"])

    own, other = jax.grad(total, (0, 1))(params, reference)
    np.testing.assert_allclose(own["logits"][0, 0], REVERSE, atol=1e-6)
    np.testing.assert_array_equal(other["logits"], 0)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_learner_minimises_the_exact_divergence(num_microbatches):
    policy = fakes.bandit(2, 2, 3)
    rows = fakes.rollout(2, 4, 2)
    rows = rows.replace(samples=rows.samples.replace(tokens=rows.samples.tokens % 3))
    kl = adv.algorithm(
        kl=adv.Term(weighting=adv.token_mean(), loss_fn=loss.kl_reverse_exact())
    )
    made = update.learner(
        against_reference(policy),
        kl,
        optax.adam(0.1),
        num_passes=150,
        num_microbatches=num_microbatches,
    )
    reference = {
        "logits": jnp.log(jnp.asarray(REF, jnp.float32)) + jnp.zeros((2, 2, 3))
    }
    state = made.init(policy.init(None), jax.random.key(0), reference)
    state, _ = jax.jit(made.learn)(state, rows)
    got = jax.nn.softmax(state.params["logits"])
    reached = np.asarray(rows.samples.mask.any(1))[
        np.asarray(rows.prompts.id).argsort()
    ]
    np.testing.assert_allclose(
        got[reached], np.tile(REF, (reached.sum(), 1)), atol=1e-3
    )


def test_an_exact_divergence_nobody_measured_is_named():
    rows = fakes.rollout()
    for fn in (
        loss.kl_reverse_exact(),
        loss.kl_forward_exact(),
        loss.chi_squared_exact(),
    ):
        with pytest.raises(NotMeasured, match="against_reference"):
            fn(rows.current, None, rows)


def test_a_value_head_leaves_the_policy_as_it_is():
    policy, params, _, rows = decoders()
    headed = with_value_head(policy, d_model=32)
    both = jax.jit(headed.init)(jax.random.key(0))
    assert set(both) == {"policy", "value"}
    both["policy"] = params
    got = jax.jit(headed.measure)(both, rows.prompts, rows.samples)
    want = jax.jit(policy.measure)(params, rows.prompts, rows.samples)
    np.testing.assert_allclose(got.logp, want.logp, rtol=1e-5)
    np.testing.assert_allclose(got.entropy, want.entropy, rtol=1e-5)
    np.testing.assert_array_equal(got.extra["value"], 0)
    assert got.extra["value"].shape == rows.samples.mask.shape


def test_a_detached_value_head_trains_alone():
    policy, _, _, rows = decoders()
    for features_fn, moves in ((jax.lax.stop_gradient, False), (lambda h: h, True)):
        headed = with_value_head(policy, d_model=32, features_fn=features_fn)
        both = jax.jit(headed.init)(jax.random.key(0))
        both["value"]["kernel"] = jnp.ones(32)

        def total(params, headed=headed):
            stats = headed.measure(params, rows.prompts, rows.samples)
            return jnp.sum(stats.extra["value"])

        grads = jax.jit(jax.grad(total))(both)
        assert float(jnp.abs(grads["value"]["kernel"]).sum()) > 0
        trunk = grads["policy"]["embed"]["embedding"]
        assert bool(jnp.any(trunk != 0)) is moves


def verify(prompts, samples):
    return Verdict.binary(samples.tokens[..., 0] % 2 == prompts.id[:, None] % 2)


def test_the_actor_measures_old_values_and_ppo_fits_them():
    # The value of each prompt comes to be explained within a few steps.
    policy = with_value_head(fakes.bandit(4, 2, 8), d_model=8)
    sample = sampler(policy, num_samples=16, max_tokens=2, stop_tokens=())
    act = program.actor(policy, sample, measure_old=policy.measure)
    made = update.learner(
        policy.measure, algorithms.ppo(value_coefficient=1.0), optax.adam(0.1)
    )
    run = program.fused(act, made, verify)
    prompts = fakes.prompts(4)
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x, (30, *x.shape)), prompts)
    _, metrics = run(made.init(policy.init(None), jax.random.key(0)), batch)
    assert float(metrics["reward/mean"][-1]) > float(metrics["reward/mean"][0]) + 0.2
    assert float(metrics["value/explained_variance"][0]) == pytest.approx(0, abs=1e-5)
    assert jnp.isfinite(metrics["update/loss"]).all()


@pytest.mark.slow
def test_a_privileged_teacher_reads_another_prompt():
    policy, params, _, rows = decoders()
    other = fakes.prompts(2, num_tokens=7, seed=3)
    prompts = rows.prompts.replace(
        data={"privileged": other.tokens, "privileged_length": other.length}
    )
    sample = lambda *_: (rows.samples, rows.old)  # noqa: E731
    act = program.actor(policy, sample, teacher=privileged_teacher(policy))
    state = update.learner(policy.measure, algorithms.dasd(), optax.sgd(1.0)).init(
        params, jax.random.key(0)
    )
    rollout = jax.jit(act)(state, prompts)
    told = rows.prompts.replace(tokens=other.tokens, length=other.length)
    want = jax.jit(policy.measure)(params, told, rows.samples)
    np.testing.assert_allclose(rollout.teacher.logp, want.logp, rtol=1e-5)
    with pytest.raises(ValueError, match="privileged"):
        act(state, rows.prompts)
