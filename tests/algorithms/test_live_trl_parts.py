"""Advantages, supervised losses, entropy control and scores beside TRL's own, live."""

import fakes
import jax
import jax.numpy as jnp
import laws
import live_trl
import numpy as np
import pytest
import torch
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.utils import selective_log_softmax_and_entropy

from rljax import advantage as adv
from rljax import algorithms, numerics
from rljax.loss.surrogate import clip_loss, log_ratio
from rljax.types import Source, TokenStats

pytestmark = pytest.mark.slow

P, G, T = 4, 5, 7
DRAW = np.random.default_rng(0)
NORMAL = DRAW.normal(0, 1, (P, G)).astype(np.float32)
NORMAL[1] = 0.1  # a group of equals, whose mean is not 0.1 in float32


def rollout(reward, failed=None):
    """A rollout of unequal lengths without holes, which RLOOTrainer does not know."""
    length = DRAW.integers(1, T, (P, G))
    length[0, 0] = T  # TRL pads to the longest
    rows = fakes.rollout(P, G, T, reward=reward, length=length)
    failed = np.zeros((P, G), bool) if failed is None else failed
    return rows.replace(verdict=rows.verdict.replace(failed=jnp.asarray(failed)))


def advantages(transform, rows):
    credit, _ = laws.apply(transform, rows)
    return np.asarray(credit.advantage[..., 0])


def theirs(kind, rows, **settings):
    """TRL's advantages [P, G]; a verifier that failed is a reward of None there."""
    reward = np.where(rows.verdict.failed, np.nan, rows.verdict.reward)
    batch = live_trl.scored(kind(rows, reward, **settings))
    return batch["advantages"].reshape(P, G).numpy()


STANDARD = adv.whiten_by_batch(ddof=1, share_fn=adv.by_row)
GROUP = adv.chain(adv.center_by_group(), adv.scale_by_group_std(ddof=1, epsilon=1e-4))
# name: (trainer, settings, spread of the rewards, our chain)
ADVANTAGES = {
    # Rewards of this spread show the epsilon: it takes a tenth.
    "group": (live_trl.grpo, {}, 1e-3, GROUP),
    "none": (live_trl.grpo, {"scale_rewards": "none"}, 1.0, adv.center_by_group()),
    # The deviation of all rewards, before the groups' means are taken away; + 1e-4,
    # which does not show.
    "batch": (
        live_trl.grpo,
        {"scale_rewards": "batch"},
        1e3,
        adv.chain(STANDARD, adv.center_by_group()),
    ),
    "center_by_leave_one_out": (
        live_trl.rloo,
        {"beta": 0.0},
        1.0,
        adv.center_by_leave_one_out(),
    ),
    "leave_one_out_whitened": (
        live_trl.rloo,
        {"beta": 0.0, "normalize_advantages": True},
        1e3,
        adv.chain(adv.center_by_leave_one_out(), STANDARD),
    ),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_trls(name):
    kind, settings, spread, chain = ADVANTAGES[name]
    rows = rollout(spread * NORMAL)
    got, want = advantages(chain, rows), theirs(kind, rows, **settings)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


def test_the_epsilon_of_the_deviation_shows_in_these_rewards():
    # Else the test above would pass with any epsilon.
    rows = rollout(1e-3 * NORMAL)
    other = adv.chain(adv.center_by_group(), adv.scale_by_group_std(ddof=1))
    shrunk, whole = advantages(GROUP, rows)[0], advantages(other, rows)[0]
    assert (np.abs(shrunk / whole) < 0.95).all()


@pytest.mark.parametrize("name", ["group", "none", "center_by_leave_one_out"])
def test_what_the_verifier_could_not_score_takes_no_part(name):
    # In TRL such a row has advantage 0 and stays in the divisor of the loss; here it
    # has weight 0 and leaves it.
    kind, settings, spread, chain = ADVANTAGES[name]
    failed = np.zeros((P, G), bool)
    failed[0, :2] = failed[2, 1:] = failed[3] = True  # two, one and none are left of 5
    rows = rollout(spread * NORMAL, failed)
    want = theirs(kind, rows, **settings)
    got = np.where(failed, 0.0, advantages(chain, rows))
    assert (want[0, 2:] != 0).all() and not want[failed].any()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


def product_ratio(low, high):
    """PPO's clip of the ratio of the whole row, as its user would write it."""

    def loss(now, credit, rollout):
        d = jnp.where(rollout.samples.mask, log_ratio(now, rollout), 0.0)
        ratio = jnp.exp(jnp.sum(d, -1, keepdims=True))
        return clip_loss(ratio, credit.advantage, low, high)

    return loss


def penalise_drift(beta):
    """r - beta times the row's sum of log(pi_old / pi_ref): KL in the reward."""

    def apply(credit, rollout):
        gap = rollout.old.logp - rollout.reference.logp
        kl = jnp.sum(jnp.where(rollout.samples.mask, gap, 0.0), -1, keepdims=True)
        return credit.replace(advantage=credit.advantage - beta * kl)

    return adv.stateless(apply)


def test_rloo_is_trls():
    rows = rollout(NORMAL)
    noise = jnp.asarray(DRAW.normal(0, 0.1, (P, G, T)), jnp.float32)
    rows = rows.replace(old=rows.old.replace(logp=rows.current.logp + noise))
    trainer = live_trl.rloo(rows, beta=0.3)
    algorithm = adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(penalise_drift(0.3), adv.center_by_leave_one_out()),
            weighting=adv.sequence_mean(),
            loss_fn=product_ratio(0.2, 0.2),
        )
    )
    live_trl.same(live_trl.ours(algorithm, rows), live_trl.step(trainer))
    assert 0 < trainer._metrics["train"]["clip_ratio/region_mean"][0] < 1


