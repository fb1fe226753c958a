"""An algorithm that learns from rewards is refused where no verifier gives any."""

import fakes
import jax
import jax.numpy as jnp
import optax
import pytest
from algorithm_cases import CASES, G, T

from rljax import algorithms, loss, program
from rljax.advantage import Term, algorithm, chain, keep_rows, token_mean
from rljax.learn import update
from rljax.types import Missing, Rollout

SEEN = fakes.rollout(3, G, T)
BLIND = SEEN.replace(
    verdict=Rollout.__dataclass_fields__["verdict"].default,
    old=SEEN.old.replace(extra={"value": SEEN.old.logp}),
    prompts=SEEN.prompts.replace(data={"answers": SEEN.samples.tokens}),
)
# They read stored answers and no reward; without a baseline the policy's rows are some.
FREE = {"asft", "asft_sampled", "dft", "iw_sft", "gcsl", "lfu", "psft", "sft"}
FREE |= {"ppo_clip_policy"}


def credit(method):
    return jax.eval_shape(lambda: method.credit(BLIND, method.init()))


@pytest.mark.parametrize("name", CASES)
def test_exactly_the_supervised_methods_do_without_a_verdict(name):
    # With rewards of 1 throughout, GRPO's advantages are 0: it would train nothing.
    assert isinstance(BLIND.verdict, Missing)
    method = CASES[name].algorithm
    if name in FREE:
        credit(method)
        return
    with pytest.raises(ValueError, match="verdict"):
        credit(method)


def test_a_term_that_leaves_the_reward_alone_is_taken():
    kept = chain(keep_rows(lambda rollout: rollout.samples.finished))
    credit(
        algorithm(sft=Term(advantage=kept, weighting=token_mean(), loss_fn=loss.nll()))
    )


def test_the_fused_loop_says_so_by_term():
    measure = fakes.bigram_measure
    learner = update.learner(measure, algorithms.grpo(), optax.sgd(1.0))

    def act(state, prompts):
        del state
        return BLIND.replace(prompts=prompts)

    run = program.fused(act, learner)
    state = learner.init({"logits": jnp.zeros(3)}, jax.random.key(0))
    prompts = jax.tree.map(lambda x: x[None], BLIND.prompts)
    with pytest.raises(ValueError, match=r"'policy' needs a verdict.*program\.fused"):
        run(state, prompts)
