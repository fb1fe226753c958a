"""From prompts to samples, on the device.

`sample` draws tokens, `slots` decodes rows side by side, `mixed` puts stored answers
beside samples, `hint` reveals a part of a solution. Nothing here knows rewards.
"""

from rljax.rollout.sample import Sampler, sampler

__all__ = ["Sampler", "sampler"]
