"""The entropy mechanism: Clip-Cov and KL-Cov.

A large covariance of log-probability and advantage lowers the entropy. Both methods
restrain the few tokens where it is largest. `rljax.analysis.entropy_law` fits the
paper's law of reward and entropy, R = -a exp(H) + b.
"""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss


def clip_cov(
    *,
    fraction: ArrayLike = 2e-4,
    cov_low: ArrayLike = 1.0,
    cov_high: ArrayLike = 5.0,
    low: ArrayLike = 1.0,
    high: ArrayLike = 1.0,
    seed: ArrayLike = 0,
) -> adv.Algorithm:
    """A few random tokens of high covariance lose their gradient (Clip-Cov).

    Args:
      fraction: of the minibatch's tokens.
      cov_low, cov_high: bounds of the covariance, nats times advantage.
      low, high: distances of PPO's bounds from 1; the released scripts set both to 1.
      seed: of the draw, an integer.

    Source: arXiv:2505.22617, eqs. (11)-(12); code
      PRIME-RL/Entropy-Mechanism-of-RL@88505792 verl/trainer/ppo/core_algos.py,
      recipe/dapo/7b_clip_cov.sh (PAPER).
    """
    check.ordered(cov_low=cov_low, cov_high=cov_high)

    def clipped(credit, rollout):
        ratio = loss.token_ratio(rollout.current, rollout)
        return loss.is_clipped(ratio, credit.advantage, low, high)

    drop = adv.drop_covariant(
        fraction=fraction, low=cov_low, high=cov_high, clipped_fn=clipped, seed=seed
    )
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.chain(adv.token_mean(), drop),
            loss_fn=loss.ppo_clip(low, high),
        )
    )


def kl_cov(*, fraction: ArrayLike = 2e-3, beta: ArrayLike = 1.0) -> adv.Algorithm:
    """Tokens of the highest covariance pay a penalty |log rho| (KL-Cov).

    The ratio is not clipped. The penalty has no gradient at rho = 1, up to rounding
    (`loss.kl_absolute`), so it does nothing on the first, on-policy step.

    Args:
      fraction: of the minibatch's tokens that pay; 2e-3 (7B), 2e-4 (32B).
      beta: the penalty's coefficient.

    Source: arXiv:2505.22617, eqs. (13)-(14); code
      PRIME-RL/Entropy-Mechanism-of-RL@88505792 verl/trainer/ppo/core_algos.py (PAPER).
    Variants: the paper's equation has KL(old, now) in place of the sampled |log rho|.
    """
    check.number("beta", beta, low=0)
    select = adv.chain(
        adv.token_mean(), adv.keep_covariant(fraction), adv.scale_weight(beta)
    )
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.token_mean(),
            loss_fn=loss.unclipped_ratio(),
        ),
        penalty=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=select,
            loss_fn=loss.against_old(loss.kl_absolute()),
        ),
    )
