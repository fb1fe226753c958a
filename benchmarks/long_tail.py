"""Completions of very different lengths: what slots and pieces by length are worth.

python -m benchmarks.long_tail [--prompts 64] [--samples 16] [--tokens 256]

A real decoder computes; a script ends each sample at a lognormal length of coefficient
of variation 1, mean a sixth of T, cut at T. Sampling with all samples at once is timed
beside sampling in slots, and the update of whole rows beside pieces by length, in turn.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

from benchmarks import rljax_program, workload
from rljax import algorithms, loop, update
from rljax.policy import decoder_policy
from rljax.policy.base import Policy
from rljax.sample import sampler
from rljax.types import Rollout, Verdict

STOP = 2
CV = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sizes = rljax_program.build(workload.WORKLOADS["W1"], 1).program.sizes
    policy = scripted(decoder_policy(sizes.decoder), hazard(args.tokens))
    params = jax.jit(policy.init)(jax.random.key(0))
    prompts = rljax_program.prompts(args.prompts)

    total = args.prompts * args.samples
    slots = [None, *(total // n for n in (4, 8, 16, 32))]
    draws = {
        n: jax.jit(
            sampler(
                policy,
                num_samples=args.samples,
                max_tokens=args.tokens,
                stop_tokens=(STOP,),
                num_slots=n,
            )
        )
        for n in slots
    }
    key = jax.random.key(1)
    drawn = {n: draw(params, prompts, key) for n, draw in draws.items()}
    first, old = drawn[None]
    lengths = np.asarray(first.length, float)
    print(
        f"{total} samples, mean length {lengths.mean():.0f} of {args.tokens} tokens,"
        f" coefficient of variation {lengths.std() / lengths.mean():.2f}\n"
    )
    times = in_turn(
        {n: lambda d=d: d(params, prompts, key) for n, d in draws.items()}, args.rounds
    )
    print("| slots | seconds | against all at once | useful | other tokens |")
    print("|---|---|---|---|---|")
    for n, (samples, _) in drawn.items():
        ratio = statistics.median(
            a / b for a, b in zip(times[None], times[n], strict=True)
        )
        useful = float(loop.rollout_metrics(rollout(prompts, samples, old))[USEFUL])
        other = int(jnp.sum(samples.tokens != first.tokens))
        print(
            f"| {n or 'all'} | {statistics.median(times[n]):.2f} | {ratio:.2f} |"
            f" {useful:.0%} | {other} |"
        )

    batch = rollout(prompts, first, old)
    learns, grads = {}, {}
    for n in (1, 2, 4, 8):
        learner = update.learner(
            policy.measure,
            algorithms.dr_grpo(args.tokens),
            optax.sgd(1.0),
            num_microbatches=4,
            num_lengths=n,
        )
        state = jax.jit(learner.init)(params, key)
        learns[n] = jax.jit(learner.learn), state
        grads[n] = learns[n][0](state, batch)[0].params
    times = in_turn(
        {n: lambda f=f, s=s: f(s, batch) for n, (f, s) in learns.items()}, args.rounds
    )
    print("\n| sizes of T | seconds | against one | largest gap of a parameter |")
    print("|---|---|---|---|")
    for n in learns:
        ratio = statistics.median(
            a / b for a, b in zip(times[1], times[n], strict=True)
        )
        gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), grads[n], grads[1])
        gap = max(map(float, jax.tree.leaves(gaps)))
        print(f"| {n} | {statistics.median(times[n]):.2f} | {ratio:.2f} | {gap:.1e} |")


USEFUL = "samples/useful_share"


def hazard(max_tokens: int) -> np.ndarray:
    """f32[T + 1]: the chance that token t ends a completion that has not ended."""
    sigma = np.sqrt(np.log(1 + CV**2))
    law = scipy.stats.lognorm(sigma, scale=max_tokens / 6 * np.exp(-(sigma**2) / 2))
    t = np.arange(max_tokens + 1)
    chance = (law.cdf(t + 1) - law.cdf(t)) / law.sf(t)
    return np.clip(chance, 1e-6, 1 - 1e-6).astype(np.float32)


def scripted(policy: Policy, hazard: np.ndarray) -> Policy:
    """The same computation, but the end token's probability follows a script."""
    chance = jnp.asarray(hazard)

    def write(logits, t):  # f32[P, ..., V], i32[P]
        end = chance[t].reshape(-1, *(1,) * (logits.ndim - 1))
        others = jax.nn.log_softmax(logits.at[..., STOP].set(-1e9))
        is_end = jnp.arange(logits.shape[-1]) == STOP
        return jnp.where(is_end, jnp.log(end), others + jnp.log1p(-end))

    def prefill(params, prompts):
        logits, prompt = policy.prefill(params, prompts)
        return write(logits, jnp.zeros(logits.shape[0], jnp.int32)), prompt

    def decode(params, tokens, t, prompt, cache):
        logits, cache = policy.decode(params, tokens, t, prompt, cache)
        return write(logits, t + 1), cache

    return policy._replace(prefill=prefill, decode=decode)


def rollout(prompts, samples, old) -> Rollout:
    return Rollout(
        prompts=prompts,
        samples=samples,
        old=old,
        verdict=Verdict.binary(samples.tokens[..., 0] % 2 == 0),
    )


def in_turn(calls: dict, rounds: int) -> dict:
    """Seconds of each call, the calls taking turns."""
    times = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
