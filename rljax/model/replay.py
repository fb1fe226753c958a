"""Routing replay: the update uses the experts that the sampler chose for each token.

A router whose parameters have changed, or that computes in another number format,
chooses other experts for some tokens, and their log-probabilities jump. Routing replay
records the sampler's choice and reuses it. The experts' weights, and the gradient
through them, are still the router's own.

    policy = decoder_policy(config, replay_routes=True)

records the choice in the sampler and replays it in `hidden` and `measure`, both for
`current` and for a measured `old`. A reference policy is another model: measure it with
a policy that does not replay. The literature knows two kinds:

    R3  replays the sampler's choices. It removes the effect of staleness and the
        mismatch between sampler and learner. This file does R3.
    R2  replays the choices of the learner's own pass with the sampling parameters. It
        removes the effect of staleness only.

Sampler and learner share one decoder here. In float32, with the same parameters, both
make the same choices up to ties, and R2 equals R3. They differ if the sampler reads
int8 weights, and in bfloat16, where another order of summation rounds differently. From
the second optimiser step on, or with stale samples, the router's parameters differ in
any number format.

Records are statistics of the distribution that the tokens were drawn from. The entry at
t was chosen in the pass that predicted token t; at t = 0 that pass read the prompt's
last token.

    samples.behaviour.extra["routes"]             u8[P, G, T, L, K], u16 beyond 256
    samples.behaviour.row_extra["prompt_routes"]  u8[P, G, S, L, K], the same for all G

Source: arXiv:2512.01374, arXiv:2510.11370, verl router_replay_patch.py (SECONDARY).
Variants: in verl, a token without a record takes its router's own choice; here, reading
  a missing record raises.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax.types import Prompts, Samples, measured_extra

ROUTES = "routes"
PROMPT_ROUTES = f"prompt_{ROUTES}"
MISMATCH = "router_mismatch"


class Routes(NamedTuple):
    """The experts of each token that the decoder reads; None: not known.

    prompt: [P, S, L, K].
    completion: [P, G, T - 1, L, K]; the decoder never reads the last token.
    """

    prompt: Any
    completion: Any


def recorded(prompts: Prompts, samples: Samples) -> Routes:
    """The experts that the sampler recorded.

    Raises:
      NotMeasured: if the samples have no record.
      ValueError: if the record belongs to other prompts, such as prompts with hints.
    """
    routes = _record(samples)
    of_prompt = samples.behaviour.row_extra[PROMPT_ROUTES][:, 0]
    if of_prompt.shape[:2] != prompts.tokens.shape:
        raise ValueError(
            f"routes must be recorded of these prompts, {list(prompts.tokens.shape)},"
            f" got routes of prompts {list(of_prompt.shape[:2])}; hints and other"
            " changes of prompts cannot be replayed."
        )
    return Routes(of_prompt, routes[:, :, 1:])


def _record(samples: Samples) -> jax.Array:
    how = "sample by decoder_policy(config, replay_routes=True)"
    return measured_extra(samples.behaviour, "samples.behaviour", ROUTES, how)


def mismatch(own: Routes, prompts: Prompts, samples: Samples) -> jax.Array:
    """f32[P, G, T]: fraction of layers whose router would choose other experts.

    Args:
      own: the routers' own choices now; `samples` hold the recorded ones.
    """
    given = _record(samples)
    first = own.prompt[jnp.arange(len(prompts.length)), prompts.length - 1]
    first = jnp.broadcast_to(
        first[:, None, None], (*given.shape[:2], 1, *given.shape[3:])
    )
    rest = [] if own.completion is None else [own.completion]
    own_choice = jnp.concatenate([first, *rest], 2)
    differs = jnp.any(jnp.sort(own_choice, -1) != jnp.sort(given, -1), -1)
    return jnp.mean(differs, -1, dtype=jnp.float32)
