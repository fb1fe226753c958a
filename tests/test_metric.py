"""Metrics add up as they say, whatever their names."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fakes import bigram_measure, bigram_params
from fakes import rollout as fake_rollout

from rljax import algorithms, metric
from rljax.learn import update
from rljax.metric import Fault, Max, Mean, Sum


def counting_gate(log):
    """Accepts all steps and logs what `log` makes of their number, from 0 on."""

    def decide(grads, metrics, reuse, state):
        accept = jnp.ones((), bool)
        return accept, ~accept, state + 1, log(state.astype(jnp.float32))

    return update.Gate(lambda: jnp.zeros((), jnp.int32), decide)


def learned(log, num_steps):
    learner = update.learner(
        bigram_measure,
        algorithms.grpo(),
        optax.sgd(0.1),
        gate=counting_gate(log),
        num_passes=num_steps,
    )
    params = bigram_params()
    state = learner.init(params, jax.random.key(0), reference=params)
    return learner.learn(state, fake_rollout())[1]


@pytest.mark.parametrize(("num_steps", "last"), [(1, 0.0), (4, 3.0)])
def test_over_optimiser_steps_each_metric_adds_up_as_it_says(num_steps, last):
    # By hand, of 0, 1, 2, 3: mean 1.5, sum 6, largest 3. By their names `gap/plain`
    # and `a_max` were maxima; a maximum that starts from 0 would give 0 for -1 - i.
    def log(i):
        return {
            "gap/plain": i,
            "a_max": Mean(i),
            "sum": Sum(i),
            "largest": Max(i),
            "negative": Max(-1 - i),
            "trouble": Fault(i),
        }

    found = learned(log, num_steps)
    kinds = {name: type(found[name]) for name in ("sum", "largest", "trouble")}
    assert kinds == {"sum": Sum, "largest": Max, "trouble": Fault}
    numbers = metric.numbers(found)
    want = {"gap/plain": last / 2, "a_max": last / 2, "largest": last, "negative": -1}
    want |= {"sum": last * (last + 1) / 2, "trouble": last * (last + 1) / 2}
    assert {name: float(numbers[name]) for name in want} == want
    # A mean is a plain number again.
    assert not isinstance(found["a_max"], metric.Metric)


def test_a_credit_logs_float32_and_keeps_the_kind():
    credit = algorithms.grpo().credit(fake_rollout(), algorithms.grpo().init())[0][0]
    found = credit.log(plain=1, whole=Sum(jnp.int32(2))).metrics
    assert isinstance(found["whole"], Sum)
    assert found["whole"].value.dtype == found["plain"].dtype == jnp.float32
    assert metric.numbers(found) == {"plain": 1.0, "whole": 2.0}


def test_only_faults_are_faults():
    # The name of a metric says nothing: it was a fault if it had `fault` in its path.
    found = {"fault/by_name": np.float32(1), "other": Fault(np.float32(2))}
    assert metric.faults(found) == {"other": 2.0}
