"""Checks that an accelerator computes the same samples, scores and updates as the CPU.

python -m benchmarks.device_numbers

The CPU and the default device each sample from, score and update a decoder of 4 layers.
In float32, with products at highest precision, both must agree up to rounding. In
bfloat16, the device's error against float32 may be twice the CPU's. Exits with 1 if
they disagree. Takes about a minute.
"""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import algorithms, program
from rljax.learn import update
from rljax.model import DecoderConfig, decoder_policy
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Rollout, Verdict

CONFIG = DecoderConfig(
    vocab_size=4096,
    num_layers=4,
    d_model=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    d_ff=512,
)
P, G, S, T = 8, 4, 32, 96  # T is large enough for several blocks of attention
# Fraction of sampled tokens that must agree: a tie that falls the other way changes the
# rest of its row.
SAME_TOKENS = 0.99
LARGEST = {
    "logp, nats": 1e-4,
    "entropy, nats": 1e-4,
    "update, share of its largest": 1e-3,
}


def main() -> None:
    cpu, device = jax.devices("cpu")[0], jax.devices()[0]
    samples = {where: sampled(where) for where in (cpu, device)}
    same = np.mean(samples[cpu].samples.tokens == samples[device].samples.tokens)
    print(f"{device.device_kind}: {same:.2%} of the sampled tokens are the CPU's")
    bad = [] if same >= SAME_TOKENS else ["tokens"]
    # All devices score and update on the CPU's samples, so that only that differs.
    found = {
        (where, dtype): scored(where, dtype, samples[cpu])
        for where in (cpu, device)
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    right = found[cpu, jnp.float32]
    for name, limit in LARGEST.items():
        unit = np.max(np.abs(right[name])) if "share" in name else 1.0
        off = {
            key: np.max(np.abs(value[name] - right[name])) / unit
            for key, value in found.items()
        }
        wide, narrow = off[device, jnp.float32], off[device, jnp.bfloat16]
        allowed = 2 * off[cpu, jnp.bfloat16] + limit
        bad += [f"{name} in float32"] if wide > limit else []
        bad += [f"{name} in bfloat16"] if narrow > allowed else []
        print(
            f"{name}: float32 off by {wide:.1e} (at most {limit:.0e}), bfloat16 by"
            f" {narrow:.1e} (at most {allowed:.1e})"
        )
    if bad:
        sys.exit(f"{device.device_kind} and the CPU disagree on {', '.join(bad)}")


def sampled(where: jax.Device) -> Rollout:
    """A rollout with verdicts, sampled on a device in float32."""
    policy, params = made(where, jnp.float32)
    sample = sampler(policy, num_samples=G, max_tokens=T, stop_tokens=(0,))
    act = program.actor(policy, sample)

    def roll(params, prompts):
        state = learner(policy).init(params, jax.random.key(2))
        rollout = act(state, prompts)
        right = rollout.samples.tokens[..., 0] % 2 == 0
        return rollout.replace(verdict=Verdict.binary(right))

    with jax.default_device(where), jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(roll)(params, prompts()))


def scored(where: jax.Device, dtype: Any, rollout: Rollout) -> dict[str, np.ndarray]:
    """Log-probabilities, entropies, and the change of all parameters in an update."""
    policy, params = made(where, dtype)

    def step(params, rollout):
        stats = policy.measure(params, rollout.prompts, rollout.samples)
        state = learner(policy).init(params, jax.random.key(2))
        moved, _ = learner(policy).learn(state, rollout)
        change = jax.tree.map(jnp.subtract, moved.params, params)
        mask = rollout.samples.mask
        return (
            jnp.where(mask, stats.logp, 0),
            jnp.where(mask, stats.entropy, 0),
            jnp.concatenate([x.ravel() for x in jax.tree.leaves(change)]),
        )

    with jax.default_device(where), jax.default_matmul_precision("highest"):
        found = jax.device_get(jax.jit(step)(params, jax.device_put(rollout, where)))
    return dict(zip(LARGEST, found, strict=True))


def learner(policy) -> update.Learner:
    """SGD with rate 1, so that parameters change by the gradient, clipped to norm 1."""
    descent = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
    return update.learner(policy.measure, algorithms.grpo(), descent)


def made(where: jax.Device, dtype: Any):
    """The policy, and its parameters, which are drawn on the CPU."""
    policy = decoder_policy(CONFIG)
    with jax.default_device(jax.devices("cpu")[0]):
        params = jax.jit(policy.init)(jax.random.key(0))
    policy = decoder_policy(dataclasses.replace(CONFIG, dtype=dtype))
    return policy, jax.device_put(params, where)


def prompts() -> Prompts:
    """Prompts of random tokens."""
    draw = np.random.default_rng(0)
    return Prompts(
        tokens=draw.integers(1, CONFIG.vocab_size, (P, S)).astype(np.int32),
        length=draw.integers(S // 2, S + 1, P).astype(np.int32),
        id=np.arange(P, dtype=np.int32),
    )


if __name__ == "__main__":
    main()
