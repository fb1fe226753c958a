"""The learner: from a rollout to a new training state.

    update             optimiser steps on a rollout
    gradient           the gradient of one step
    microbatch         a step's minibatch in pieces, to save memory
    gate               accept or refuse a gradient
    dynamic_sampling   train on mixed groups only
    reference          a reference policy that follows the policy
    master_weights     float32 copies of narrower parameters
    origin             whether `old` is the current policy's
    consistency        learners and measure functions of LfU

Another way to learn from a rollout is a `Learner` of your own, often around this one.
How hard a token is pushed is decided by `advantage` and `loss`, not here. Nothing here
knows samplers, verifiers or networks.
"""

from rljax.learn.update import Learner, learner

__all__ = ["Learner", "learner"]
