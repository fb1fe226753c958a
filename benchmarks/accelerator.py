"""Measures decoding, rollout and update on an accelerator against its limits.

python -m benchmarks.accelerator [--models half_billion,smollm2] [--rounds 3]

The models have random weights and the shapes of Qwen2.5-0.5B and SmolLM2-135M.
Activations and decoded weights are bfloat16, parameters and AdamW float32. Rows:

- decode: 64 prompt tokens and 128 new tokens, for 1 to 512 prompts. The limit is the
  measured memory bandwidth: each token reads all weights, and the keys and values so
  far.
- rollout and update: 64 prompts x 8 samples x 512 tokens; completions never end. The
  update's limit is the measured rate of matrix products, at 6 FLOPs per weight and
  token. Recomputation (remat) does not count as useful work.
- training step: both in one program, with a verifier. The share of pure inference is
  the rollout's time divided by the step's.

--models tiny runs the script without an accelerator, to try it.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import clock, results
from rljax import algorithms, program
from rljax.learn import update
from rljax.model import DecoderConfig, decoder_policy
from rljax.plan import machine
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Verdict

MODELS = {
    "half_billion": DecoderConfig(
        vocab_size=151_936,
        num_layers=24,
        d_model=896,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        d_ff=4864,
        qkv_bias=True,
        dtype=jnp.bfloat16,
        unroll=24,
    ),
    "smollm2": DecoderConfig(
        vocab_size=49_152,
        num_layers=30,
        d_model=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        d_ff=1536,
        dtype=jnp.bfloat16,
        unroll=30,
    ),
    "tiny": DecoderConfig(
        vocab_size=64,
        num_layers=2,
        d_model=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        d_ff=128,
        dtype=jnp.bfloat16,
    ),
}
BATCHES = (1, 8, 64, 512)
PROMPT_TOKENS, NEW_TOKENS = 64, 128
HEAD = ("model", "work", "tokens/s", "share of the limit", "goal", "peak memory, GiB")
GOALS = {1: "80 %", 8: "80 %", 512: "60 %"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="half_billion,smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    names = args.models.split(",")
    if jax.default_backend() == "cpu" and names != ["tiny"]:
        sys.exit("there is no accelerator; --models tiny runs without one.")
    large = names != ["tiny"]
    bandwidth = machine.bandwidth(2**30 if large else 2**24, 1.0)
    size = 8192 if large else 256
    rate = machine.matmul_flops_per_s(size, size, size, jnp.bfloat16, 1.0)
    note = (
        f"Limits measured in this run: memory {bandwidth / 1e12:.2f} TB/s, bfloat16"
        f" products of {size} x {size} {rate / 1e12:.0f} TFLOP/s.\n\n"
    )
    rows = []
    for name in names:
        work = (64, 8, 512) if large else (8, 4, 32)
        for row in itertools.chain(
            training(MODELS[name], work, bandwidth, rate, args.rounds),
            decoding(MODELS[name], bandwidth, args.rounds),
        ):
            rows.append((name, *row))
            body = note + results.table(HEAD, rows)
            if large:  # written after every row, in case the run is stopped
                results.write("accelerator", "Accelerator", body, rows)
            else:
                print(body)


def decoding(config: DecoderConfig, bandwidth: float, rounds: int):
    """Yields a row for decoding with each batch size."""
    policy, params = made(config)
    sample = jax.jit(
        sampler(policy, num_samples=1, max_tokens=NEW_TOKENS, stop_tokens=())
    )
    given = {
        batch: (params, prompts(config, batch), jax.random.key(1)) for batch in BATCHES
    }
    programs = together({b: sample.lower(*args) for b, args in given.items()})
    for batch, compiled in programs.items():
        call = functools.partial(compiled, *given[batch])
        seconds = clock.median(call, rounds)
        limit = bytes_to_read(config, batch, NEW_TOKENS) / bandwidth
        work = f"decode, batch {batch}"
        yield (
            work,
            *cells(batch * NEW_TOKENS, seconds, limit),
            GOALS.get(batch, ""),
            peak(compiled),
        )


def training(config: DecoderConfig, work, bandwidth: float, rate: float, rounds: int):
    """Yields rows for a rollout, an update on it, and both in one program."""
    P, G, T = work
    sampling, params = made(config)
    # The update scans over single layers and rematerialises them.
    scoring, _ = made(config, unroll=1, remat=True)
    sample = sampler(sampling, num_samples=G, max_tokens=T, stop_tokens=())
    act = program.actor(sampling, sample)
    learner = update.learner(
        scoring.measure, algorithms.grpo(), optax.adamw(1e-6), num_microbatches=P // 4
    )
    rows = prompts(config, P)
    held = {"state": jax.jit(learner.init)(params, jax.random.key(2))}
    weights = sum(x.size for x in jax.tree.leaves(params))
    del params

    def lowered(fn, given, **options):
        return jax.jit(fn, **options).lower(held["state"], given)

    def advance(program, *args):  # the state is donated, as in training
        held["state"], metrics = program(held["state"], *args)
        return metrics

    def judged(state, prompts):
        rollout = act(state, prompts)
        return rollout.replace(verdict=parity(rollout.prompts, rollout.samples))

    def step(state, prompts):
        return learner.learn(state, judged(state, prompts))

    shapes = jax.eval_shape(judged, held["state"], rows)
    made_of = {
        "rollout": lowered(judged, rows),
        "update": lowered(learner.learn, shapes, donate_argnums=0),
        "step": lowered(step, rows, donate_argnums=0),
    }
    sampling_only, learn, both = together(made_of).values()
    rollout = sampling_only(held["state"], rows)
    seconds = {
        name: clock.median(call, rounds)
        for name, call in {
            "rollout": lambda: sampling_only(held["state"], rows),
            "update": lambda: advance(learn, rollout),
            "step": lambda: advance(both, rows),
        }.items()
    }
    tokens, size = P * G * T, f"{P} x {G} x {T}"
    read = bytes_to_read(config, P * G, T) / bandwidth
    flops = 6.0 * weights * tokens / rate
    yield (
        f"rollout, {size}",
        *cells(tokens, seconds["rollout"], read),
        "",
        peak(sampling_only),
    )
    yield f"update, {size}", *cells(tokens, seconds["update"], flops), "", peak(learn)
    share = cells(tokens, seconds["step"], seconds["rollout"])
    yield f"training step, {size}; share of pure inference", *share, "", peak(both)


def together(lowered: dict) -> dict:
    """Compiles the programs in parallel threads; XLA releases Python's lock."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        compiled = pool.map(lambda program: program.compile(), lowered.values())
        return dict(zip(lowered, compiled, strict=True))


