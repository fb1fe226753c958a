"""Arrays that change their mesh: the same numbers, and nobody waits for them."""

import threading

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from rljax import mesh

SIZES = [({"fsdp": 6}, {"data": 2}), ({"fsdp": 4}, {"tensor": 2, "fsdp": 2})]
SIZES += [({"fsdp": 7}, {"data": 1}), ({"data": 1}, {"fsdp": 2, "tensor": 2})]


def meshes(old, new):
    devices = jax.devices()
    first, rest = (int(np.prod(list(sizes.values()))) for sizes in (new, old))
    behind = devices[first : first + rest]
    return mesh.make(behind, **old), mesh.make(devices[:first], **new)


def state(source):
    params = jax.tree.map(
        lambda x: jnp.asarray(np.random.default_rng(x.size).random(x.shape), x.dtype),
        jax.eval_shape(fakes.decoder(num_layers=2).init, jax.random.key(0)),
    )
    tree = {"params": params, "step": jnp.int32(3), "key": jax.random.key(7)}
    return mesh.place(tree, source)


@pytest.mark.parametrize(("old", "new"), SIZES, ids=str)
def test_a_state_lies_on_the_new_devices_as_it_is_stored_there(old, new):
    source, target = meshes(old, new)
    before = state(source)
    with mesh.using(source):
        after = mesh.move(before, source, target)
    want = mesh.state_shardings(before, target)
    chex.assert_trees_all_equal(*map(_host, (after, before)))
    for (path, x), sharding in zip(
        jax.tree.leaves_with_path(after), jax.tree.leaves(want), strict=True
    ):
        assert x.sharding.is_equivalent_to(sharding, x.ndim), path


def test_copies_on_all_devices_go_to_all_others():
    source, target = meshes({"fsdp": 6}, {"data": 2})
    moved = mesh.everywhere(mesh.replicate(np.arange(5.0), source), target)
    assert moved.sharding.device_set == set(target.devices.flat)
    np.testing.assert_array_equal(moved, np.arange(5.0))


def test_a_part_that_no_device_of_this_process_has_is_refused():
    # As of another process would be; here each device has a half where it needs all.
    source, target = meshes({"fsdp": 2}, {"data": 2})
    halves = mesh.shard_prompts(np.arange(4.0), source)
    with pytest.raises(ValueError, match=r"same parts of both.*as many devices"):
        mesh.everywhere(halves, target)


def test_what_is_not_computed_yet_is_moved_all_the_same():
    # Taken through the host, the array would be waited for, and it would wait for what
    # comes after: after a minute it gives up, and says so.
    source, target = meshes({"fsdp": 4}, {"data": 2})
    given, waited = threading.Event(), []

    @jax.jit
    def later(x):
        io_callback(lambda: waited.append(given.wait(60)), None)
        return x + 1

    with mesh.using(source):
        x = mesh.place({"embed": {"embedding": jnp.zeros((8, 4))}}, source)
        moved = mesh.move(jax.tree.map(later, x), source, target)
    given.set()
    np.testing.assert_array_equal(moved["embed"]["embedding"], np.ones((8, 4)))
    jax.effects_barrier()
    assert waited == [True]


def _host(tree):
    return jax.device_get({**tree, "key": jax.random.key_data(tree["key"])})
