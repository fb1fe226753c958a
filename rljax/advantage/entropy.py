"""Entropy control: a coefficient that follows the measured entropy."""

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.advantage.controller import Controller
from rljax.types import Credit, Rollout


def entropy_controller(
    *,
    target: jax.typing.ArrayLike = 0.2,
    step: jax.typing.ArrayLike = 1e-4,
    initial: jax.typing.ArrayLike = 0.0,
    low: jax.typing.ArrayLike = 0.0,
    high: jax.typing.ArrayLike = 0.005,
) -> Controller:
    """From an entropy e to a bonus coefficient that is on while e is too low.

    c <- clip(c + step if e < target else c - step, low, high); the value is c if
    e < target (strictly), else 0. The state is c, f32[].

    Args:
      target: nats.
      step: change of c per update.
      initial, low, high: c's start and bounds.

    Source: Skywork-OR1, arXiv:2505.22312; code SkyworkAI/Skywork-OR1
      verl/trainer/ppo/core_algos.py `EntController`, or1_scripts (PAPER). There the new
      value serves the next training step: wrap it in `delayed`.
    """
    check.number("target", target, low=0)
    check.number("step", step, low=0)
    check.ordered(low=low, initial=initial, high=high)
    start = jnp.asarray(initial, jnp.float32)

    def update(entropy, c):
        short = entropy < target
        c = jnp.clip(c + jnp.where(short, step, -step), low, high)
        return jnp.where(short, c, 0.0), c

    return Controller(lambda: (jnp.zeros((), jnp.float32), start), update)


def delayed(controller: Controller) -> Controller:
    """A controller whose value serves from the next update on."""
    check.kind("controller", controller, Controller, "ema(0.1)")

    def init():
        value, state = controller.init()
        return value, (value, state)

    def update(measurement, state):
        value, inner = state
        return value, controller.update(measurement, inner)

    return Controller(init, update)


def sampled_entropy(credit: Credit, rollout: Rollout) -> jax.Array:
    """f32[]: mean -log pi_old over response tokens, an entropy estimate, nats."""
    del credit
    return numerics.masked_mean(-rollout.old.logp, rollout.samples.mask)


def set_advantage(value: jax.typing.ArrayLike) -> AdvantageTransform:
    """The same advantage everywhere: a term's coefficient for one rollout batch."""
    check.number("value", value)
    return stateless(
        lambda c, r: c.replace(
            advantage=jnp.full(c.advantage.shape, value, jnp.float32)
        )
    )
