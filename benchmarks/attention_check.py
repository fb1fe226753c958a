"""Checks and times the attention kernel of this accelerator.

python -m benchmarks.attention_check

The kernel is cuDNN's on a GPU and splash on a TPU; see `rljax.model.causal`. First,
outputs and gradients of small cases in bfloat16 are compared with the textbook formula
in float32: an error may be twice that of `attend_causally` in bfloat16. Then a layer's
attention is timed, forward and backward, with 1 prompt of 1,024 tokens and 4 samples of
4,096 tokens, in blocks and by the kernel. Exits with 1 if a case is wrong.

Neither kernel has been run where this was written.
"""

import functools
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import clock
from rljax.model import attention
from rljax.model.attention import KeyValue
from rljax.model.attention_blocks import attend_in_blocks
from rljax.model.attention_cudnn import attend_by_cudnn
from rljax.model.attention_splash import attend_by_splash
from rljax.plan import cost

KERNELS = {"gpu": attend_by_cudnn, "tpu": attend_by_splash}
# (completion tokens, tokens of the longest prompt, options)
CASES = (
    (1, 3, {}),
    (200, 70, {}),
    (200, 70, {"window": 30}),
    (700, 600, {}),
)
SIZES = (2, 2, 3, 2, 64)  # P, H, G, R, D
ROUNDS = 5


def main() -> None:
    platform = jax.default_backend()
    if platform not in KERNELS:
        sys.exit(f"this check needs a GPU or a TPU, got {platform}.")
    kernel = KERNELS[platform]
    print(f"{kernel.__name__} on {jax.devices()[0].device_kind}")
    wrong = [line for line in map(functools.partial(check, kernel), CASES) if line]
    print("\n".join(times({"blocks": attend_in_blocks, "the kernel": kernel})))
    if wrong:
        sys.exit("\n".join(wrong))


def check(kernel: Callable, case) -> str:
    """Prints the errors of a case; returns a message if they are too large, else ""."""
    num_tokens, prompt_tokens, options = case
    exact = inputs(SIZES, num_tokens, prompt_tokens, jnp.float32)
    narrow = inputs(SIZES, num_tokens, prompt_tokens, jnp.bfloat16)
    with jax.default_matmul_precision("highest"):
        want = both(attention.attend_causally, **options)(*exact)
    whole = both(attention.attend_causally, **options)(*narrow)
    allowed, found = errors(whole, want), errors(both(kernel, **options)(*narrow), want)
    text = f"{num_tokens} tokens after {prompt_tokens}, {options or 'no window'}"
    good = all(f <= 2 * a + 1e-6 for f, a in zip(found, allowed, strict=True))
    print(f"{text}: errors {show(found)}, those of attend_causally {show(allowed)}")
    return "" if good else f"{text}: wrong, errors of gradients and out {show(found)}"


def times(kinds: dict[str, Callable]) -> list[str]:
    """Median time and temporary memory, forward and backward, one line per kind."""
    arrays = inputs((1, 8, 4, 4, 128), 4096, 1024, jnp.bfloat16)
    lines = []
    for name, attend in kinds.items():
        compiled = both(attend).lower(*arrays).compile()
        seconds = clock.median(functools.partial(compiled, *arrays), ROUNDS)
        taken = cost.compiled_memory(compiled)["temporaries"] / 2**20
        lines.append(f"{name}: {seconds * 1e3:.1f} ms, {taken:,.0f} MiB")
    return lines


def both(attend: Callable, **options):
    """A compiled function: inputs -> (gradients of q, own and prompt keys, output)."""

    def total(q, own, prompt, seen):
        out = attend(q, own, prompt, seen, **options).astype(jnp.float32)
        weight = jnp.cos(jnp.arange(out.size)).reshape(out.shape)
        return jnp.sum(out * weight), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))


def inputs(sizes, num_tokens: int, prompt_tokens: int, dtype):
    """Random queries, own and prompt keys and values, and the prompts' mask."""
    P, H, G, R, D = sizes
    draw = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.bfloat16).astype(dtype)

    own = KeyValue(*(normal(P, H * G, num_tokens, D) for _ in range(2)))
    prompt = KeyValue(*(normal(P, H, prompt_tokens, D) for _ in range(2)))
    length = prompt_tokens - jnp.arange(P)[:, None] * (prompt_tokens // 2)
    seen = jnp.arange(prompt_tokens) < length
    return normal(P, H, G, R, num_tokens, D), own, prompt, seen


def errors(got, want) -> list[float]:
    """The largest absolute error of each array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return [float(jnp.max(jnp.abs(a.astype(jnp.float32) - b))) for a, b in pairs]


def show(numbers: list[float]) -> str:
    return ", ".join(f"{x:.1e}" for x in numbers)


if __name__ == "__main__":
    main()
