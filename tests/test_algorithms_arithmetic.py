"""Every algorithm learns on the real task: decoder, sampler and verifier, one program.

Column addition from a careless warm start, as in the main experiment but shorter. Each
run of the tests takes some of the algorithms, by turns; `--turn all` takes all.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_cases import CASES, DEMONSTRATION, GREEDY, Case, G

from experiments import arithmetic
from experiments import column_addition as addition
from experiments.task import build_addition
from rljax import data, loop, mix, update
from rljax.policy import against_reference
from rljax.policy.value_head import with_value_head
from rljax.sample import sampler
from rljax.types import Rollout, TokenStats

P, T, STEPS = 64, 12, 12
CONFIG = arithmetic.Config(num_validation=64, num_test=64, warm_steps=600)
TASK = build_addition(CONFIG)
POLICY = with_value_head(TASK.policy, d_model=CONFIG.d_model)
STOP = (TASK.tokenizer.eos_token_id,)
SAMPLE = functools.partial(sampler, POLICY, max_tokens=T, stop_tokens=STOP)


def batches(num_prompts, steps, forget):
    """The first `steps` batches, with demonstrations that forget carries."""
    stream = data.stream(
        TASK.train,
        num_prompts=num_prompts,
        seed=0,
        steps_per_dispatch=steps,
        map_fn=lambda prompts, rng: addition.demonstrate(prompts, rng, forget),
    )
    return next(stream)


@pytest.fixture(scope="module")
def warm():
    """Parameters after imitation: a third of the problems solved or more."""
    learner = arithmetic.warm_learner(CONFIG, TASK.policy)
    state = learner.init(TASK.policy.init(jax.random.key(0)), jax.random.key(0))
    run = loop.fused(loop.demonstrator(), learner)
    state, _ = run(state, batches(128, CONFIG.warm_steps, CONFIG.forget))
    head = jax.jit(POLICY.init)(jax.random.key(0))["value"]
    return {"policy": state.params, "value": head}


def measure(params, reference, prompts, samples) -> TokenStats:
    """Everything that an algorithm asks for."""
    trunk, other = params["policy"], reference["policy"]
    now = against_reference(TASK.policy).fn(trunk, other, prompts, samples)
    value = POLICY.measure(params, prompts, samples).extra["value"]
    states = TASK.policy.hidden(trunk, prompts, samples)
    drift = jnp.mean(jnp.square(states), -1)
    return now.replace(extra={**now.extra, "value": value, "consistency": drift})


def knows(prompts, samples) -> TokenStats:
    """A teacher that gives the right working 9 of 10."""
    right = samples.tokens == prompts.data["completion"][:, None]
    logp = jnp.where(right, jnp.log(0.9), jnp.log(0.1 / 12))
    return TokenStats(logp=logp, entropy=jnp.full(logp.shape, 0.57))


def act(case: Case):
    """Samples from the sources of the case, with all statistics on all rows."""
    others = {
        DEMONSTRATION: mix.stored(),
        GREEDY: SAMPLE(num_samples=1, temperature=0),
    }
    kinds = [others[source] for source in case.others]
    if not case.only:
        kinds = [SAMPLE(num_samples=G), *kinds]
    sample = mix.joined(*kinds) if len(kinds) > 1 else kinds[0]

    def run(state, prompts):
        key = jax.random.fold_in(state.key, state.step)
        samples, _ = sample(state.params, prompts, key)
        old = measure(state.params, state.reference, prompts, samples)
        return Rollout(
            prompts=prompts,
            samples=samples.replace(behaviour=old),
            old=old,
            reference=POLICY.measure(state.reference, prompts, samples),
            teacher=knows(prompts, samples),
        )

    return run


@jax.jit
def solved(params) -> jax.Array:
    """f32[]: pass@1 on held-out problems, the same noise for all."""
    prompts = TASK.validation
    samples, _ = SAMPLE(num_samples=G)(params, prompts, jax.random.key(1))
    return jnp.mean(TASK.verify(prompts, samples).correct)


def train(case: Case, start, sign, prompts):
    """pass@1 after some steps with the loss multiplied by a sign."""
    flipped = case.algorithm._replace(
        loss=lambda *args: sign * case.algorithm.loss(*args)
    )
    learner = update.learner(
        update.ReferencedMeasure(measure),
        flipped,
        arithmetic.optimizer(CONFIG, 1e-3),
        num_passes=case.num_passes,
    )
    state = learner.init(start, jax.random.key(2), reference=start)
    state, _ = loop.fused(act(case), learner, TASK.verify)(state, prompts)
    return solved(state.params)


@pytest.mark.slow
@pytest.mark.by_turns(26)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_solves_more_and_with_its_sign_flipped_less(case, warm):
    prompts = batches(P, STEPS, 0.0)
    run = jax.jit(jax.vmap(functools.partial(train, case, warm), (0, None)))
    right, flipped = np.asarray(run(jnp.array([1.0, -1.0]), prompts))
    before = float(solved(warm))
    assert right > before + 0.05, (before, right, flipped)
    assert flipped < before - 0.05, (before, right, flipped)
