"""Routing replay: the update computes each token by the experts that sampled it.

A router that has moved, or that computes in another number format, chooses other
experts for some tokens, and their log-probabilities jump. So the choice is recorded and
replayed; the weights of the experts, and their gradient, stay the router's own.

    policy = decoder_policy(config, replay_routes=True)

records in the sampler, and replays in `hidden` and `measure`: for `current` and for an
`old` that is measured. A reference is another model: measure it by a policy that does
not replay. The literature knows two kinds:

    R3  replays the sampler's choices. It takes away staleness, and the mismatch of
        sampler and learner. This is what is done here.
    R2  replays those of the learner's own pass with the sampling parameters, which
        takes away staleness alone.

Sampler and learner are one decoder here. In float32, with the same parameters, both
choose alike up to ties, and R2 is R3. They differ where the sampler reads int8 weights,
and in bfloat16, where sums in another order round apart. From the second optimiser step
on, or with stale samples, the router has moved, whatever the format.

Records are statistics of what the tokens were drawn from. What stands at t was chosen
in the pass that predicted token t: at t = 0 for the prompt's last token.

    samples.behaviour.extra["routes"]             u8[P, G, T, L, K], u16 beyond 256
    samples.behaviour.row_extra["prompt_routes"]  u8[P, G, S, L, K], the same for all G

Source: arXiv:2512.01374, arXiv:2510.11370, verl router_replay_patch.py (SECONDARY).
Variants: where verl has no record, a token takes its router's own choice; here, what
  was not recorded raises when it is read.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax.types import Prompts, Samples, measured_extra

ROUTES = "routes"
PROMPT_ROUTES = f"prompt_{ROUTES}"
MISMATCH = "router_mismatch"


class Routes(NamedTuple):
    """Experts by the tokens that they computed; None: there are none.

    prompt: [P, S, L, K].
    completion: [P, G, T - 1, L, K]; the last token is never fed.
    """

    prompt: Any
    completion: Any


def recorded(prompts: Prompts, samples: Samples) -> Routes:
    """The recorded choices.

    Raises:
      NotMeasured: if the samples have none.
      ValueError: if they are those of other prompts, such as prompts with hints.
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
    """f32[P, G, T]: share of layers whose router would choose other experts.

    Args:
      own: what the routers would choose.
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
