"""Slots: the decode loop. A waiting sample takes the slot of one that has ended.

The loop is a `while_loop` on the device, without the host. Every device has its own
queue and slots, so that a refill moves nothing between devices.

A slot holds an *item*: one sample, or several samples of one prompt that begin
together. The samples of an item are its rows. Arrays of queued items are [devices,
items, ...], those of items in slots [devices, slots, ...]; where rows differ, the axis
`rows` comes next.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import mesh
from rljax.policy.base import Policy

REFILL = 16
"""Slots are refilled only when at least 1/16 of them are idle, or enough for all items
that still wait: each refill copies the prompts' key/value caches."""


class Items(NamedTuple):
    """Samples that have their first token; arrays [devices, items or slots, ...].

    number: i32[devices, items] index in the queue.
    t: i32[devices, items] position of the last token, from 0.
    token: i32[devices, items, rows] the last token.
    done: bool[devices, items, rows] the row has ended.
    key: u32[devices, items, rows, ...] key data of each sample.
    state: tree [devices, items, rows, ...] for `choose_fn`, which the loop only
      carries; () if there is none.
    """

    number: jax.Array
    t: jax.Array
    token: jax.Array
    done: jax.Array
    key: jax.Array
    state: Any = ()

    @property
    def idle(self) -> jax.Array:
        """bool[devices, items]: all rows of the item have ended."""
        return jnp.all(self.done, -1)


class Choice(NamedTuple):
    """The result of `choose_fn`; arrays [items, rows, ...].

    token: i32, the next token.
    done: bool, whether the row ends with this token.
    state: the new `Items.state`; ignored for rows that had ended before.
    written: tree, what is recorded of the token.
    """

    token: jax.Array
    done: jax.Array
    state: Any
    written: Any


class Written(NamedTuple):
    """What is recorded of a token.

    choice: by `choose_fn`, see `Choice.written`.
    recorded: by the policy in the pass that predicted the token, see `Policy.recorded`.
    """

    choice: Any
    recorded: dict[str, jax.Array]


