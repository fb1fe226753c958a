"""Baselines: what is subtracted from the reward.

Statistics run over the members of a group (axis G, rank 3: [P, G, 1]). Rows that are
no members get the same baseline but do not enter it. `r` is the incoming advantage,
usually the reward. A group whose members are all equal gets exactly 0, unless its
baseline is computed from something else (a constant, a greedy sample).
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, chain, stateless
from rljax.metric import Fault
from rljax.types import Credit, Source


def require_group(credit: Credit, num_samples: int, name: str) -> None:
    """Raises ValueError, when traced, unless groups have `num_samples` samples."""
    shape = credit.advantage.shape
    if shape[1] < num_samples:
        raise ValueError(
            f"{name} needs at least {num_samples} samples per prompt, got an advantage"
            f" of shape {shape} ([P, G, 1]); raise num_samples."
        )


def group_mean(credit: Credit) -> jax.Array:
    """f32[P, 1, 1 or T]: mean advantage over the members of each group."""
    return numerics.masked_mean(credit.advantage, credit.member, 1, keepdims=True)


def equal_groups(credit: Credit) -> jax.Array:
    """bool[P, 1, 1 or T]: groups whose members all have the same advantage."""
    # Exact equality, not a threshold on the variance: a mean's rounding error would
    # become a large advantage when it is divided by its own standard deviation.
    a, m = credit.advantage, credit.member
    high = jnp.max(jnp.where(m, a, -jnp.inf), 1, keepdims=True)
    low = jnp.min(jnp.where(m, a, jnp.inf), 1, keepdims=True)
    return high <= low


def center_by(constant: ArrayLike) -> AdvantageTransform:
    """r - constant: one baseline for all prompts (REINFORCE, Williams 1992)."""
    check.number("constant", constant)
    return stateless(lambda c, r: c.replace(advantage=c.advantage - constant))


def center_by_group() -> AdvantageTransform:
    """r - mean(r): the mean baseline (Dr. GRPO, arXiv:2503.20783)."""

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "center_by_group()")
        # Only members become 0: another row may differ from a group of equals.
        equal = equal_groups(credit) & credit.member
        centred = jnp.where(equal, 0.0, credit.advantage - group_mean(credit))
        return credit.replace(advantage=centred)

    return stateless(apply)


def center_by_leave_one_out() -> AdvantageTransform:
    """r - mean of the others' r = n/(n-1) (r - mean(r)) (RLOO, arXiv:2402.14740)."""

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "center_by_leave_one_out()")
        n = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.float32)
        centred = jnp.where(
            equal_groups(credit), 0.0, credit.advantage - group_mean(credit)
        )
        return credit.replace(advantage=centred * numerics.safe_divide(n, n - 1))

    return stateless(apply)


def center_by_greedy() -> AdvantageTransform:
    """r - reward of the prompt's greedy sample.

    Greedy rows (`samples.source == Source.GREEDY`) lose membership and weight. If a
    prompt has several, the baseline is their mean. A prompt without any keeps r and is
    counted in `fault/greedy_missing`.

    Source: ReMax, arXiv:2310.10505 (SECONDARY: third-party code).
    """

    def apply(credit, rollout):
        greedy = (rollout.samples.source == Source.GREEDY)[..., None]
        known = greedy & credit.member
        base = numerics.masked_mean(credit.advantage, known, 1, keepdims=True)
        lacking = jnp.any(credit.member, 1) & ~jnp.any(known, 1)
        return credit.replace(
            advantage=credit.advantage - base,
            weight=jnp.where(greedy, 0.0, credit.weight),
            member=credit.member & ~greedy,
        ).log(**{"fault/greedy_missing": Fault(jnp.sum(lacking))})

    return stateless(apply)


