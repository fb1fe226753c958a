"""Attention of completions over their own tokens and a prompt shared by the group.

Symbols beyond rljax.types: `H` key/value heads, `R` query heads per key/value head,
`D` head width, `U` own keys. Everything is head-major, [P, H, G, ...]. So both score
products are plain batched matrix products, and no cache is ever transposed. A prompt's
keys exist once, and all its G samples read them in a single product; only in training
are short prompts copied, see `attend_causally`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import numerics


class KeyValue(NamedTuple):
    """Keys and values of one layer.

    Prompts: [P, H, S, D]. Samples: [P, H * G, U, D].

    XLA:CPU: H and G share one axis, because it otherwise copies the cache on every
    token when G = 1.
    """

    key: jax.Array
    value: jax.Array


class Scores(NamedTuple):
    """How scores are made of q k; both numbers are static.

    scalar: divides them by its root; None: the width of a head.
    cap: a score s becomes cap tanh(s / cap), before it is masked; None: not.
    """

    scalar: float | None = None
    cap: float | None = None


PLAIN = Scores()

NEVER = -1e30  # a score that gives a key no weight


def attend(q, *sets: tuple[KeyValue, jax.Array], style: Scores = PLAIN):
    """Softmax attention over the union of several sets of keys, without joining them.

    Args:
      q: [P, H, G, R, T, D] queries.
      *sets: keys and values, of the samples [P, H * G, U, D] or shared by the group
        [P, H, U, D], each with a mask of the keys that a query sees: bool, broadcasts
        to [P, H * G, T, U]. A query sees at least one key of the first set.
      style: how scores are made.

    Returns:
      [P, H, G, R, T, D] in q's dtype; scores and their sum are float32.
    """
    P, H, G, R, T, D = q.shape
    scaled = q * scale(q, style)

    def by_head(x, keys):  # queries of the same keys side by side
        return x.reshape(P, keys.key.shape[1], -1, x.shape[-1])

    scores = []
    for keys, mask in sets:
        score = _scores(by_head(scaled, keys), keys.key).reshape(P, H * G, R * T, -1)
        score = capped(score, style.cap)
        mask = jnp.concatenate([mask] * R, -2) if mask.shape[-2] > 1 else mask
        scores.append(jnp.where(mask, score, NEVER))
    # One softmax over all sets: the same maximum, the sums added.
    top = functools.reduce(
        jnp.maximum, [jnp.max(score, -1, keepdims=True) for score in scores]
    )
    out, total = jnp.zeros((), q.dtype), jnp.zeros(())
    for score, (keys, _) in zip(scores, sets, strict=True):
        exp = jnp.exp(score - jax.lax.stop_gradient(top))
        total += jnp.sum(exp, -1, keepdims=True)
        part = by_head(exp.astype(q.dtype), keys) @ keys.value
        out += part.reshape(P, H * G, R * T, D)
    return (out / total.astype(q.dtype)).reshape(q.shape)


def scale(q: jax.Array, style: Scores) -> jax.Array:
    """What queries [..., D] are multiplied by, in their dtype."""
    scalar = q.shape[-1] if style.scalar is None else style.scalar
    return jnp.asarray(scalar**-0.5, q.dtype)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap tanh(x / cap); x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def sequences(
    q: jax.Array, own: KeyValue, prompt: KeyValue | None, prompt_mask: jax.Array | None
) -> tuple[KeyValue, KeyValue, jax.Array]:
    """What makes a sequence of each sample: own keys [P, H, G, T, D], those of prompts
    [P, H, S, D], and i32[P] tokens of the prompts; S is 0 without any."""
    P, H, G, _, T, D = q.shape
    own = KeyValue(*(x.reshape(P, H, G, T, D) for x in own))
    if prompt is None or prompt_mask is None:
        none = KeyValue(*(jnp.zeros((P, H, 0, D), x.dtype) for x in own))
        return own, none, jnp.zeros(P, jnp.int32)
    return own, prompt, jnp.sum(prompt_mask, -1, dtype=jnp.int32)


def attend_causally(
    q,
    own: KeyValue,
    prompt: KeyValue | None = None,
    prompt_mask=None,
    *,
    window: jax.typing.ArrayLike | None = None,
    style: Scores = PLAIN,
):
    """Attention of tokens over those before them, themselves and a shared prompt.

    Queries go in at most 4 blocks, each of which reads the keys up to its own end. Four
    blocks skip three quarters of the masked half of the score matrix.

    Args:
      q: [P, H, G, R, T, D] queries.
      own: T keys and values of the sample itself.
      prompt: keys and values shared by the group, or None.
      prompt_mask: bool[P, S], true of the prompt's tokens, which come first.
      window: tokens that a query sees, itself included; may be traced. None: all.
      style: how scores are made.

    Returns:
      [P, H, G, R, T, D] in q's dtype.
    """
    T = q.shape[-2]
    mask, seen = jnp.tril(jnp.ones((T, T), bool)), None
    if window is not None:
        mask &= jnp.arange(T)[:, None] - jnp.arange(T) < window
    if prompt is not None and prompt_mask is not None:
        place = jnp.sum(prompt_mask, -1)[:, None] + jnp.arange(T)
        seen = seen_of_prompt(prompt_mask, place, window)
        if 2 * prompt.key.shape[2] <= T:
            # XLA:CPU: copying so short a prompt for each sample costs less than a
            # second set of keys.
            own, mask = _put_in_front(prompt, seen, own, mask)
            seen = None
    before = own.key.shape[-2] - T
    out, start = [], 0
    for end in numerics.even_ends(T, min(-(-T // 64), 4)):
        keys = jax.tree.map(lambda x, end=before + end: x[..., :end, :], own)
        sets = [(keys, mask[..., start:end, : before + end])]
        if prompt is not None and seen is not None:
            part = seen if seen.shape[-2] == 1 else seen[..., start:end, :]
            sets.append((prompt, part))
        out.append(attend(q[..., start:end, :], *sets, style=style))
        start = end
    return jnp.concatenate(out, -2)


def seen_of_prompt(prompt_mask, place, window=None):
    """Which tokens of the prompts are seen: bool[P, 1, 1 or T, S].

    Args:
      prompt_mask: bool[P, S].
      place: i32[P, T] positions of the queries, counted from the prompt's begin.
      window: tokens that a query sees, itself included; None: all.
    """
    if window is None:
        return prompt_mask[:, None, None]
    age = place[:, :, None] - jnp.arange(prompt_mask.shape[-1])
    return (prompt_mask[:, None] & (age < window))[:, None]


def _put_in_front(prompt: KeyValue, seen, own: KeyValue, mask):
    """Keys, values and mask of samples that begin with a copy of the prompt."""
    T, S = own.key.shape[2], seen.shape[-1]

    def join(shared, own):
        copies = jnp.repeat(shared, own.shape[1] // shared.shape[1], 1)
        return jnp.concatenate([copies, own], -2)

    seen = jnp.broadcast_to(seen, (len(seen), 1, T, S))
    mask = jnp.broadcast_to(mask, (len(seen), 1, T, T))
    return jax.tree.map(join, prompt, own), jnp.concatenate([seen, mask], -1)


def _scores(q, k):
    width, batch = q.ndim - 1, tuple(range(q.ndim - 2))
    return jax.lax.dot_general(
        q,
        k,
        (((width,), (width,)), (batch, batch)),
        preferred_element_type=jnp.float32,
    )


def join_heads(x: jax.Array) -> jax.Array:
    """[P, H, G, T, D] -> [P, H * G, T, D]."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])
