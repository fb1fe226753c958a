"""A trace of a few dispatches of a run, and no change to it."""

import jax
import jax.numpy as jnp

from rljax.run import profiled
from rljax.run.phase import Phase


def test_the_second_and_third_dispatch_are_traced_and_all_give_the_same(tmp_path):
    @jax.jit
    def step(state, prompts):
        with jax.named_scope("update"):
            return state + prompts, {}

    seen = []

    def run(state, prompts):
        seen.append(bool(_traces(tmp_path)))
        return step(state, prompts)

    phase = Phase(name="x", run=run, stream=iter(()), num_steps=5, steps_per_dispatch=1)
    (traced,) = profiled.last_traced([phase], tmp_path)
    state = jnp.zeros(())
    for i in range(5):
        state, _ = traced.run(state, jnp.float32(i))
    assert state == 0 + 1 + 2 + 3 + 4
    # Written when the third has ended: the fourth is the first to find it.
    assert seen == [False, False, False, True, True]
    assert len(_traces(tmp_path)) == 1


def _traces(folder):
    return list(folder.rglob("*.xplane.pb"))