def center_by_length() -> AdvantageTransform:
    """r - sum(l r) / sum(l), l the tokens of a row: the optimal baseline.

    Advantages are balanced in tokens: sum(l A) = 0 over a group. With equal lengths the
    baseline is the group mean. A group of one member has baseline 0, as in verl.

    Source: OPO, arXiv:2505.23585 (SECONDARY: verl `opo`, merged by the authors).
    """

    def apply(credit, rollout):
        length = rollout.samples.length[..., None].astype(jnp.float32)
        length = jnp.where(credit.member, length, 0.0)
        total = jnp.sum(length, 1, keepdims=True)
        weighted = jnp.sum(length * credit.advantage, 1, keepdims=True)
        alone = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.int32) <= 1
        base = jnp.where(alone, 0.0, numerics.safe_divide(weighted, total))
        centred = jnp.where(equal_groups(credit) & ~alone, 0.0, credit.advantage - base)
        return credit.replace(advantage=centred)

    return stateless(apply)


def center_by_quantile(level: ArrayLike) -> AdvantageTransform:
    """r - Q with the group's quantile Q = inf{x : F(x) >= level}.

    For rewards 0 and 1 this is a gate: Q = 0 while p <= 1 - level, so only successes
    count; above, Q = 1 and only failures count. The quantile is the inverted cdf; an
    interpolated one would have no gate.

    Args:
      level: K, a fraction in (0, 1).

    Source: QAE, arXiv:2509.22611 (the gate SECONDARY, from the abstract; the formula
      RECONSTRUCTED).
    """
    check.number("level", level, above=0, below=1)

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "center_by_quantile()")
        ranked = jnp.sort(jnp.where(credit.member, credit.advantage, jnp.inf), 1)
        n = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.float32)
        # - 1e-5: float32 rounding must not push a whole level * n above its integer.
        index = jnp.maximum(jnp.ceil(level * n - 1e-5), 1.0).astype(jnp.int32) - 1
        quantile = jnp.take_along_axis(ranked, index, 1)
        quantile = jnp.where(n > 0, quantile, 0.0)
        return credit.replace(advantage=credit.advantage - quantile)

    return stateless(apply)


def center_by_risk(beta: ArrayLike) -> AdvantageTransform:
    """(e^(beta r) / mean(e^(beta r)) - 1) / beta: the gradient of a log-mean-exp.

    The objective is (1 / beta) log E[e^(beta r)]: the mean reward for beta -> 0, the
    best of the group for beta -> infinity. For r in {0, 1} the advantage is
    (r - p) (e^beta - 1) / (beta (1 + p (e^beta - 1))).

    Args:
      beta: risk seeking, > 0.

    Source: RS-GRPO (PAPER: authors' code, Jackory/RS-GRPO).
    """
    check.number("beta", beta, above=0)

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "center_by_risk()")
        a, m = credit.advantage, credit.member
        top = jnp.max(jnp.where(m, a, -jnp.inf), 1, keepdims=True)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        # No member exceeds the top, but a row that is no member may.
        tilt = jnp.exp(numerics.bounded(beta * (a - top)))
        mean = numerics.masked_mean(tilt, m, 1, keepdims=True)
        ratio = numerics.safe_divide(tilt, mean)
        centred = jnp.where(equal_groups(credit), 0.0, (ratio - 1) / beta)
        return credit.replace(advantage=centred)

    return stateless(apply)


def skip_groups_of_one(*transforms: AdvantageTransform) -> AdvantageTransform:
    """Applies transforms, but groups of one member keep their incoming advantage.

    For a group of one, verl (and so GFT) takes mean 0 and deviation 1; a lone
    demonstration therefore keeps its reward as its advantage.

    Args:
      *transforms: a chain that changes `advantage` alone.
    """
    inner = chain(*transforms)

    def update(credit, rollout, state):
        if credit.advantage.shape[1] == 1:
            return credit, state
        changed, state = inner.update(credit, rollout, state)
        single = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.int32) == 1
        kept = jnp.where(single, credit.advantage, changed.advantage)
        return changed.replace(advantage=kept), state

    return AdvantageTransform(inner.init, update)
