"""Self-distillation: the policy with a more informative prompt is its own teacher."""

from collections.abc import Callable

from rljax import check
from rljax.policy.base import Policy
from rljax.policy.frozen import joined
from rljax.types import Prompts, Samples, TokenStats, TrainState, require


def privileged_teacher(
    policy: Policy,
) -> Callable[[TrainState, Prompts, Samples], TokenStats]:
    """A teacher for `program.actor`: the sampling parameters with a privileged prompt.

    It reads `prompts.data["privileged"]` i32[P, S'] and `["privileged_length"]` i32[P]:
    the prompt with a reference solution or a hint, right-padded.

    Args:
      policy: measures the tokens.

    Returns:
      (state, prompts, samples) -> TokenStats.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")

    def teacher(state, prompts, samples):
        how = "add the prompts that the privileged teacher reads"
        told = prompts.replace(
            tokens=require(prompts.data, "privileged", how),
            length=require(prompts.data, "privileged_length", how),
        )
        return policy.measure(joined(state.params, state.frozen), told, samples)

    return teacher
