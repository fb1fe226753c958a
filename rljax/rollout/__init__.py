"""From prompts to samples, on the device.

    sample       the sampler of a policy
    draw         how a token is drawn: at random, truncated, greedily
    slots        the decode loop: rows side by side, refilled when one ends
    environment  tools, games, speakers: forced tokens and a state per sample
    stop_string  texts that end a completion, found in the bytes of its tokens
    mixed        stored answers beside samples in one group
    hint         samples that continue a partial solution

A new way to draw belongs into `draw`. A new source of completions is a `Sampler` of its
own. Nothing here knows rewards or advantages.
"""

from rljax.rollout.environment import Environment
from rljax.rollout.sample import greedy, sampler
from rljax.rollout.stop_string import StopStrings, stop_strings

__all__ = ["Environment", "StopStrings", "greedy", "sampler", "stop_strings"]
