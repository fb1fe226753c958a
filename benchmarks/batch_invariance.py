"""Measures whether samples change with the batch in which they are drawn.

python -m benchmarks.batch_invariance        about 10 minutes on two quiet cores

A random decoder of 4 layers draws 128 samples of up to 64 tokens, once all together and
once in each of the other ways below. The random numbers are equal by construction. The
last bits of products may differ, because XLA chooses its algorithm by shape; then a
near tie between two tokens falls the other way. Reported are the samples that differ
anywhere, the rate of such ties per token, and the gap of log-probabilities before the
first difference.

In `fixed tiles`, prompts are read and rows decoded in tiles of 8 prompts (`tiled`), so
that no shape depends on the batch. A second table has the cost of that.
"""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("PJRT_NPROC", "64")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import clock, results
from rljax import mesh
from rljax.model import DecoderConfig, decoder_policy
from rljax.rollout.sample import sampler
from rljax.types import Prompts

P, G, T, V, TILE = 32, 4, 64, 2048, 8
HEAD = ("dtype", "drawn", "samples that differ", "ties per token", "gap of logp, nats")


def main() -> None:
    rows, seconds = [], {}
    for dtype in (jnp.float32, jnp.bfloat16):
        print(f"{dtype.__name__} ...", flush=True)
        found, seconds[dtype.__name__] = compared(dtype)
        rows += found
    head = ("dtype", "all at once, s", "in fixed tiles, s", "price")
    prices = [
        (name, f"{whole:.2f}", f"{tiles:.2f}", f"{tiles / whole:.2f}")
        for name, (whole, tiles) in seconds.items()
    ]
    body = f"{results.table(HEAD, rows)}\n\n{results.table(head, prices)}"
    results.write("batch_invariance", "Batch invariance", body, rows)


def compared(dtype) -> tuple[list[tuple], tuple[float, float]]:
    """The rows of a dtype, and the seconds for all samples at once and in tiles."""
    config = DecoderConfig(
        vocab_size=V,
        num_layers=4,
        d_model=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        d_ff=352,
        initializer_std=0.1,
        dtype=dtype,
    )
    policy = decoder_policy(config)
    params = policy.init(jax.random.key(0))

    def drawing(num_slots=None):
        draw = sampler(
            policy,
            num_samples=G,
            max_tokens=T,
            stop_tokens=(V - 1,),
            num_slots=num_slots,
        )
        return jax.jit(lambda params, prompts: draw(params, prompts, jax.random.key(7)))

    whole, slots = drawing(), drawing(P * G // 2)
    tile, all_tiles = whole, tiled(whole)
    rows = problems()
    base = host(whole(params, rows))
    padding = ((0, 0), (0, 16))
    wider = rows.replace(tokens=jnp.pad(rows.tokens, padding, constant_values=11))
    ways = {
        "again": whole(params, rows),
        "in reverse order": flipped(whole(params, flipped(rows))),
        "prompts padded by 16": whole(params, wider),
        "8 prompts at a time": in_parts(tile, params, rows, 8),
        "1 prompt at a time": in_parts(tile, params, rows, 1),
        "in 64 slots": slots(params, rows),
        "on 8 devices": on_mesh(whole, params, rows),
    }
    out = [
        (dtype.__name__, way, *differences(base, host(x))) for way, x in ways.items()
    ]
    # In tiles of fixed shape: all prompts against half of them at a time.
    fixed = host(all_tiles(params, rows))
    for way, got in {
        "fixed tiles: in reverse order": flipped(all_tiles(params, flipped(rows))),
        "fixed tiles: 16 prompts at a time": in_parts(all_tiles, params, rows, 16),
    }.items():
        out.append((dtype.__name__, way, *differences(fixed, host(got))))
    times = clock.in_turn(
        {
            "whole": lambda: whole(params, rows),
            "tiles": lambda: all_tiles(params, rows),
        },
        3,
    )
    return out, (float(np.median(times["whole"])), float(np.median(times["tiles"])))


def tiled(draw):
    """Draws samples tile by tile, so that no shape depends on the batch."""

    def by_tiles(params, prompts):
        tiles = jax.tree.map(lambda x: x.reshape(-1, TILE, *x.shape[1:]), prompts)
        out = jax.lax.map(lambda tile: draw(params, tile), tiles)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

    return jax.jit(by_tiles)


def problems() -> Prompts:
    """Prompts of 4 to 16 random tokens."""
    draw = np.random.default_rng(0)
    return Prompts(
        tokens=jnp.asarray(draw.integers(0, V, (P, 16)), jnp.int32),
        length=jnp.asarray(draw.integers(4, 17, P), jnp.int32),
        id=jnp.arange(P, dtype=jnp.int32),
    )


def flipped(tree):
    """The arrays with their prompts in reverse order."""
    return jax.tree.map(lambda x: x[::-1], tree)


def in_parts(draw, params, prompts, size: int):
    """Draws for `size` prompts at a time, and concatenates."""
    parts = [
        host(draw(params, jax.tree.map(lambda x, i=i: x[i : i + size], prompts)))
        for i in range(0, P, size)
    ]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def on_mesh(draw, params, prompts):
    """Draws with the prompts sharded over all devices."""
    devices = mesh.make()
    with jax.set_mesh(devices):
        return host(
            draw(mesh.replicate(params, devices), mesh.shard_prompts(prompts, devices))
        )


def host(drawn):
    return jax.device_get(drawn)


def differences(base, got) -> tuple[str, str, str]:
    """Cells: samples that differ, ties per token, and the gap of log-probabilities."""
    (want, logp), (samples, other) = base, got
    mask = np.asarray(want.mask).reshape(-1, T)
    tokens, theirs = (np.asarray(s.tokens).reshape(-1, T) for s in (want, samples))
    differ = (tokens != theirs) & (mask | np.asarray(samples.mask).reshape(-1, T))
    length = mask.sum(-1)
    first = np.where(differ.any(-1), differ.argmax(-1), length)
    equal = (np.arange(T) < first[:, None]) & mask
    gap = np.abs(np.asarray(logp.logp) - np.asarray(other.logp)).reshape(-1, T)[equal]
    count = int(differ.any(-1).sum())
    return (
        f"{count} of {len(differ)}",
        f"{count / max(equal.sum() + count, 1):.1e}",
        f"at most {gap.max():.1e}, mean {gap.mean():.1e}" if gap.size else "",
    )


if __name__ == "__main__":
    main()
