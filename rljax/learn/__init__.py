"""From a rollout to a new state.

`update` takes optimiser steps, `microbatch` cuts them into pieces, `gate` decides over
gradients, `dynamic_sampling` chooses the groups that are trained on, `reference` lets
the reference follow. Another way to learn from a rollout is a `Learner` of your own,
often around this one. How hard a token is pushed is not decided here: that is
`advantage` and `loss`. Nothing here knows samplers, verifiers or networks.
"""

from rljax.learn.update import Learner, learner

__all__ = ["Learner", "learner"]