def test_on_policy_the_recipe_pushes_as_trls_rloo_does():
    # -A log pi and -A ratio differ in value and agree in gradient.
    rows = rollout(NORMAL)
    rows = rows.replace(old=rows.current)
    got = live_trl.ours(algorithms.rloo(), rows)
    live_trl.same(got[1:], live_trl.step(live_trl.rloo(rows, beta=0.0))[1:])


@pytest.mark.parametrize(
    ("loss_type", "algorithm"), [("nll", algorithms.sft()), ("dft", algorithms.dft())]
)
def test_supervised_losses_are_trls(loss_type, algorithm):
    rows = rollout(NORMAL)
    samples = rows.samples.replace(source=jnp.full((P, G), Source.DEMONSTRATION))
    prompts = rows.prompts.replace(data={"completion": samples.tokens[:, 0]})
    rows = rows.replace(samples=samples, prompts=prompts)
    want = live_trl.supervised(rows, loss_type)
    live_trl.same(live_trl.ours(algorithm, rows), want)


def test_the_entropy_controller_is_trls():
    # Both are Skywork-OR1's, except at the target itself: there TRL's is on.
    initial, step, high, target = 0.003, 0.002, 0.006, 1.0
    measured = [0.5, 0.4, 0.3, 1.2, 0.9, 1.4, 1.5, 1.6, 1.1, 0.2, 0.3]
    rows = rollout(NORMAL)
    trainer = live_trl.grpo(
        rows,
        use_adaptive_entropy=True,
        entropy_coef=initial,
        entropy_coef_delta=step,
        entropy_coef_min=0.0,
        entropy_coef_max=high,
        entropy_target=target,
    )
    controller = adv.delayed(
        adv.entropy_controller(
            target=target, step=step, initial=initial, low=0.0, high=high
        )
    )
    value, state = controller.init()
    used = []
    for e in measured:
        value, state = controller.update(jnp.float32(e), state)
        uniform = TokenStats(logp=rows.current.logp, entropy=jnp.full((P, G, T), e))
        trainer.rollout = rows.replace(current=uniform)
        _, _, push = live_trl.step(trainer)
        np.testing.assert_allclose(-push.sum(), value, rtol=1e-5, atol=1e-9)
        used.append(round(float(value), 6))
    assert used == [0, 0.005, 0.006, 0.006, 0, 0.006, 0, 0, 0, 0, 0.002]


def test_scores_of_logits_are_trls():
    logits = DRAW.normal(0, 3, (5, 6, 11)).astype(np.float32)
    tokens = DRAW.integers(0, 11, (5, 6))
    weights = DRAW.normal(size=(2, 5, 6)).astype(np.float32)
    x = torch.from_numpy(logits).requires_grad_()
    want = selective_log_softmax_and_entropy(x, torch.from_numpy(tokens))
    sum((torch.from_numpy(w) * y).sum() for w, y in zip(weights, want)).backward()

    def score(logits):
        return numerics.logp_and_entropy(logits, jnp.asarray(tokens, jnp.int32))

    got, pull = jax.vjp(score, jnp.asarray(logits))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w.detach().numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull(tuple(weights))[0], x.grad, rtol=1e-4, atol=1e-5)


def test_the_overlong_punishment_is_trls():
    punish = get_soft_overlong_punishment(max_completion_len=6, soft_punish_cache=4)
    rows = fakes.rollout(1, 8, 8, reward=np.zeros((1, 8)), length=[np.arange(1, 9)])
    got = laws.apply(adv.punish_overlong(max_tokens=6, buffer=4), rows)[0]
    want = punish([[1] * n for n in range(1, 9)])
    np.testing.assert_allclose(got.advantage[0, :, 0], want)
