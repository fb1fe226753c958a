"""Completions of very different lengths: what slots and pieces by length are worth.

python -m benchmarks.long_tail [--prompts 64] [--samples 16] [--tokens 256]

A real decoder computes; a script ends each sample at a lognormal length of coefficient
of variation 1, mean a sixth of T, cut at T. Sampling with all samples at once is timed
beside sampling in slots, and the update of whole rows beside pieces by length, in turn.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

from benchmarks import results, rljax_program, workload
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
    script = hazard(args.tokens + 1, mean=args.tokens / 6)
    policy = scripted(decoder_policy(sizes.decoder), script)
    params = jax.jit(policy.init)(jax.random.key(0))
    prompts = rljax_program.prompts(args.prompts)
    rollout, sampling, drawn = by_slots(policy, params, prompts, args)
    training, trained = by_lengths(policy, params, rollout, args)
    lengths = np.asarray(rollout.samples.length, float)
    body = (
        f"{args.prompts} prompts x {args.samples} samples, mean length"
        f" {lengths.mean():.0f} of {args.tokens} tokens, coefficient of variation"
        f" {lengths.std() / lengths.mean():.2f}; W1's decoder.\n\n"
        f"{sampling}\n\n{training}"
    )
    data = {"slots": drawn, "lengths": trained}
    results.write("long_tail", "Long tails", body, data)


def by_slots(policy: Policy, params, prompts, args):
    """A rollout, a table, and seconds by number of slots."""
    total, key = args.prompts * args.samples, jax.random.key(1)
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
        for n in (None, *(total // k for k in (4, 8, 16, 32)))
    }
    drawn = {n: draw(params, prompts, key) for n, draw in draws.items()}
    calls = {n: lambda d=d: d(params, prompts, key) for n, d in draws.items()}
    times = in_turn(calls, args.rounds)
    first, old = drawn[None]
    rows = []
    for n, (samples, _) in drawn.items():
        used = loop.rollout_metrics(Rollout(prompts=prompts, samples=samples, old=old))
        other = int(jnp.sum(samples.tokens != first.tokens))
        useful = f"{float(used['samples/useful_share']):.0%}"
        rows.append((n or "all at once", *compared(times, n, None), useful, other))
    head = ("slots", "seconds", "times as fast", "useful slots", "tokens that differ")
    correct = first.tokens[..., 0] % 2 == 0
    rollout = Rollout(
        prompts=prompts, samples=first, old=old, verdict=Verdict.binary(correct)
    )
    seconds = {str(n): x for n, x in times.items()}
    return rollout, results.table(head, rows), seconds


def by_lengths(policy: Policy, params, rollout: Rollout, args):
    """A table, and seconds of an update by number of lengths."""
    learns, after = {}, {}
    for n in (1, 2, 4, 8):
        learner = update.learner(
            policy.measure,
            algorithms.dr_grpo(args.tokens),
            optax.sgd(1.0),
            num_microbatches=4,
            num_lengths=n,
        )
        state = jax.jit(learner.init)(params, jax.random.key(1))
        learns[n] = functools.partial(jax.jit(learner.learn), state, rollout)
        after[n] = learns[n]()[0].params
    times = in_turn(learns, args.rounds)
    rows = []
    for n in learns:
        gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), after[n], after[1])
        gap = max(map(float, jax.tree.leaves(gaps)))
        rows.append((n, *compared(times, n, 1), f"{gap:.0e}"))
    head = ("lengths", "seconds", "times as fast", "largest gap of a parameter")
    return results.table(head, rows), {str(n): x for n, x in times.items()}


def compared(times: dict, name, base) -> tuple[float, float]:
    """Median seconds, and the median ratio to the base in the same round."""
    pairs = zip(times[base], times[name], strict=True)
    return statistics.median(times[name]), statistics.median(a / b for a, b in pairs)


def hazard(num_tokens: int, mean: float) -> np.ndarray:
    """f32[num_tokens]: the chance that token t ends a completion that has not ended.

    Lengths are then lognormal with this mean, tokens.
    """
    sigma = np.sqrt(np.log(1 + CV**2))
    law = scipy.stats.lognorm(sigma, scale=mean * np.exp(-(sigma**2) / 2))
    t = np.arange(num_tokens)
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
