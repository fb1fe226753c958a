"""Every algorithm learns: it raises the reward, and lowers it with its sign flipped.

The policy is a table of logits, so a run costs milliseconds and its expected reward is
exact. What some methods need, the fake run supplies to all: reference, teacher, values,
demonstrations, hints.
"""

from typing import NamedTuple

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import algorithms, loop, update
from rljax.advantage import Algorithm
from rljax.gate import Gate
from rljax.policy import against_reference
from rljax.types import Prompts, Rollout, Samples, Source, TokenStats, Verdict

P, G, T, V = 8, 8, 2, 3
NUM_STEPS, SEEDS = 60, 4
CHANCE = V**-T  # the reward of the policy at the start, which is uniform
BANDIT = fakes.bandit(P, T, V)
TARGET = np.random.default_rng(0).integers(0, V, (P, T)).astype(np.int32)

OWN, GREEDY, DEMONSTRATION = Source.OWN, Source.GREEDY, Source.DEMONSTRATION


class Case(NamedTuple):
    """An algorithm and the fakes it needs.

    others: rows beside the group's own samples; only: they are all there is.
    """

    algorithm: Algorithm
    others: tuple[int, ...] = ()
    only: bool = False
    gate: Gate | None = None
    num_passes: int = 1


def imitation(algorithm):
    return Case(algorithm, others=(DEMONSTRATION,), only=True)


def mixed(algorithm):
    return Case(algorithm, others=(DEMONSTRATION,))


a = algorithms
CASES = {
    "a_grae": Case(a.a_grae()),
    "ace": Case(a.ace()),
    "asft": imitation(a.asft()),
    "asft_sampled": imitation(a.asft_sampled()),
    "asym_grpo": Case(a.asym_grpo(0.5)),
    "asym_grpo_by_odds": Case(a.asym_grpo_by_odds()),
    "chord": mixed(a.chord()),
    "cispo": Case(a.cispo()),
    "clip_cov": Case(a.clip_cov()),
    "clipped_policy": Case(a.clipped_policy()),
    "corrected": Case(a.corrected()),
    "curve_rl": Case(a.curve_rl(G)),
    "dapo": Case(a.dapo(max_tokens=2 * T, buffer=T)),
    "dasd": Case(a.dasd()),
    "dft": imitation(a.dft()),
    "dgg_gate": Case(
        a.grpo(),
        gate=a.dgg_gate(select_fn=lambda grads: grads["logits"]),
        num_passes=2,
    ),
    "dr_grpo": Case(a.dr_grpo(T)),
    "f_grpo": Case(a.f_grpo(1.0)),
    "fade": Case(a.fade()),
    "gac": mixed(a.gac()),
    "gcsl": imitation(a.gcsl()),
    "geometric_rejection": Case(a.geometric_rejection()),
    "gft": mixed(a.gft()),
    "gmpo": Case(a.gmpo()),
    "gpg": Case(a.gpg()),
    "grpo": Case(a.grpo()),
    "grpo_kl": Case(a.grpo_kl()),
    "gspo": Case(a.gspo()),
    "gspo_token": Case(a.gspo_token()),
    "hpt": mixed(a.hpt(max_tokens=T)),
    "icepop": Case(a.icepop()),
    "iw_sft": imitation(a.iw_sft()),
    "justrl": Case(a.justrl()),
    "kl_cov": Case(a.kl_cov()),
    "lfu": imitation(a.lfu(0.01)),
    "linear_r": Case(a.linear_r()),
    "log_failure": Case(a.log_failure()),
    "log_odds": Case(a.log_odds()),
    "luffy": mixed(a.luffy(max_tokens=T)),
    "maxrl": Case(a.maxrl()),
    "minpro": Case(a.minpro()),
    "mixture": mixed(a.mixture(0.5)),
    "norm_grpo": Case(a.norm_grpo(1.0)),
    "nsr": Case(a.nsr()),
    "opo": Case(a.opo()),
    "pass_at_group": Case(a.pass_at_group()),
    "pass_at_k": Case(a.pass_at_k(2.0)),
    "pass_at_k_training": Case(a.pass_at_k_training(2)),
    "pkpo": Case(a.pkpo(2)),
    "pkpo_leave_one_out": Case(a.pkpo_leave_one_out(2)),
    "pkpo_minus_one": Case(a.pkpo_minus_one(2)),
    "power": Case(a.power(2.0)),
    "power_asym": Case(a.power_asym(1.0, 2.0)),
    "ppo": Case(a.ppo()),
    "psft": imitation(a.psft()),
    "psr": Case(a.psr()),
    "qae": Case(a.qae()),
    "raft": Case(a.raft()),
    "reinforce": Case(a.reinforce()),
    "reinforce_plus_plus": Case(a.reinforce_plus_plus()),
    "reinforce_plus_plus_baseline": Case(a.reinforce_plus_plus_baseline()),
    "reinforce_signed": Case(a.reinforce_signed()),
    "remax": Case(a.remax(), others=(GREEDY,)),
    "rloo": Case(a.rloo()),
    "rs_grpo": Case(a.rs_grpo()),
    "sapo": Case(a.sapo()),
    "sequence_mask": Case(a.sequence_mask()),
    "sequence_mask_tis": Case(a.sequence_mask_tis()),
    "sft": imitation(a.sft()),
    "skywork_or1": Case(a.skywork_or1()),
    "sqrt_r": Case(a.sqrt_r()),
    "srft": mixed(a.srft(max_tokens=T)),
    "stapo": Case(a.stapo()),
    "tis": Case(a.tis()),
    "top_entropy": Case(a.top_entropy()),
    "truncated_reinforce": Case(a.truncated_reinforce()),
    "turn_ppo": Case(a.turn_ppo()),
    "uft": mixed(a.uft()),
    "w_reinforce": Case(a.w_reinforce()),
}
PARTS = {"group_normalised", "output_projection", "over_all", "over_selected"}