class Work(NamedTuple):
    """The constants of the decode loop.

    policy: the policy that decodes.
    decode_params: the policy's `decode_params`.
    queue: all items; those of a prompt follow each other.
    prompt: the prompts' caches by `Policy.prefill`, leaves [devices, prompts, ...].
    choose_fn: (logits f32[items, rows, V], Items without the axis of devices) ->
      Choice; `Items.t` is the position of the token to be chosen.
    num_slots: slots of each device; at most as many as it has items.
    max_tokens: T, most tokens of a completion.
    """

    policy: Policy
    decode_params: Any
    queue: Items
    prompt: Any
    choose_fn: Callable[[jax.Array, Items], Choice]
    num_slots: int
    max_tokens: int

    @property
    def num_items(self) -> int:
        """Items of each device."""
        return self.queue.token.shape[1]

    @property
    def refill_size(self) -> int:
        """The most items that one refill takes."""
        return min(self.num_slots, -(-self.num_slots // REFILL))

    @property
    def items_per_prompt(self) -> int:
        """G / rows: items that a prompt's samples make."""
        return self.num_items // jax.tree.leaves(self.prompt)[0].shape[1]


class Carry(NamedTuple):
    """The carry of the decode loop.

    items: those in the slots, [devices, slots, ...].
    num_started: i32[devices] number of items that have, or had, a slot.
    prompt: the cache of each slot's prompt, [devices, slots, ...].
    cache: the policy's cache of completions.
    out: a `Written` of arrays [devices, items, T, rows, ...].
    states: tree [devices, items, rows, ...], last states of items that left a slot.
    num_steps: i32[] decode steps so far, each of all slots.
    """

    items: Items
    num_started: jax.Array
    prompt: Any
    cache: Any
    out: Written
    states: Any
    num_steps: jax.Array


class Decoded(NamedTuple):
    """The result of the decode loop.

    out: a `Written` of arrays [devices, items, T, rows, ...].
    states: tree [devices, items, rows, ...], each item's last state.
    num_steps: i32[] decode steps, each of all slots.
    """

    out: Written
    states: Any
    num_steps: jax.Array


def decode(work: Work, out: Written) -> Decoded:
    """Decodes all items until they end.

    Args:
      work: the items and the policy.
      out: arrays [devices, items, T, rows, ...] to write to; they already hold the
        records of the first tokens.
    """
    if work.num_slots == work.num_items:
        return _decode_at_once(work, out)
    return _decode_in_turns(work, out)


def _decode_at_once(work: Work, out: Written) -> Decoded:
    """Decodes when every item has a slot, so that nothing is refilled."""

    def goes_on(carry):
        return ~jnp.all(carry.items.idle) & (carry.num_steps < work.max_tokens - 1)

    carry = _first_carry(work, out)
    carry = jax.lax.while_loop(goes_on, lambda c: _advance(work, c), carry)
    return Decoded(carry.out, carry.items.state, carry.num_steps)


def _decode_in_turns(work: Work, out: Written) -> Decoded:
    """Decodes in rounds of refilling and decoding, as items wait for slots."""

    def goes_on(carry):
        return jnp.any(~carry.items.idle) | jnp.any(carry.num_started < work.num_items)

    carry = _first_carry(work, out)
    carry = jax.lax.while_loop(goes_on, lambda c: _refill_round(work, c), carry)
    states = jax.vmap(_put_states)(carry.states, carry.items.number, carry.items.state)
    return Decoded(carry.out, states, carry.num_steps)


def _first_carry(work: Work, out: Written) -> Carry:
    num_devices, num_slots = len(work.queue.token), work.num_slots
    items = jax.tree.map(lambda x: x[:, :num_slots], work.queue)
    prompt = work.prompt
    one_each = num_slots == work.num_items and work.items_per_prompt == 1
    if not one_each:  # else slot i has prompt i
        of_items = jnp.arange(num_slots) // work.items_per_prompt
        prompt = jax.tree.map(lambda x: x[:, of_items], prompt)
    return Carry(
        items=items,
        num_started=jnp.full(num_devices, num_slots, jnp.int32),
        prompt=prompt,
        cache=_new_cache(work, prompt),
        out=out,
        states=work.queue.state,
        num_steps=jnp.int32(0),
    )


def _new_cache(work: Work, prompt: Any) -> Any:
    num_rows = work.queue.token.shape[2]
    cache = work.policy.init_cache(_without_devices(prompt), num_rows, work.max_tokens)
    return mesh.constrain(cache)


def _advance(work: Work, carry: Carry) -> Carry:
    """Decodes one token of every slot."""
    items = carry.items
    # t = 0 for idle slots, so that they do not read their caches.
    logits, cache = work.policy.decode(
        work.decode_params,
        _without_devices(items.token),
        _without_devices(jnp.where(items.idle, 0, items.t)),
        _without_devices(carry.prompt),
        carry.cache,
    )
    t = items.t + 1
    choice = work.choose_fn(logits, _without_devices(items._replace(t=t)))
    written = Written(choice.written, work.policy.recorded(cache))
    choice, written = jax.tree.map(
        lambda x: x.reshape(*items.t.shape, *x.shape[1:]), (choice, written)
    )
    zeros = jax.tree.map(jnp.zeros_like, written)
    written = _unless_done(items.done, zeros, written)
    # For idle slots the index lies past the end of the buffers: nothing is written.
    place = jnp.where(items.idle, work.max_tokens, t)
    put = jax.vmap(lambda out, number, t, x: out.at[number, t].set(x, mode="drop"))
    out = jax.tree.map(
        lambda out, x: put(out, items.number, place, x), carry.out, written
    )
    items = items._replace(
        t=jnp.where(items.idle, items.t, t),
        token=choice.token,
        done=items.done | choice.done,
        state=_unless_done(items.done, items.state, choice.state),
    )
    return carry._replace(
        items=items, cache=cache, out=out, num_steps=carry.num_steps + 1
    )


def _refill_round(work: Work, carry: Carry) -> Carry:
    """Fills idle slots, then decodes until the next refill is due."""

    def refill(queue, stored, items, num_started, prompt, states):  # of one device
        numbers = num_started + jnp.arange(work.refill_size)
        places = jnp.nonzero(
            items.idle, size=work.refill_size, fill_value=work.num_slots
        )[0]
        places = jnp.where(numbers < work.num_items, places, work.num_slots)
        leaving = jnp.full(work.num_slots, work.num_items)
        leaving = leaving.at[places].set(items.number[places], mode="drop")
        states = _put_states(states, leaving, items.state)
        numbers = jnp.minimum(numbers, work.num_items - 1)

        def put(old, new):
            return old.at[places].set(new, mode="drop")

        waiting = jax.tree.map(lambda x: x[numbers], queue)
        of_items = numbers // work.items_per_prompt
        prompts = jax.tree.map(lambda x: x[of_items], stored)
        items = jax.tree.map(put, items, waiting)
        prompt = jax.tree.map(put, prompt, prompts)
        num_started = num_started + jnp.sum(places < work.num_slots)
        return items, num_started, prompt, states

    items, num_started, prompt, states = jax.vmap(refill)(
        work.queue,
        work.prompt,
        carry.items,
        carry.num_started,
        carry.prompt,
        carry.states,
    )
    carry = carry._replace(
        items=items, num_started=num_started, prompt=prompt, states=states
    )
    return jax.lax.while_loop(
        lambda c: _keep_decoding(work, c), lambda c: _advance(work, c), carry
    )


def _keep_decoding(work: Work, carry: Carry) -> jax.Array:
    """bool[]: whether to decode another token before the next refill."""
    idle = carry.items.idle
    enough = jnp.minimum(work.num_items - carry.num_started, work.refill_size)
    full = (enough == 0) | (jnp.sum(idle, -1) < enough)
    return jnp.all(full) & ~jnp.all(idle)


def _put_states(states, numbers, state):
    """The states of one device's items, with `state` at the items `numbers`."""
    return jax.tree.map(
        lambda old, new: old.at[numbers].set(new, mode="drop"), states, state
    )


def _unless_done(done, kept, new):
    """`kept` where rows are done, else `new`: trees of [devices, slots, rows, ...]."""

    def choose(kept, new):
        ended = done.reshape(*done.shape, *(1,) * (new.ndim - done.ndim))
        return jnp.where(ended, kept, new)

    return jax.tree.map(choose, kept, new)


def _without_devices(tree):
    """[devices, slots, ...] -> [devices * slots, ...]."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
