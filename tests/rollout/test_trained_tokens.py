"""The token ids that were sampled are the ones trained on: nothing encodes a text anew.

Many sequences of tokens spell one text. A learner that decoded a completion and encoded
it again would train on other tokens than were drawn, with other probabilities.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stop_case

from rljax import advantage, loss, program
from rljax.learn import update
from rljax.rollout.sample import sampler
from rljax.rollout.stop_string import stop_strings
from rljax.types import Verdict

A, B, C, AB, CA = (stop_case.PIECES.index(x) for x in (b"a", b"b", b"c", b"ab", b"ca"))


def seen_by(seen, fn):
    """`fn(params, prompts, ...)` which also notes the samples it returns or reads."""

    def note(ids, tokens, mask):
        order = np.argsort(ids)
        seen.append((tokens[order], mask[order]))

    def spied(params, prompts, *rest, **options):
        out = fn(params, prompts, *rest, **options)
        samples = out[0] if isinstance(out, tuple) else rest[0]
        jax.debug.callback(note, prompts.id, samples.tokens, samples.mask)
        return out

    return spied


@pytest.mark.slow
def test_sampled_ids_are_those_that_are_measured_under_the_gradient():
    # In slots, with an environment that speaks, and stop strings that end.
    drawn, trained = [], []
    sample = sampler(
        stop_case.POLICY,
        stop_tokens=(stop_case.STOP,),
        stop_strings=stop_strings(stop_case.ENDS, stop_case.PIECES),
        environment=stop_case.forcing(),
        num_slots=7,
        **stop_case.COMMON,
    )
    learner = update.learner(
        seen_by(trained, stop_case.POLICY.measure),
        advantage.algorithm(
            policy=advantage.Term(
                advantage=advantage.center_by_group(),
                weighting=advantage.token_mean(),
                loss_fn=loss.ppo_clip(0.2, 0.2),
            )
        ),
        optax.sgd(0.1),
    )

    def verify(prompts, samples):
        del prompts
        return Verdict.binary(samples.tokens[..., 0] % 2 == 0)

    act = program.actor(stop_case.POLICY, seen_by(drawn, sample))
    params = jax.tree.map(jnp.array, stop_case.PARAMS)  # the step takes its own
    state = learner.init(params, jax.random.key(3))
    prompts = jax.tree.map(lambda x: jnp.asarray(x)[None], stop_case.PROMPTS)
    before = np.array(stop_case.PARAMS["logits"])
    state, _ = program.fused(act, learner, verify)(state, prompts)
    jax.effects_barrier()
    assert np.any(np.asarray(state.params["logits"]) != before)
    ((tokens, mask),) = drawn
    assert trained
    for other, own_mask in trained:
        np.testing.assert_array_equal(other, tokens)  # forced ones, too
        np.testing.assert_array_equal(own_mask, mask)
    # "a" "b" is one token to a tokenizer, and so is "c" "a".
    split = [
        (tokens[..., :-1] == x)
        & (tokens[..., 1:] == y)
        & mask[..., :-1]
        & mask[..., 1:]
        for x, y in ((A, B), (C, A))
    ]
    assert sum(x.sum() for x in split) > 0 and {AB, CA} <= set(tokens[mask].tolist())