def measure(params, reference, prompts, samples) -> TokenStats:
    """Everything that an algorithm asks for."""
    now = against_reference(BANDIT).fn(params, reference, prompts, samples)
    value = jnp.broadcast_to(params["value"][prompts.id, None], now.logp.shape)
    # As if layers drifted where logits are large.
    drift = jnp.mean(jnp.square(params["logits"]), -1)[prompts.id, None]
    drift = jnp.broadcast_to(drift, now.logp.shape)
    return now.replace(extra={**now.extra, "value": value, "consistency": drift})


def act(case: Case):
    """Samples, with all statistics measured on all rows."""

    def rows(params, prompts, source):
        logits = params["logits"][prompts.id, None]
        if source == DEMONSTRATION:
            return prompts.data["target"][:, None]
        if source == GREEDY:
            return jnp.argmax(logits, -1)
        return jnp.argmax(logits + prompts.data["noise"], -1)

    def run(state, prompts):
        sources = case.others if case.only else (OWN, *case.others)
        parts = [rows(state.params, prompts, s).astype(jnp.int32) for s in sources]
        counts = [part.shape[1] for part in parts]
        tokens = jnp.concatenate(parts, 1)
        samples = Samples(
            tokens=tokens,
            mask=jnp.ones(tokens.shape, bool),
            source=jnp.tile(jnp.repeat(jnp.asarray(sources), np.array(counts)), (P, 1)),
            finished=jnp.ones(tokens.shape[:2], bool),
        )
        told = 2 * jax.nn.one_hot(prompts.data["target"], V)  # what a teacher knows
        teacher = {"logits": state.params["logits"] + told}
        old = measure(state.params, state.reference, prompts, samples)
        return Rollout(
            prompts=prompts,
            samples=samples.replace(behaviour=old),
            old=old,
            reference=BANDIT.measure(state.reference, prompts, samples),
            teacher=BANDIT.measure(teacher, prompts, samples),
        )

    return run


def problems() -> Prompts:
    """[seeds, steps, P, ...]: always the same problems, with all that data may hold.

    noise: what samples are drawn by; of NumPy, as a random generator in the program
      would take longer to compile than the rest of it.
    """
    shape = (SEEDS, NUM_STEPS, P)

    def everywhere(x):
        return np.broadcast_to(x, (*shape, *np.shape(x)[1:]))

    ones = np.ones(P, np.int32)
    data = {
        "target": everywhere(TARGET),
        "answers": everywhere(TARGET[:, None]),
        "weight": everywhere(np.float32(ones)),
        "hint_length": everywhere(ones),
        "noise": np.random.default_rng(1).gumbel(size=(*shape, G, T, V)),
    }
    return Prompts(
        tokens=everywhere(ones[:, None] - 1),
        length=everywhere(ones),
        id=everywhere(np.arange(P, dtype=np.int32)),
        data=data,
    )


def verify(prompts, samples) -> Verdict:
    right = samples.tokens == prompts.data["target"][:, None]
    return Verdict.binary(jnp.all(right, -1))


def reward(params) -> jax.Array:
    """f32[]: the expected reward, enumerated."""
    logp = jax.nn.log_softmax(params["logits"])
    logp = jnp.take_along_axis(logp, TARGET[..., None], -1)
    return jnp.mean(jnp.exp(jnp.sum(logp, (1, 2))))


def rewards_after_training(case: Case, signs: tuple[float, ...]) -> np.ndarray:
    """[signs, seeds]: a population in one program; `signs` multiply the loss."""

    def train(sign, prompts):
        flipped = case.algorithm._replace(
            loss=lambda *args: sign * case.algorithm.loss(*args)
        )
        learner = update.learner(
            update.ReferencedMeasure(measure),
            flipped,
            optax.adam(0.1),
            gate=case.gate,
            num_passes=case.num_passes,
        )
        params = {**BANDIT.init(None), "value": jnp.zeros((P, T))}
        state = learner.init(params, jax.random.key(0), reference=params)
        state, _ = loop.fused(act(case), learner, verify)(state, prompts)
        return reward(state.params)

    # Optimising programs that run for milliseconds would take most of the time.
    run = jax.jit(
        jax.vmap(jax.vmap(train, (None, 0)), (0, None)),
        compiler_options={
            "xla_backend_optimization_level": 0,
            "xla_cpu_use_fusion_emitters": False,
            "xla_llvm_disable_expensive_passes": True,
        },
    )
    return np.asarray(run(jnp.asarray(signs, jnp.float32), problems()))


def assert_learned(rewards):
    """Every seed at least doubled the reward of the start."""
    assert np.all(rewards > 2 * CHANCE), rewards


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_raises_the_reward_and_not_with_its_sign_flipped(case):
    right, flipped = rewards_after_training(case, (1.0, -1.0))
    assert_learned(right)
    with pytest.raises(AssertionError):
        assert_learned(flipped)
    assert np.all(flipped < CHANCE)


def test_no_algorithm_is_left_out():
    assert set(CASES) | PARTS == set(algorithms.__all__)
