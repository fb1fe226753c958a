"""The loop: fused and split are the same steps, however many to a dispatch."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss, program
from rljax.advantage import Term, algorithm, chain
from rljax.learn import update
from rljax.rollout import mixed
from rljax.rollout.sample import sampler
from rljax.types import NotMeasured, Prompts, Source, Verdict

P, T, V = 8, 3, 6
POLICY = fakes.bandit(P, T, V)
SAMPLE = sampler(POLICY, num_samples=4, max_tokens=T, stop_tokens=(0,))
ACT = program.actor(POLICY, SAMPLE)


def verify(prompts, samples):
    """Right if the first token is the prompt's id modulo V; runs on NumPy, too."""
    xp = np if isinstance(samples.tokens, np.ndarray) else jnp
    correct = samples.tokens[..., 0] == (prompts.id % V)[:, None]
    return Verdict(
        reward=correct.astype(xp.float32),
        correct=correct,
        failed=xp.zeros_like(correct),
    )


METHOD = algorithm(
    policy=Term(
        advantage=adv.scale_by_fade(),
        weighting=adv.token_mean(),
        loss_fn=loss.ppo_clip(),
    ),
    kl=Term(
        weighting=chain(adv.token_mean(), adv.scale_weight(0.05)),
        loss_fn=loss.kl_k3_straight_through(),
    ),
)
LEARNER = update.learner(POLICY.measure, METHOD, optax.adam(0.1), num_minibatches=2)
FUSED = program.fused(ACT, LEARNER, verify)
SPLIT = program.split(ACT, LEARNER, verify)
K = 4  # one number of steps per dispatch, so that one program serves most tests


def start():
    """A state of its own for every run: states are donated."""
    params = POLICY.init(None)
    reference = jax.tree.map(lambda x: x + 0.0, params)
    return LEARNER.init(params, jax.random.key(3), reference)


def batches(num_steps, offset=0) -> Prompts:
    """NumPy prompts [K, P, ...], each step in another order."""
    orders = [
        np.random.default_rng(offset + k).permutation(P) for k in range(num_steps)
    ]
    return Prompts(
        tokens=np.zeros((num_steps, P, 2), np.int32),
        length=np.ones((num_steps, P), np.int32),
        id=np.stack(orders).astype(np.int32),
    )


def close(got, want):
    chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)


def learned(state):
    return state.params, state.optimizer, state.algorithm, state.gate, state.step


def test_fused_and_split_are_the_same_steps():
    prompts = batches(K)
    state, metrics = FUSED(start(), prompts)
    other, other_metrics = SPLIT(start(), prompts)
    assert float(jnp.max(jnp.abs(state.params["logits"]))) > 0.1
    close(learned(other), learned(state))
    close(other_metrics, metrics)


def test_slots_and_pieces_by_length_are_the_same_steps():
    # Not Adam, which makes of a gradient of 0 and one of 1e-9 two different steps.
    def after(num_slots, **pieces):
        sample = sampler(
            POLICY, num_samples=4, max_tokens=T, stop_tokens=(0,), num_slots=num_slots
        )
        learner = update.learner(
            POLICY.measure, METHOD, optax.sgd(1.0), num_minibatches=2, **pieces
        )
        run = program.fused(program.actor(POLICY, sample), learner, verify)
        reference = jax.tree.map(lambda x: x + 0.0, POLICY.init(None))
        state = learner.init(POLICY.init(None), jax.random.key(3), reference)
        state, metrics = run(state, batches(K))
        return learned(state), metrics, metrics.pop("samples/useful_share")

    *want, used = after(None)
    *got, used_more = after(8, num_microbatches=2, num_lengths=2)
    close(got, want)
    assert np.all((used > 0) & (used <= used_more) & (used_more <= 1))
    assert np.any(used < used_more)


def test_many_steps_in_a_dispatch_are_as_many_dispatches_of_one():
    prompts = batches(K)
    state, metrics = FUSED(start(), prompts)
    other, rows = start(), []
    for k in range(K):
        one = jax.tree.map(lambda x, k=k: x[k : k + 1], prompts)
        other, row = FUSED(other, one)
        rows.append(row)
    close(learned(other), learned(state))
    close(jax.tree.map(lambda *x: jnp.concatenate(x), *rows), metrics)


