"""Gates: what they refuse, what they remember, and that a refusal leaves no trace.

Numbers without another source follow by hand from the rules in `rljax.learn.gate`.
"""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss
from rljax.learn import gate, update

LOG_RATIO = np.array([0.1, -0.2, 0.3, 0.0], np.float32)


def run(one, energies, reuse=0, state=None):
    """Decisions and final state for gradients with these squared norms."""
    state = one.init() if state is None else state
    step = jax.jit(one.update)
    decisions = []
    for energy in energies:
        grads = {"head": jnp.array([jnp.sqrt(energy)]), "body": jnp.array([99.0])}
        accept, stop, state, _ = step(
            grads, {"update/loss": jnp.float32(energy)}, jnp.int32(reuse), state
        )
        decisions.append((bool(accept), bool(stop)))
    return decisions, state


DGG = gate.gradient_gate(lambda g: g["head"], threshold=0.5, window=4)
ACCEPT, GATE = (True, False), (False, True)
WARM = [1.00, 1.10, 1.05, 1.15, 1.10]


@pytest.mark.parametrize("made", [lambda g: g, gate.all_of], ids=["alone", "among"])
@pytest.mark.parametrize(
    ("decision", "told"),
    [
        (
            (jnp.ones(16, bool), jnp.zeros((), bool)),
            r"accept as bool\[\], got bool\[16\]",
        ),
        ((jnp.ones((), bool), jnp.zeros(1, bool)), r"stop as bool\[\], got bool\[1\]"),
        ((1.0, False), r"accept as bool\[\], got float"),
    ],
)
def test_a_gate_that_decides_by_parts_raises(made, decision, told):
    # A decision for each of 16 tokens would move the logits of some and not of others.
    policy = fakes.bandit(4, 4, 16)
    one = made(gate.Gate(lambda: (), lambda g, m, r, s: (*decision, s, {})))
    term = adv.Term(weighting=adv.token_mean(), loss_fn=loss.reinforce())
    algorithm = adv.algorithm(policy=term)
    learner = update.learner(policy.measure, algorithm, optax.sgd(1.0), gate=one)
    state = learner.init(policy.init(None), jax.random.key(0))
    with pytest.raises(ValueError, match=f"a gate must return {told}"):
        jax.eval_shape(learner.learn, state, fakes.rollout(4, 4, 4))


def test_dgg_gates_a_jump_of_the_energy_when_the_batch_is_reused():
    # Increments .10, -.05, .10, -.05: mean .025, deviation .075.
    _, state = run(DGG, WARM)
    np.testing.assert_allclose(state.increments, [0.1, -0.05, 0.1, -0.05], atol=1e-6)
    z = (1.6 - 1.1 - 0.025) / 0.075
    assert z == pytest.approx(6.3333, abs=1e-4)
    assert run(DGG, [1.6], reuse=1, state=state)[0] == [GATE]
    assert run(DGG, [1.6], reuse=0, state=state)[0] == [ACCEPT]
    assert run(DGG, [1.12], reuse=1, state=state)[0] == [ACCEPT]  # z = -.0667


def test_dggs_threshold_lies_where_it_says():
    # z = (g - 1.1 - .025) / .075 against .5: 1.1625 is the edge.
    _, state = run(DGG, WARM)
    assert run(DGG, [1.16], reuse=2, state=state)[0] == [ACCEPT]
    assert run(DGG, [1.165], reuse=2, state=state)[0] == [GATE]


def test_a_gated_increment_does_not_enter_the_window():
    # Else the next one would be measured from the spike: 1.12 - 1.6 < 0, always fine.
    _, state = run(DGG, WARM)
    _, after = run(DGG, [1.6], reuse=1, state=state)
    chex.assert_trees_all_equal(state, after)
    _, after = run(DGG, [1.12], reuse=1, state=state)
    np.testing.assert_allclose(after.increments, [0.02, -0.05, 0.1, -0.05], atol=1e-6)


def test_dgg_needs_a_full_window():
    _, state = run(DGG, WARM[:4])
    assert run(DGG, [9.0], reuse=1, state=state)[0] == [ACCEPT]


def below(limit):
    """A gate that refuses energies above a limit; for tests."""

    def update(grads, metrics, reuse, state):
        small = grads["head"][0] ** 2 < limit
        return small, jnp.zeros((), bool), state + ~small, {}

    return gate.Gate(lambda: jnp.zeros((), jnp.int32), update)


def test_all_of_shows_a_gate_only_what_those_before_it_accept():
    # The spike in the window would hide the next one for the rest of the run.
    both = gate.all_of(below(50.0), DGG)
    decisions, state = run(both, [*WARM, 99.0])
    assert decisions == [ACCEPT] * 5 + [(False, False)]
    assert int(state[0]) == 1
    assert run(both, [1.6], reuse=1, state=state)[0] == [GATE]


def test_all_of_without_gates_accepts_all():
    assert run(gate.all_of(), [1.0, 9.0])[0] == [ACCEPT] * 2


def kl_metrics():
    k3 = np.mean(np.expm1(LOG_RATIO) - LOG_RATIO)
    assert k3 == pytest.approx(0.01844012, abs=1e-7)
    assert np.mean(-LOG_RATIO) == pytest.approx(-0.05)
    assert np.mean(LOG_RATIO**2 / 2) == pytest.approx(0.0175)
    return {"policy/kl_old_nats": jnp.float32(k3)}


