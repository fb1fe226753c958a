"""Advantages that depend on the rest of the batch: its mean, deviation, or make-up.

Their masses are no functions of a prompt's solve rate alone: the same group weighs
differently in another company. Statistics run over the whole rollout batch, all hosts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage import baseline, gae, solve_rate
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Credit


def return_to_go(discount: jax.typing.ArrayLike = 1.0) -> AdvantageTransform:
    """G_t = sum over policy tokens s >= t of discount^(s - t) r_s; f32[P, G, T].

    An advantage per row is a reward paid at its last token, one per token (with a KL
    penalty, say) is taken as it is. Tokens the policy does not answer for are skipped:
    they pay nothing, cost no discount and get 0.

    Variants: SkyRL ends the running sum at a token outside the mask, which in
      completions with tool output keeps the final reward from all earlier turns.
    """
    check.number("discount", discount, low=0, high=1)

    def apply(credit, rollout):
        reward, mask = gae.token_reward(credit, rollout), rollout.samples.mask
        value = jnp.zeros(mask.shape, jnp.float32)
        returns, _ = gae.gae(reward, value, mask, discount, 1.0)
        return credit.replace(advantage=returns)

    return stateless(apply)


def by_token(credit: Credit) -> jax.Array:
    """f32[P, G, T]: every token counts alike, as its weight says."""
    return jnp.where(credit.member, credit.weight, 0.0)


def by_row(credit: Credit) -> jax.Array:
    """f32[P, G, 1]: every member counts alike, whatever its length."""
    return credit.member.astype(jnp.float32)


def whiten_by_batch(
    *,
    ddof: int = 0,
    floor: float = 1e-8,
    share_fn: Callable[[Credit], jax.Array] = by_token,
) -> AdvantageTransform:
    """(A - mean) / sqrt(max(variance, floor)), both over the batch.

    Args:
      ddof: 0 for the population variance (OpenRLHF, the authors' framework), 1 for
        Bessel's (verl).
      floor: least variance, in squared units of the reward.
      share_fn: what counts how much: `by_token` (OpenRLHF and verl) or `by_row`.

    Source: REINFORCE++, arXiv:2501.03262 (PAPER: authors' code).
    Variants: verl adds 1e-8 to the variance instead of a floor.
    """
    check.count("ddof", ddof, low=0)
    check.number("floor", floor, above=0)
    check.function("share_fn", share_fn, "credit")

    def apply(credit, rollout):
        del rollout
        share = share_fn(credit)
        shape = jnp.broadcast_shapes(credit.advantage.shape, share.shape)
        a, share = (jnp.broadcast_to(x, shape) for x in (credit.advantage, share))
        total = jnp.sum(share)
        center = numerics.safe_divide(_sum(share, a), total)
        square = _sum(share, (a - center) ** 2)
        variance = numerics.safe_divide(square, jnp.maximum(total - ddof, 0.0))
        high = jnp.max(jnp.where(share > 0, a, -jnp.inf))
        low = jnp.min(jnp.where(share > 0, a, jnp.inf))
        # Equal values are found exactly: the noise in their mean is no advantage.
        scale = jnp.where(high > low, jax.lax.rsqrt(jnp.maximum(variance, floor)), 0.0)
        return credit.replace(advantage=(credit.advantage - center) * scale)

    return stateless(apply)


def _sum(share, values):
    return jnp.sum(jnp.where(share > 0, share * values, 0.0))


def scale_by_mixed_share() -> AdvantageTransform:
    """A * groups / groups of unequal advantages: the mean over the latter alone.

    Without any such group the factor is 1 (RECONSTRUCTED). Logs `mixed_share`.

    Source: GPG's alpha, arXiv:2504.02546 (PAPER: authors' code AMAP-ML/GPG).
    Variants: verl's `gpg` has responses / responses of nonzero score instead, another
      quantity; R1-V divides its loss by the share + 1e-5 on top.
    """

    def apply(credit, rollout):
        del rollout
        known = jnp.any(credit.member, 1, keepdims=True)
        mixed = known & ~baseline.equal_groups(credit)
        groups = jnp.sum(known, dtype=jnp.float32)
        count = jnp.sum(jnp.any(mixed, -1), dtype=jnp.float32)
        factor = jnp.where(count > 0, numerics.safe_divide(groups, count), 1.0)
        share = numerics.safe_divide(count, groups)
        return credit.replace(advantage=credit.advantage * factor).log(
            mixed_share=share
        )

    return stateless(apply)


def anneal_by_batch_rate(k0: jax.typing.ArrayLike = 1.0) -> AdvantageTransform:
    """A h, and times min(1, B / k0) where A > 0; B the mean solve rate of the prompts.

        h = 1/2 ((1 - B) / (1 - sqrt p) + B / sqrt p)

    As B grows it goes from easy prompts to hard ones and from failures to balance.

    Args:
      k0: batch solve rate at which the sign is balanced; 1 (mathematics) or 0.5.

    Source: A-GRAE (PAPER: authors' code, Yu7-code/A-GRAE).
    """
    check.number("k0", k0, above=0)

    def apply(credit, rollout):
        p = solve_rate.by_reward(rollout, credit.member).p
        known = jnp.any(credit.member, 1, keepdims=True)
        batch = numerics.masked_mean(p, known)
        root = jnp.sqrt(jnp.maximum(p, 0.0))
        easy = numerics.safe_divide(1 - batch, 1 - root)
        hard = numerics.safe_divide(batch, root)
        a = credit.advantage * 0.5 * (easy + hard)
        a = jnp.where(a > 0, a * jnp.minimum(1.0, batch / k0), a)
        return credit.replace(advantage=a).log(batch_rate=batch)

    return stateless(apply)
