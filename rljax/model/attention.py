"""Attention of completions over their own tokens and a prompt shared by the group.

Symbols beyond rljax.types: `H` key/value heads, `R` query heads per key/value head,
`D` head width, `U` keys of the sample itself. All arrays are head-major,
[P, H, G, ...], so that both products of attention are batched matrix products and no
cache is ever transposed. A prompt's keys exist once, and all G samples read them in one
product. Training copies short prompts; see `attend_causally`.
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
    """How attention scores follow from q k; both numbers are static.

    scalar: scores are divided by sqrt(scalar); None: the head width.
    cap: a score s becomes cap tanh(s / cap) before masking; None: no cap.
    """

    scalar: float | None = None
    cap: float | None = None


PLAIN = Scores()

NEVER = -1e30  # the score of a masked key


def attend(q, *sets: tuple[KeyValue, jax.Array], style: Scores = PLAIN):
    """Softmax attention over the union of several sets of keys, without joining them.

    Args:
      q: [P, H, G, R, T, D] queries.
      *sets: pairs of a `KeyValue` and a mask. Keys belong to the samples,
        [P, H * G, U, D], or are shared by the group, [P, H, U, D]. The mask is bool,
        broadcasts to [P, H * G, T, U] and is true where the query sees the key. Every
        query must see at least one key of the first set.
      style: how scores are made.

    Returns:
      [P, H, G, R, T, D] in q's dtype; scores and the softmax's sum are float32.
    """
    P, H, G, R, T, D = q.shape
    scaled = q * scale(q, style)

    def by_head(x, keys):  # put queries of the same keys on one axis
        return x.reshape(P, keys.key.shape[1], -1, x.shape[-1])

    scores = []
    for keys, mask in sets:
        score = _scores(by_head(scaled, keys), keys.key).reshape(P, H * G, R * T, -1)
        score = capped(score, style.cap)
        mask = jnp.concatenate([mask] * R, -2) if mask.shape[-2] > 1 else mask
        scores.append(jnp.where(mask, score, NEVER))
    # One softmax over all sets: they share the maximum, and their sums are added.
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
    """The factor for queries [..., D], a scalar in q's dtype."""
    scalar = q.shape[-1] if style.scalar is None else style.scalar
    return jnp.asarray(scalar**-0.5, q.dtype)


def capped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap tanh(x / cap), or x if there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def sequences(
    q: jax.Array, own: KeyValue, prompt: KeyValue | None, prompt_mask: jax.Array | None
) -> tuple[KeyValue, KeyValue, jax.Array]:
    """The arguments of `attend_causally` in the form that attention kernels need.

    Returns:
      The samples' own keys [P, H, G, T, D], the prompts' [P, H, S, D], and the prompts'
      lengths i32[P] in tokens. Without prompts S is 0.
    """
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
    """Causal attention of a completion over its own tokens and a shared prompt.

    Queries are split into at most 4 blocks, and each block reads the keys up to its own
    end. Four blocks skip three quarters of the masked half of the score matrix.

    Args:
      q: [P, H, G, R, T, D] queries.
      own: keys and values of the samples themselves, [P, H * G, T, D].
      prompt: keys and values shared by the group, [P, H, S, D], or None.
      prompt_mask: bool[P, S], true for the prompt's tokens; padding is on the right.
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
            # XLA:CPU: a second set of keys costs more than copying a short prompt for
            # each sample.
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
    """Which tokens of the prompts the queries see: bool[P, 1, 1 or T, S].

    Args:
      prompt_mask: bool[P, S], true for the prompt's tokens.
      place: i32[P, T] positions of the queries, counted from the start of the prompt.
      window: tokens that a query sees, itself included; None: all.
    """
    if window is None:
        return prompt_mask[:, None, None]
    age = place[:, :, None] - jnp.arange(prompt_mask.shape[-1])
    return (prompt_mask[:, None] & (age < window))[:, None]


def _put_in_front(prompt: KeyValue, seen, own: KeyValue, mask):
    """Prepends a copy of the prompt to each sample's keys, values and mask."""
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