@pytest.mark.parametrize("run", [FUSED, SPLIT], ids=["fused", "split"])
def test_nothing_compiles_after_the_first_dispatch(run, compilations):
    # A weak type or a new layout in the state would compile the program again.
    state, _ = run(start(), batches(K))
    compilations.clear()
    for k in range(2):
        state, metrics = run(state, batches(K, offset=k))
    jax.block_until_ready(metrics)
    assert not compilations


def test_the_compilation_counter_counts(compilations):
    compilations.clear()
    jax.jit(lambda x: x * 3.25 + 1)(jnp.ones(3)).block_until_ready()
    assert compilations


def test_the_state_is_donated():
    # Else a run would hold parameters and moments twice.
    state = start()
    FUSED(state, batches(K))
    assert state.params["logits"].is_deleted()
    state = start()
    SPLIT(state, batches(K))
    assert state.params["logits"].is_deleted()


def test_metrics_have_one_row_per_step_and_count_what_happened():
    _, metrics = FUSED(start(), batches(K))
    assert {(m.shape, m.dtype.name) for m in jax.tree.leaves(metrics)} == {
        ((K,), "float32")
    }
    assert {
        "reward/mean",
        "reward/mixed_share",
        "reward/solved",
        "samples/finished_share",
        "samples/length_mean",
        "samples/tokens",
        "verify/failed",
    } <= set(metrics)
    close(metrics["samples/tokens"].value, metrics["samples/length_mean"] * P * 4)
    assert float(jnp.max(metrics["gap/sampler_learner_max"].value)) < 1e-5


def test_verifier_failures_are_counted_and_teach_nothing():
    def broken(prompts, samples):
        verdict = verify(prompts, samples)
        return verdict.replace(failed=verdict.failed | True)

    run = program.fused(ACT, LEARNER, broken)
    state, metrics = run(start(), batches(K))
    assert metrics["verify/failed"].value.tolist() == [P * 4] * K
    assert metrics["reward/solved"].shape == (K,)
    close(state.params, POLICY.init(None))


def test_every_step_draws_anew_from_its_own_key():
    act = jax.jit(ACT)
    state, prompts = start(), jax.tree.map(lambda x: x[0], batches(1))
    first = act(state, prompts).samples.tokens
    chex.assert_trees_all_equal(first, act(state, prompts).samples.tokens)
    later = act(state.replace(step=state.step + 1), prompts).samples.tokens
    assert bool(jnp.any(first != later))


def test_a_reference_is_measured_if_and_only_if_the_state_holds_one():
    state, prompts = start(), jax.tree.map(lambda x: x[0], batches(1))
    moved = jax.tree.map(lambda x: x.at[:, :, 1].add(1.0), state.reference)
    rollout = jax.jit(ACT)(state.replace(reference=moved), prompts)
    want = POLICY.measure(moved, prompts, rollout.samples)
    close(rollout.reference, want)
    with pytest.raises(NotMeasured, match=r"reference parameters in TrainState"):
        jax.eval_shape(
            lambda s: ACT(s, prompts).reference.logp, state.replace(reference=None)
        )


def test_demonstrations_are_learned_without_a_verifier():
    # nll of the uniform start is log 6 per token; it must fall towards 0.
    completion = np.tile((np.arange(P)[:, None] + np.arange(T)) % V, (60, 1, 1))
    prompts = batches(60)
    prompts = prompts.replace(
        id=np.tile(np.arange(P, dtype=np.int32), (60, 1)),
        data={
            "completion": completion.astype(np.int32),
            "completion_mask": np.ones((60, P, T), bool),
        },
    )
    sft = algorithm(sft=Term(weighting=adv.token_mean(), loss_fn=loss.nll()))
    learner = update.learner(POLICY.measure, sft, optax.adam(0.3))
    run = program.fused(program.actor(POLICY, mixed.stored_answers()), learner)
    state, metrics = run(learner.init(POLICY.init(None), jax.random.key(0)), prompts)
    assert float(metrics["update/loss"][0]) == pytest.approx(np.log(V), abs=1e-5)
    assert float(metrics["update/loss"][-1]) < 0.05
    assert "reward/mean" not in metrics
    best = jnp.argmax(state.params["logits"], -1)
    chex.assert_trees_all_equal(best, completion[0])
    samples, _ = mixed.stored_answers()(
        None, jax.tree.map(lambda x: x[0], prompts), None
    )
    assert samples.source.tolist() == [[Source.DEMONSTRATION]] * P
