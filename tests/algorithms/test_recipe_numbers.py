"""Every number of every recipe is read: no flag changes nothing.

Only whether it reaches what a step makes; what it does there, other tests say.
"""

import inspect
import math

import jax
import jax.numpy as jnp
import pytest
from algorithm_cases import BY_FAMILY, CASES, G, T
from jax.extend import core
from recipe_step import rollout, step

from rljax import algorithms

REQUIRED = {"max_tokens": 2 * T, "num_samples": G, "k": 2}


def read(fn, values) -> set[str]:
    """The names of these numbers that any result of `fn` depends on, by its trace."""
    jaxpr = jax.make_jaxpr(fn)(values).jaxpr
    names = sorted(values)  # as a dictionary is flattened
    known = {var: {name} for var, name in zip(jaxpr.invars, names, strict=True)}

    def of(vars):
        found = (known.get(v, set()) for v in vars if isinstance(v, core.Var))
        return set().union(*found)

    for eqn in jaxpr.eqns:
        known |= dict.fromkeys(eqn.outvars, of(eqn.invars))
    return of(jaxpr.outvars)


def numbers(recipe) -> tuple[dict, dict, dict]:
    """(those that may be traced, those that may be left out, the other arguments)."""
    given, optional, others = {}, {}, {}
    for name, p in inspect.signature(recipe).parameters.items():
        if p.annotation == jax.typing.ArrayLike:
            known = isinstance(p.default, int | float) and math.isfinite(p.default)
            dtype = jnp.int32 if name == "seed" else jnp.float32
            given[name] = jnp.asarray(p.default if known else 0.5, dtype)
        elif p.annotation == jax.typing.ArrayLike | None:
            optional[name] = jnp.float32(0.5)
        elif p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            others[name] = REQUIRED[name]
    return given, optional, others


@pytest.mark.parametrize("name", BY_FAMILY)
def test_every_number_of_a_recipe_reaches_its_loss_its_gradient_or_its_state(name):
    recipe, rows = getattr(algorithms, name), rollout(CASES[name])
    given, optional, others = numbers(recipe)

    def stepped(values):
        loss, pull, state, _ = step(recipe(**others, **values), rows)
        return loss, pull, state

    found = read(stepped, given)
    if optional:  # which may stand for one of the others
        found |= read(stepped, given | optional)
    assert found == given.keys() | optional.keys()


def test_a_number_that_nobody_reads_is_found():
    values = {"forgotten": jnp.float32(1), "known": jnp.float32(2)}
    assert read(lambda values: jnp.sin(values["known"]), values) == {"known"}