@pytest.mark.parametrize(("target", "want"), [(0.01, GATE), (0.0125, ACCEPT)])
def test_target_kl_stops_before_the_step(target, want):
    # Stable-Baselines3: kl > 1.5 target, .015 and .01875.
    one = gate.target_kl(1.5 * target)
    accept, stop, _, _ = one.update({}, kl_metrics(), jnp.int32(0), one.init())
    assert (bool(accept), bool(stop)) == want


def test_cleanrls_target_kl_lets_the_pass_end():
    one = gate.target_kl_per_pass(0.01)
    high, zero = kl_metrics(), {"policy/kl_old_nats": jnp.float32(0)}
    state, decisions = one.init(), []
    for reuse, metrics in [(0, zero), (0, high), (0, high), (1, high), (0, zero)]:
        accept, stop, state, _ = one.update({}, metrics, jnp.int32(reuse), state)
        decisions.append((bool(accept), bool(stop)))
    # Stopped only when the next pass would begin; the next batch starts afresh.
    assert decisions == [ACCEPT, ACCEPT, ACCEPT, GATE, ACCEPT]


def test_a_kl_gate_without_old_says_what_it_needs():
    one = gate.target_kl(0.1)
    with pytest.raises(ValueError, match="kl_old_nats"):
        one.update({}, {}, jnp.int32(0), one.init())


def learner(one, *, num_passes=1, num_minibatches=1, rate=0.5):
    policy = fakes.bandit(4, 3, 8)
    method = adv.algorithm(
        policy=adv.Term(
            advantage=adv.scale_by_fade(),
            weighting=adv.chain(
                adv.token_mean(), adv.drop_covariant(clipped_fn=no_clip)
            ),
            loss_fn=loss.ppo_clip(),
        )
    )
    made = update.learner(
        policy.measure,
        method,
        optax.adamw(rate),
        gate=one,
        num_passes=num_passes,
        num_minibatches=num_minibatches,
    )
    return policy, made


def no_clip(credit, rollout):
    return jnp.zeros(credit.weight.shape, bool)


def begin(made, policy):
    rows = fakes.rollout(4, 4, 3)
    rows = rows.replace(
        samples=rows.samples.replace(tokens=rows.samples.tokens % 8),
    )
    params = policy.init(jax.random.key(0))
    rows = rows.replace(old=policy.measure(params, rows.prompts, rows.samples))
    return made.init(params, jax.random.key(1)), rows


def test_a_gated_step_changes_neither_parameters_nor_moments_nor_algorithm_state():
    refuse = gate.Gate(
        lambda: (),
        lambda grads, metrics, reuse, state: (
            jnp.zeros((), bool),
            jnp.zeros((), bool),
            state,
            {},
        ),
    )
    policy, made = learner(refuse, num_passes=2)
    state, rows = begin(made, policy)
    after, metrics = jax.jit(made.learn)(state, rows)
    chex.assert_trees_all_equal(
        (after.params, after.optimizer, after.algorithm),
        (state.params, state.optimizer, state.algorithm),
    )
    assert float(metrics["update/refused"]) == 1
    assert int(after.step) == 1


def test_dgg_in_a_learner_ends_the_reuse_and_keeps_its_window():
    # A threshold below every z gates the first reused step: one step per batch.
    one = gate.gradient_gate(lambda g: g, threshold=-1e9, window=1)
    policy, made = learner(one, num_passes=4)
    state, rows = begin(made, policy)
    learn = jax.jit(made.learn)
    state, metrics = learn(state, rows)
    # The window of one increment fills at the second step; the third is gated.
    assert float(metrics["update/steps"]) == 3
    before = state.gate
    state, metrics = learn(state, rows)
    assert float(metrics["update/steps"]) == 2
    assert int(state.gate.gate.count) == int(before.gate.count) + 1
    assert int(state.optimizer[0].count) == 3


def test_target_kl_in_a_learner_stops_early_and_drops_the_step():
    policy, made = learner(gate.target_kl(1e-3), num_passes=6, rate=1.0)
    state, rows = begin(made, policy)
    state, metrics = jax.jit(made.learn)(state, rows)
    steps = int(metrics["update/steps"])
    assert 2 <= steps < 6
    assert int(state.optimizer[0].count) == steps - 1


def test_cleanrls_variant_in_a_learner_finishes_the_pass():
    one = gate.target_kl_per_pass(1e-3)
    policy, made = learner(one, num_passes=3, num_minibatches=2, rate=1.0)
    state, rows = begin(made, policy)
    state, metrics = jax.jit(made.learn)(state, rows)
    # Whole passes of two steps, and one more gradient that is refused.
    steps = int(metrics["update/steps"])
    assert steps in (3, 5) and int(state.optimizer[0].count) == steps - 1


def test_the_output_projection_of_tied_and_untied_decoders():
    for tied, name in ((True, "embed"), (False, "head")):
        policy = fakes.decoder(tie_embeddings=tied)
        params = jax.eval_shape(policy.init, jax.random.key(0))
        assert gate.output_projection(params) is params[name]