def made(config: DecoderConfig, **changes):
    """The policy of a config with some changes, and random float32 parameters."""
    policy = decoder_policy(dataclasses.replace(config, **changes))
    return policy, jax.jit(policy.init)(jax.random.key(0))


def bytes_to_read(config: DecoderConfig, rows: int, tokens: int) -> float:
    """Bytes that decoding must read: weights, and the keys and values so far."""
    policy = decoder_policy(config)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    weights = 2 * sum(x.size for x in jax.tree.leaves(params))
    keys = 4 * config.num_layers * config.num_kv_heads * config.head_dim
    return tokens * (weights + rows * keys * (PROMPT_TOKENS + tokens / 2))


def parity(prompts, samples) -> Verdict:
    """A verifier that needs no answers: the first token must be even."""
    del prompts
    return Verdict.binary(samples.tokens[..., 0] % 2 == 0)


def prompts(config: DecoderConfig, count: int) -> Prompts:
    """Prompts of random tokens, all of the same length."""
    draw = np.random.default_rng(0)
    shape = (count, PROMPT_TOKENS)
    return Prompts(
        tokens=jnp.asarray(draw.integers(0, config.vocab_size, shape), jnp.int32),
        length=jnp.full(count, PROMPT_TOKENS, jnp.int32),
        id=jnp.arange(count, dtype=jnp.int32),
    )


def cells(tokens: int, seconds: float, limit: float) -> tuple[str, str]:
    """Tokens per second, and the fraction of the limit that was reached."""
    return f"{tokens / seconds:,.0f}", f"{limit / seconds:.0%}"


def peak(compiled) -> str:
    """Peak GiB of a compiled program: arguments, results and temporaries."""
    found = compiled.memory_analysis()
    return f"{found.peak_memory_in_bytes / 2**30:.1f}"


if __name__ == "__main__":
    main()
