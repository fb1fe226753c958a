"""Scoring holds at most so many logits at once on each device of a mesh."""

import math
import re

import fakes
import jax
import jax.numpy as jnp
import pytest

from rljax import mesh

V, D = 120, 32  # of the vocabulary, which no other axis equals, and of the model
MAX_LOGITS = 950
EVERY = mesh.Layout(update=mesh.ONLY_PROMPTS)


def largest_logits(sizes, num_prompts, layout=mesh.PLAIN):
    """Float32 logits of the largest array on one device, forward or backward."""
    policy = fakes.decoder(vocab_size=V, max_logits=MAX_LOGITS)
    place = mesh.make(**sizes)
    rows = fakes.rollout(num_prompts, 3, 5)
    rows = rows.replace(prompts=fakes.prompts(num_prompts))

    def total(params, rows):
        return jnp.sum(policy.measure(params, rows.prompts, rows.samples).logp)

    with mesh.using(place, layout):
        params = jax.eval_shape(policy.init, jax.random.key(0))
        where = mesh.state_shardings(params, place, layout)
        params = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            params,
            where,
        )
        if num_prompts % 8 == 0:
            rows = mesh.shard_prompts(rows, place, layout=layout)
        step = jax.jit(jax.grad(total)).lower(params, rows)
        text = step.compile().as_text()
    split = {V // n for n in (1, mesh_parts(place, layout))}
    shapes = {
        tuple(map(int, shape.split(",")))
        for shape in re.findall(r"f32\[([\d,]+)\]", text)
    }
    found = [s for s in shapes if s[-1] in split and len(s) > 1 and D not in s]
    return max(map(math.prod, found))


def mesh_parts(place, layout):
    return math.prod(place.shape.get(axis, 1) for axis in layout.update.vocab)


@pytest.mark.parametrize(
    ("sizes", "num_prompts", "layout"),
    [
        ({"data": 8}, 8, mesh.PLAIN),
        ({"data": 8}, 16, mesh.PLAIN),
        ({"data": 4, "tensor": 2}, 8, mesh.PLAIN),
        ({"fsdp": 4, "tensor": 2}, 8, EVERY),
    ],
)
def test_a_chunk_of_each_device_has_no_more_logits(sizes, num_prompts, layout):
    # All together there are 10,800 at least. Counted over the mesh instead of a device,
    # a chunk would have fewer than an eighth of what it may.
    found = largest_logits(sizes, num_prompts, layout)
    assert MAX_LOGITS / 4 < found <= MAX_LOGITS


def test_prompts_that_a_mesh_does_not_divide_fit_on_each_device():
    # Nobody says which device has them: each chunk would fit on one.
    assert largest_logits({"data": 8}, 6) <= MAX_LOGITS
