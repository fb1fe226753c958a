"""Attention over a prompt and a completion by the textbook, and what it is tried on."""

import jax
import jax.numpy as jnp
import numpy as np

from rljax.model import attention
from rljax.model.attention import KeyValue

P, H, G, R, D = 2, 2, 3, 2, 8


def inputs(num_tokens, prompt_tokens, dtype=jnp.float32):
    """Queries, own and prompt's keys and values, and which of the latter count."""
    draw = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), dtype)

    own = KeyValue(*(normal(P, H * G, num_tokens, D) for _ in range(2)))
    prompt = KeyValue(*(normal(P, H, prompt_tokens, D) for _ in range(2)))
    seen = jnp.arange(prompt_tokens) < jnp.array([[1], [prompt_tokens]])
    return normal(P, H, G, R, num_tokens, D), own, prompt, seen


def textbook(q, own, prompt, seen, *, style=attention.PLAIN, window=None):
    """One softmax over each row's whole sequence, all scores at once."""
    length, cap = jnp.sum(seen, -1), style.cap
    scale = (style.scalar or D) ** -0.5
    S, T = prompt.key.shape[2], q.shape[-2]
    k, v = (
        jnp.concatenate([jnp.repeat(shared, G, 1), mine], -2).reshape(P, H, G, S + T, D)
        for shared, mine in zip(prompt, own, strict=True)
    )
    scores = jnp.einsum("phgrtd,phgud->phgrtu", q, k) * scale
    if cap is not None:
        scores = cap * jnp.tanh(scores / cap)
    # Positions of the sequence without the padding between prompt and completion.
    place = jnp.concatenate(
        [jnp.broadcast_to(jnp.arange(S), (P, S)), length[:, None] + jnp.arange(T)], 1
    )
    there = jnp.arange(S + T) >= S
    there = there | (jnp.arange(S + T) < length[:, None])
    age = place[:, S:, None] - place[:, None]
    mask = there[:, None] & (age >= 0) & (age < (window or 10_000))
    weight = jax.nn.softmax(jnp.where(mask[:, None, None, None], scores, -jnp.inf))
    return jnp.einsum("phgrtu,phgud->phgrtd", weight, v)


def out_and_gradients(attend, num_tokens, prompt_tokens, **options):
    *arrays, seen = inputs(num_tokens, prompt_tokens)

    def total(q, own, prompt):
        out = attend(q, own, prompt, seen, **options)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays)
