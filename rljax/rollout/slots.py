"""Slots: rows that are decoded side by side; when a sample ends, a waiting one follows.

One `while_loop` on the device, no host. Every device is a lane with a queue of its own,
so that refilling moves nothing between devices.

Symbols beyond rljax.types: `D` lanes, `N` items queued per lane, `B` slots per lane. An
item is `W` samples of one prompt that begin together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import mesh, numerics
from rljax.policy.base import Policy

REFILL = 16
"""Slots wait until one in so many is idle: a refill copies the prompts' keys."""


class Items(NamedTuple):
    """Samples with their first token; arrays [D, N, ...] queued, [D, B, ...] in slots.

    number: i32[D, N] place in the queue.
    t: i32[D, N] number of the last token, from 0.
    token: i32[D, N, W] the last token.
    done: bool[D, N, W] ended; an item is idle when all its rows have.
    key: u32[D, N, W, ...] data of each sample's key.
    """

    number: jax.Array
    t: jax.Array
    token: jax.Array
    done: jax.Array
    key: jax.Array

    @property
    def idle(self) -> jax.Array:
        return jnp.all(self.done, -1)


def decode(
    policy: Policy,
    weights: Any,
    queue: Items,
    prompt: Any,
    log: Any,
    choose: Callable,
    *,
    num_slots: int,
    max_tokens: int,
    num_segments: int = 1,
) -> tuple[Any, jax.Array]:
    """Decodes all items to their ends.

    Args:
      policy: what decodes.
      weights: `policy.weights` of its parameters.
      queue: items [D, N, ...] with t = 0.
      prompt: of `policy.prefill`, with leaves [D, M, ...]; N is a multiple of M, and
        items of one prompt follow each other.
      log: buffers [D, N, T, W, ...], their first token written.
      choose: (logits f32[D * B, W, V], items [D * B, ...]) -> (token, done, row of the
        log), each [D * B, W]; the items' t is the number of the token to choose.
      num_slots: B, at most N.
      max_tokens: T.
      num_segments: if all begin together, the cache grows in so many steps, and so does
        what a token reads of it; each step is a program of its own.

    Returns:
      The filled log, and how often every slot was decoded, i32[].
    """
    D, N, W = queue.token.shape
    B, share = num_slots, N // jax.tree.leaves(prompt)[0].shape[1]
    batch = min(B, -(-B // REFILL))

    def flat(tree):
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def lanes(tree):
        return jax.tree.map(lambda x: x.reshape(D, B, *x.shape[1:]), tree)

    def advance(carry):
        slots, begun, prompt, cache, log, count = carry
        logits, cache = policy.decode(
            weights, flat(slots.token), flat(slots.t), flat(prompt), cache
        )
        idle, t = slots.idle, slots.t + 1
        token, done, row = lanes(choose(logits, flat(slots._replace(t=t))))
        row = jax.tree.map(lambda x: jnp.where(slots.done, jnp.zeros_like(x), x), row)
        # Past the end of the buffers nothing is written.
        place = jnp.where(idle, max_tokens, t)
        put = jax.vmap(lambda log, n, t, x: log.at[n, t].set(x, mode="drop"))
        log = jax.tree.map(lambda log, x: put(log, slots.number, place, x), log, row)
        slots = slots._replace(
            t=jnp.where(idle, slots.t, t), token=token, done=slots.done | done
        )
        return slots, begun, prompt, cache, log, count + 1

    def pays(carry):
        """Whether to go on decoding, and not to refill first."""
        slots, begun = carry[0], carry[1]
        enough = jnp.minimum(N - begun, batch)
        full = (enough == 0) | (jnp.sum(slots.idle, -1) < enough)
        return jnp.all(full) & ~jnp.all(slots.idle)

    def refill(queue, stored, slots, begun, prompt):  # of one lane
        number = begun + jnp.arange(batch)
        place = jnp.nonzero(slots.idle, size=batch, fill_value=B)[0]
        place = jnp.where(number < N, place, B)

        def put(old, new, number):
            return old.at[place].set(new[jnp.minimum(number, N - 1)], mode="drop")

        slots = jax.tree.map(lambda old, new: put(old, new, number), slots, queue)
        prompt = jax.tree.map(
            lambda old, new: put(old, new, number // share), prompt, stored
        )
        return slots, begun + jnp.sum(place < B), prompt

    def turn(carry):
        slots, begun, held, *rest = carry
        slots, begun, held = jax.vmap(refill)(queue, prompt, slots, begun, held)
        return jax.lax.while_loop(pays, advance, (slots, begun, held, *rest))

    slots = jax.tree.map(lambda x: x[:, :B], queue)
    held = prompt
    if share > 1 or B < N:
        held = jax.tree.map(lambda x: x[:, jnp.arange(B) // share], prompt)
    begun = jnp.full(D, B, jnp.int32)

    def start(size):
        return mesh.constrain(policy.init_cache(flat(held), W, size))

    num_segments = num_segments if B == N else 1
    sizes = numerics.equal_steps(max_tokens, num_segments)
    carry = (slots, begun, held, start(sizes[0]), log, jnp.int32(0))
    if B == N:
        for i, size in enumerate(sizes):
            if i:
                carry = (*carry[:3], _grown(carry[3], start(size)), *carry[4:])
            carry = jax.lax.while_loop(
                lambda c, size=size: pays(c) & (c[-1] < size - 1), advance, carry
            )
    else:
        carry = jax.lax.while_loop(
            lambda c: jnp.any(~c[0].idle) | jnp.any(c[1] < N), turn, carry
        )
    *_, log, count = carry
    return log, count


def _grown(cache, larger):
    """The cache in the beginning of a larger one's arrays."""
    return jax.tree.map(
        lambda x, y: x if x.shape == y.shape else _put_first(x, y), cache, larger
    )


def _put_first(x, y):
    return jax.lax.dynamic_update_slice(y, x, (0,) * y.ndim)
