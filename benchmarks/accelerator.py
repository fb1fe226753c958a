"""An accelerator near its limits: decoding against bandwidth, the update against FLOPs.

python -m benchmarks.accelerator [--size half_billion] [--rounds 5]

A random model of Qwen2.5-0.5B's shape in bfloat16. Decoding reads all weights and the
keys so far for each token: its limit is the measured rate of memory. The update does 6
FLOP per weight and token: its limit is the measured rate of matrix products. Without an
accelerator the cells of the table stay empty, unless --size tiny is asked for.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import clock, results
from rljax import algorithms
from rljax.learn import update
from rljax.model import DecoderConfig, decoder_policy
from rljax.plan import machine
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Rollout, Verdict

SIZES = {
    "half_billion": {
        "vocab_size": 151_936,
        "num_layers": 24,
        "d_model": 896,
        "num_heads": 14,
        "num_kv_heads": 2,
        "head_dim": 64,
        "d_ff": 4864,
    },
    "tiny": {
        "vocab_size": 64,
        "num_layers": 2,
        "d_model": 64,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "d_ff": 128,
    },
}
BATCHES = (1, 8, 64, 512)
PROMPT_TOKENS, NEW_TOKENS = 64, 128
UPDATE = (8, 1024)  # completions x tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="half_billion")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found = []
    if jax.default_backend() != "cpu" or args.size == "tiny":
        found = measured(SIZES[args.size], args.rounds)
    head = ("work", "tokens/s", "share of the limit", "goal", "peak memory, GiB")
    goals = {1: "80 %", 8: "80 %", 512: "60 %"}
    names = [f"decode, batch {batch}" for batch in BATCHES] + ["update, 8k tokens"]
    goal = [goals.get(batch, "") for batch in BATCHES] + [""]
    cells = found or [("", "", "")] * len(names)
    rows = [
        (n, c[0], c[1], g, c[2]) for n, c, g in zip(names, cells, goal, strict=True)
    ]
    none = "" if found else "No accelerator was there: the cells are empty.\n\n"
    results.write("accelerator", "Accelerator", none + results.table(head, rows), found)


def measured(sizes: dict, rounds: int) -> list[tuple]:
    """(tokens/s, share of the limit, peak GiB) of each row."""
    config = DecoderConfig(
        **sizes, qkv_bias=True, dtype=jnp.bfloat16, initializer_std=0.02
    )
    policy = decoder_policy(config)
    params = jax.jit(
        lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), policy.init(key))
    )(jax.random.key(0))
    weights = sum(x.size for x in jax.tree.leaves(params))
    bandwidth = machine.bandwidth(2**30 if weights > 1e8 else 2**24, 1.0)
    rate = machine.matmul_flops_per_s(
        UPDATE[0] * UPDATE[1], config.d_model, config.d_ff, jnp.bfloat16, 1.0
    )
    keys = 4 * config.num_layers * config.num_kv_heads * config.head_dim  # bytes
    sample = jax.jit(
        sampler(policy, num_samples=1, max_tokens=NEW_TOKENS, stop_tokens=())
    )
    found = []
    for batch in BATCHES:
        args = (params, prompts(batch, config.vocab_size), jax.random.key(1))
        seconds = clock.median(functools.partial(sample, *args), rounds)
        read = 2 * weights + batch * keys * (PROMPT_TOKENS + NEW_TOKENS / 2)
        limit = NEW_TOKENS * read / bandwidth
        found.append((batch * NEW_TOKENS / seconds, limit / seconds, peak()))
    seconds = clock.median(updating(policy, params, config.vocab_size), rounds)
    tokens = UPDATE[0] * UPDATE[1]
    found.append((tokens / seconds, 6.0 * weights * tokens / rate / seconds, peak()))
    return found


def prompts(count: int, vocab_size: int) -> Prompts:
    draw = np.random.default_rng(0)
    shape = (count, PROMPT_TOKENS)
    return Prompts(
        tokens=draw.integers(0, vocab_size, shape).astype(np.int32),
        length=np.full(count, PROMPT_TOKENS, np.int32),
        id=np.arange(count, dtype=np.int32),
    )


def updating(policy, params, vocab_size: int):
    """A call of GRPO's optimiser step on completions of full length."""
    count, tokens = UPDATE
    rows = prompts(count, vocab_size)
    sample = jax.jit(sampler(policy, num_samples=1, max_tokens=tokens, stop_tokens=()))
    samples, old = sample(params, rows, jax.random.key(2))
    right = jnp.arange(count)[:, None] % 2 == 0
    rollout = Rollout(
        prompts=rows, samples=samples, old=old, verdict=Verdict.binary(right)
    )
    learner = update.learner(
        policy.measure, algorithms.reinforce_signed(), optax.sgd(1e-3)
    )
    state = jax.jit(learner.init)(params, jax.random.key(3))
    learn = jax.jit(learner.learn)
    return lambda: learn(state, rollout)


def peak() -> float:
    """GiB the device had in use at most so far; NaN where it does not say."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use", float("nan")) / 2**30


if __name__ == "__main__":
    main()
